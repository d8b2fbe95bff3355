#include "client/cli/reference_check.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace wsync::cli {
namespace {

constexpr int64_t kBlock = 128;
// Rounding of the scale's reciprocal and of the product move a tie by a few fp32 units: 1e-6 of the value covers them.
constexpr double kArithmeticSlack = 1e-6;
// E4M3 has three mantissa bits: half a unit in the last place is at most 2^-4 of a normal value, and 2^-10 flat below
// the smallest normal, 2^-6.
constexpr double kNormalHalfUlp = 1.0 / 16;
constexpr double kSubnormalHalfUlp = 1.0 / 1024;
constexpr double kSmallestNormal = 1.0 / 64;

double Bf16At(const std::byte* data, int64_t index) {
  uint16_t bits = 0;
  std::memcpy(&bits, data + 2 * index, 2);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// E4M3 by its definition: sign, 4 exponent bits with bias 7, 3 mantissa bits; NaN where all seven are set.
std::array<double, 256> DecodeTable() {
  std::array<double, 256> table{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    if (exponent == 15 && mantissa == 7) value = NAN;
    table[code] = (code & 128) != 0 ? -value : value;
  }
  return table;
}

absl::Status CheckQuantized(const Tensor& tensor, const std::byte* source, const TensorView& codes,
                            const TensorView& scales, ReferenceReport* report) {
  static const std::array<double, 256> decode = DecodeTable();
  const int64_t rows = tensor.shape[0];
  const int64_t cols = tensor.shape[1];
  const int64_t scale_cols = (cols + kBlock - 1) / kBlock;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      float scale = 0;
      std::memcpy(&scale, scales.data + 4 * (r / kBlock * scale_cols + c / kBlock), 4);
      const double want = Bf16At(source, r * cols + c);
      const double got = decode[static_cast<uint8_t>(codes.data[r * cols + c])] * scale;
      const double error = std::abs(want - got);
      const double scaled = std::abs(want) / scale;
      const double allowed = std::max(std::max(scaled, kSmallestNormal) * kNormalHalfUlp, kSubnormalHalfUlp) * scale;
      if (!(error <= allowed + std::abs(want) * kArithmeticSlack)) {
        return absl::DataLossError(absl::StrCat(tensor.name, "[", r, ", ", c, "]: ", got, " came back for ", want,
                                                ", more than rounding to E4M3 explains"));
      }
      if (scaled >= kSmallestNormal)
        report->worst_relative_error = std::max(report->worst_relative_error, error / std::abs(want));
    }
  }
  ++report->quantized_tensors;
  report->quantized_values += rows * cols;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReferenceReport> CheckAgainstSource(SharedModel& source, const Checkpoint& exported) {
  ReferenceReport report;
  for (size_t i = 0; i < source.tensors().size(); ++i) {
    const Tensor& tensor = source.tensors()[i].tensor;
    const TensorView* got = exported.Find(tensor.name);
    if (got == nullptr) return absl::DataLossError(absl::StrCat(tensor.name, " is missing from ", exported.path()));
    if (got->tensor.shape != tensor.shape) return absl::DataLossError(absl::StrCat(tensor.name, " changed its shape"));
    if (got->tensor.dtype == tensor.dtype) {
      if (std::memcmp(got->data, source.Data(i), got->bytes) != 0) {
        return absl::DataLossError(absl::StrCat(tensor.name, " should be equal byte for byte, and is not"));
      }
      ++report.identical_tensors;
      continue;
    }
    const TensorView* scales = exported.Find(tensor.name + "_scale_inv");
    if (got->tensor.dtype != Dtype::kF8E4M3 || scales == nullptr || tensor.dtype != Dtype::kBF16) {
      return absl::DataLossError(absl::StrCat(tensor.name, " came back as ", std::string(DtypeName(got->tensor.dtype)),
                                              scales == nullptr ? " without scales" : ""));
    }
    const absl::Status checked = CheckQuantized(tensor, source.Data(i), *got, *scales, &report);
    if (!checked.ok()) return checked;
  }
  return report;
}

}  // namespace wsync::cli
