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

absl::StatusOr<SharedModel> SharedModel::FromCheckpoint(const Checkpoint& checkpoint,
                                                        const std::function<void(int64_t, int64_t)>& progress) {
  auto model = Create(checkpoint.TensorList(), checkpoint.path());
  if (!model.ok()) return model.status();
  int64_t done = 0;
  for (size_t i = 0; i < checkpoint.tensors().size(); ++i) {
    const TensorView& view = checkpoint.tensors()[i];
    std::memcpy(model->Data(i), view.data, view.bytes);
    done += view.bytes;
    progress(done, checkpoint.total_bytes());
  }
  if (absl::Status status = checkpoint.Intact(); !status.ok()) return status;
  return model;
}

absl::StatusOr<v1::RegisterReply> SharedModel::Register(TrainerClient& client,
                                                        const std::vector<std::string>& modules_to_not_convert,
                                                        bool replace) {
  return client.Register({segment_->handle()}, tensors_, modules_to_not_convert, replace);
}

}  // namespace wsync::cli
