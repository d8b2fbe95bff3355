#include "tests/backend/contract/encoded_model.h"

#include <cstring>
#include <utility>

#include "kernels/quantize.h"

namespace wsync::contract {
namespace {

constexpr int64_t kTensorAlign = 256;

std::vector<Tensor> RandomTensors(std::mt19937& random) {
  const auto uniform = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const Dtype floats[] = {Dtype::kBF16, Dtype::kF16, Dtype::kF32};
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < 12; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const Dtype dtype = floats[uniform(0, 2)];
    switch (uniform(0, 6)) {
      case 0:
        tensors.push_back({layer + "input_layernorm.weight", dtype, {uniform(1, 5000)}});
        break;
      case 1:
        tensors.push_back({layer + "mlp.down_proj.weight", Dtype::kF8E4M3, {uniform(1, 700), uniform(1, 300)}});
        break;
      case 2:
        tensors.push_back({layer + "counts", Dtype::kI64, {uniform(0, 3), uniform(1, 50)}});
        break;
      case 3:
        tensors.push_back({layer + "mlp.gate.weight", dtype, {uniform(1, 300), uniform(1, 300)}});
        break;
      default:
        tensors.push_back({layer + "mlp.up_proj.weight", dtype, {uniform(1, 900), uniform(1, 400)}});
    }
  }
  return tensors;
}

std::shared_ptr<const Plan> MakePlan(std::vector<Tensor> tensors, const RecipeRules& rules, int64_t bucket_bytes) {
  auto catalog = Catalog::Create(std::move(tensors));
  EXPECT_TRUE(catalog.ok()) << catalog.status();
  auto plan = Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), rules, bucket_bytes);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

// A finite element of `dtype` from random bits: the lowest bit of a floating type's exponent is cleared.
void ClearExponentBit(std::byte* element, Dtype dtype) {
  const int64_t bytes = DtypeBytes(dtype);
  const int shift = dtype == Dtype::kF32 ? 23 : dtype == Dtype::kBF16 ? 7 : dtype == Dtype::kF16 ? 10 : 3;
  uint64_t bits = 0;
  std::memcpy(&bits, element, static_cast<size_t>(bytes));
  bits &= ~(uint64_t{1} << shift);
  std::memcpy(element, &bits, static_cast<size_t>(bytes));
}

}  // namespace

EncodedModel::EncodedModel(uint32_t seed, const RecipeRules& rules) {
  std::mt19937 random(seed);
  plan_ = MakePlan(RandomTensors(random), rules, kMinBucketBytes);
  FillRandomly(seed);
}

EncodedModel::EncodedModel(std::vector<Tensor> tensors, const RecipeRules& rules, int64_t bucket_bytes)
    : plan_(MakePlan(std::move(tensors), rules, bucket_bytes)) {
  FillRandomly(1);
}

void EncodedModel::FillRandomly(uint32_t seed) {
  const std::vector<Tensor>& tensors = plan_->catalog().tensors();
  int64_t bytes = 0;
  for (const Tensor& tensor : tensors) {
    offsets_.push_back(bytes);
    bytes += RoundUp(BytesOf(tensor), kTensorAlign);
  }
  weights_.resize(bytes + kTensorAlign);
  std::mt19937 random(seed);
  for (std::byte& b : weights_) b = static_cast<std::byte>(random());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].dtype == Dtype::kI64) continue;
    const int64_t size = DtypeBytes(tensors[i].dtype);
    for (int64_t at = 0; at < BytesOf(tensors[i]); at += size) {
      ClearExponentBit(weights_.data() + offsets_[i] + at, tensors[i].dtype);
    }
  }
}

std::vector<const std::byte*> EncodedModel::AddressesAt(const std::byte* base) const {
  std::vector<const std::byte*> addresses;
  for (const int64_t offset : offsets_) addresses.push_back(base + offset);
  return addresses;
}

void EncodedModel::Poke(int64_t tensor, int64_t element, uint16_t bits) {
  std::memcpy(weights_.data() + offsets_[tensor] + element * 2, &bits, sizeof(bits));
}

Bytes EncodedModel::EncodeBucket(int64_t k, std::vector<uint64_t>* digests) const {
  const Bucket& b = bucket(k);
  Bytes wire(b.wire_bytes);
  for (int64_t i = b.piece_begin; i < b.piece_end; ++i) {
    const Piece& piece = plan_->pieces()[i];
    const Tensor& tensor = plan_->catalog().tensors()[piece.tensor];
    const MatrixView view = ViewOf(tensor);
    const std::byte* source = weights_.data() + offsets_[piece.tensor];
    EncodeTask task{.source = source + piece.row_begin * view.cols * DtypeBytes(tensor.dtype),
                    .dtype = tensor.dtype,
                    .row_begin = piece.row_begin,
                    .rows = piece.rows,
                    .cols = view.cols,
                    .recipe = plan_->RecipeOf(piece)};
    if (task.recipe.fp8 && task.recipe.granularity == Granularity::kTensor) {
      task.tensor_amax = AbsMax(source, tensor.dtype, 0, view.rows, view.cols).amax;
    }
    task.data = wire.data() + piece.data_offset;
    task.scales = piece.scale_bytes > 0 ? wire.data() + piece.scale_offset : nullptr;
    const uint64_t digest = Encode(task).digest;
    (*digests)[i] = digest;
    std::memcpy(wire.data() + b.digest_offset + (i - b.piece_begin) * sizeof(digest), &digest, sizeof(digest));
  }
  return wire;
}

Bytes EncodedModel::EncodeImage(std::vector<uint64_t>* digests) const {
  Bytes image(plan_->image_bytes());
  digests->assign(plan_->pieces().size(), 0);
  for (int64_t k = 0; k < buckets(); ++k) {
    const Bytes wire = EncodeBucket(k, digests);
    std::memcpy(image.data() + bucket(k).image_offset, wire.data(), wire.size());
  }
  return image;
}

}  // namespace wsync::contract
