#include "server/backend/nonfinite.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace wsync {
namespace {

// Little-endian bits of an infinity; E4M3 has none, and its NaNs are no infinity under any mask.
uint64_t InfinityBits(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF8E5M2:
      return 0x7C;
    case Dtype::kF16:
      return 0x7C00;
    case Dtype::kBF16:
      return 0x7F80;
    case Dtype::kF32:
      return 0x7F800000;
    case Dtype::kF64:
      return 0x7FF0000000000000;
    default:
      return 0;
  }
}

const char* KindOf(const std::byte* value, Dtype dtype) {
  const int64_t bytes = DtypeBytes(dtype);
  uint64_t bits = 0;
  std::memcpy(&bits, value, static_cast<size_t>(bytes));
  const uint64_t sign = uint64_t{1} << (8 * bytes - 1);
  if ((bits & ~sign) != InfinityBits(dtype)) return "NaN";
  return (bits & sign) != 0 ? "-infinity" : "infinity";
}

}  // namespace

absl::Status NonFiniteError(const Tensor& tensor, int64_t element, const std::byte* value) {
  const int64_t cols = ViewOf(tensor).cols;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor '", tensor.name, "' (", std::string(DtypeName(tensor.dtype)), " [", absl::StrJoin(tensor.shape, ", "),
      "]) holds ", KindOf(value, tensor.dtype), " at index ", element, ", [row ", element / cols, ", col ",
      element % cols, "]; a version with such a weight is never sent: mend it in the trainer and publish again"));
}

}  // namespace wsync
