#include "client/cli/demo_model.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "client/checkpoint/checkpoint_writer.h"
#include "server/core/catalog.h"

namespace wsync::cli {
namespace {

constexpr size_t kTableSize = 1 << 14;  // distinct values; 32 KiB, so drawing stays in the first-level cache
constexpr double kStandardDeviation = 0.02;

// xorshift64*: fast, and good enough for weights nobody trains.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1Dull;
  }

 private:
  uint64_t state_;
};

uint16_t ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

const std::array<uint16_t, kTableSize>& NormalTable() {
  static const std::array<uint16_t, kTableSize> table = [] {
    std::array<uint16_t, kTableSize> values{};
    Random random(42);
    for (uint16_t& value : values) {  // Box-Muller
      const double u = (static_cast<double>(random.Next() >> 11) + 1) / 9007199254740993.0;
      const double v = static_cast<double>(random.Next() >> 11) / 9007199254740992.0;
      value = ToBf16(static_cast<float>(kStandardDeviation * std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v)));
    }
    return values;
  }();
  return table;
}

uint64_t SeedOf(uint64_t seed, size_t tensor) { return seed * 1000003 + tensor + 1; }

OrderedJson ConfigOf(const ModelFacts& facts) {
  return {{"architectures", {std::string(facts.architecture)}},
          {"model_type", std::string(facts.hf_model_type)},
          {"hidden_size", facts.hidden},
          {"intermediate_size", facts.intermediate},
          {"num_hidden_layers", facts.layers},
          {"num_attention_heads", facts.heads},
          {"num_key_value_heads", facts.kv_heads},
          {"vocab_size", facts.vocab},
          {"tie_word_embeddings", facts.tied},
          {"torch_dtype", "bfloat16"}};
}

}  // namespace

void FillRandomBf16(std::byte* data, int64_t count, uint64_t seed) {
  const std::array<uint16_t, kTableSize>& table = NormalTable();
  Random random(seed);
  for (int64_t i = 0; i < count;) {
    uint64_t bits = random.Next();
    for (int k = 0; k < 4 && i < count; ++k, ++i, bits >>= 16) {
      const uint16_t value = table[bits & (kTableSize - 1)];
      std::memcpy(data + 2 * i, &value, 2);
    }
  }
}

int64_t PerturbBf16(std::byte* data, int64_t count, int64_t one_in, uint64_t seed) {
  Random random(seed);
  int64_t changed = 0;
  for (int64_t i = static_cast<int64_t>(random.Next() % one_in); i < count;
       i += 1 + static_cast<int64_t>(random.Next() % (2 * one_in - 1))) {
    uint16_t value = 0;
    std::memcpy(&value, data + 2 * i, 2);
    value ^= 1;  // the last place of the mantissa: never a NaN, never an infinity from a finite number
    std::memcpy(data + 2 * i, &value, 2);
    ++changed;
  }
  return changed;
}

absl::Status WriteRandomCheckpoint(const std::string& model, const std::string& directory) {
  const auto facts = FactsOf(model);
  if (!facts.ok()) return facts.status();
  const auto tensors = ModelTensors(model);
  if (!tensors.ok()) return tensors.status();
  CheckpointOptions options;
  options.config = ConfigOf(*facts);
  auto writer = CheckpointWriter::Create(directory, *tensors, options);
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < tensors->size(); ++i) {
    bytes.assign(BytesOf((*tensors)[i]), std::byte{0});
    if ((*tensors)[i].dtype == Dtype::kBF16) FillRandomBf16(bytes.data(), bytes.size() / 2, SeedOf(1, i));
    const absl::Status written = (*writer)->Write(i, bytes);
    if (!written.ok()) return written;
  }
  return (*writer)->Finish();
}

void FillRandom(SharedModel& model, uint64_t seed) {
  for (size_t i = 0; i < model.tensors().size(); ++i) {
    const Tensor& tensor = model.tensors()[i].tensor;
    if (tensor.dtype == Dtype::kBF16) FillRandomBf16(model.Data(i), BytesOf(tensor) / 2, SeedOf(seed, i));
  }
}

int64_t Perturb(SharedModel& model, int64_t one_in, uint64_t seed) {
  int64_t changed = 0;
  for (size_t i = 0; i < model.tensors().size(); ++i) {
    const Tensor& tensor = model.tensors()[i].tensor;
    if (tensor.dtype == Dtype::kBF16) {
      changed += PerturbBf16(model.Data(i), BytesOf(tensor) / 2, one_in, SeedOf(seed, i));
    }
  }
  return changed;
}

}  // namespace wsync::cli
