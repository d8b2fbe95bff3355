#include "tests/faults/fault_model.h"

#include <algorithm>
#include <cstring>

#include "client/cli/demo_model.h"
#include "kernels/quantize.h"
#include "server/core/hash.h"

namespace wsync::faults {
namespace {

constexpr int64_t kAlign = 128;  // of tensors in SharedModel and of outputs in EngineMemory

std::shared_ptr<const Plan> MakePlan(std::vector<Tensor> tensors) {
  auto catalog = Catalog::Create(std::move(tensors));
  return *Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), RecipeRules(), kBucketBytes);
}

struct Encoded {
  std::vector<std::byte> data, scales;
};

Encoded EncodeTensor(const Tensor& tensor, const Recipe& recipe, const std::byte* source) {
  const MatrixView view = ViewOf(tensor);
  Encoded out;
  out.data.resize(view.rows * view.cols * (recipe.fp8 ? 1 : DtypeBytes(tensor.dtype)));
  const auto blocks = [](int64_t n) { return (n + kBlockSize - 1) / kBlockSize; };
  if (recipe.fp8) out.scales.resize(blocks(view.rows) * blocks(view.cols) * sizeof(float));
  Encode({.source = source,
          .dtype = tensor.dtype,
          .rows = view.rows,
          .cols = view.cols,
          .recipe = recipe,
          .data = out.data.data(),
          .scales = out.scales.empty() ? nullptr : out.scales.data()});
  return out;
}

}  // namespace

void FillWeights(std::byte* data, int64_t bytes, uint64_t seed) { cli::FillRandomBf16(data, bytes / 2, seed + 1); }

std::string ContentName(const std::byte* data, int64_t bytes) {
  return Hasher().AddBytes(data, static_cast<size_t>(bytes)).Finish().Hex();
}

Oracle::Oracle(std::vector<Tensor> tensors) : plan_(MakePlan(std::move(tensors))) {}

const std::string& Oracle::Content(uint64_t seed) {
  std::string& content = known_[seed];
  if (!content.empty()) return content;
  const std::vector<Tensor>& tensors = plan_->catalog().tensors();
  std::vector<int64_t> places;
  int64_t bytes = 0;
  for (const Tensor& tensor : tensors) {
    places.push_back(bytes);
    bytes = RoundUp(bytes + BytesOf(tensor), kAlign);
  }
  std::vector<std::byte> weights(std::max<int64_t>(bytes, kAlign));
  FillWeights(weights.data(), static_cast<int64_t>(weights.size()), seed);
  std::vector<Encoded> encoded;
  for (size_t i = 0; i < tensors.size(); ++i) {
    encoded.push_back(EncodeTensor(tensors[i], plan_->recipes()[i].recipe, weights.data() + places[i]));
  }
  std::vector<std::byte> memory;
  for (const Output& output : plan_->outputs()) {
    const std::vector<std::byte>& part = output.is_scale ? encoded[output.tensor].scales : encoded[output.tensor].data;
    memory.insert(memory.end(), part.begin(), part.end());
    memory.resize(RoundUp(static_cast<int64_t>(memory.size()), kAlign));
  }
  content = ContentName(memory.data(), static_cast<int64_t>(memory.size()));
  return content;
}

}  // namespace wsync::faults
