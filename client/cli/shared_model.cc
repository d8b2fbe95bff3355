#include "client/cli/shared_model.h"

#include <algorithm>
#include <cstring>

namespace wsync::cli {
namespace {

constexpr int64_t kTensorAlign = 128;

}  // namespace

absl::StatusOr<SharedModel> SharedModel::Create(const std::vector<Tensor>& tensors, const std::string& purpose) {
  SharedModel model;
  int64_t bytes = 0;
  for (const Tensor& tensor : tensors) {
    model.tensors_.push_back({tensor, 0, static_cast<uint64_t>(bytes)});
    bytes = RoundUp(bytes + BytesOf(tensor), kTensorAlign);
  }
  auto segment = SharedSegment::Create(std::max<int64_t>(bytes, kTensorAlign), purpose);
  if (!segment.ok()) return segment.status();
  model.segment_ = *std::move(segment);
  return model;
}

absl::StatusOr<SharedModel> SharedModel::FromModel(const Model& model, const std::string& purpose,
                                                   const std::function<void(int64_t, int64_t)>& progress) {
  auto shared = Create(model.TensorList(), purpose);
  if (!shared.ok()) return shared.status();
  int64_t done = 0, total = 0;
  for (const TensorView& view : model.tensors) total += view.bytes;
  for (size_t i = 0; i < model.tensors.size(); ++i) {
    const TensorView& view = model.tensors[i];
    std::memcpy(shared->Data(i), view.data, view.bytes);
    done += view.bytes;
    progress(done, total);
  }
  if (absl::Status status = model.checkpoint->Intact(); !status.ok()) return status;
  return shared;
}

absl::StatusOr<v1::RegisterReply> SharedModel::Register(TrainerClient& client,
                                                        const std::vector<std::string>& modules_to_not_convert,
                                                        bool replace) {
  return client.Register({segment_->handle()}, tensors_, modules_to_not_convert, replace);
}

}  // namespace wsync::cli
