#include "server/backend/nonfinite.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/quantize.h"

namespace wsync {

absl::Status NonFiniteError(const Tensor& tensor, const Recipe& recipe, int64_t element, const std::byte* value) {
  const int64_t cols = ViewOf(tensor).cols;
  const NumberKind kind = KindOfNumber(value, tensor.dtype);
  const std::string remedy = recipe.fp8 || kind == NumberKind::kNan
                                 ? "mend it in the trainer and publish again"
                                 : absl::StrCat("mend it in the trainer, or, where it is meant, name the tensor in ",
                                                "recipe.allow_infinities of trainer.yaml");
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor '", tensor.name, "' (", std::string(DtypeName(tensor.dtype)), " [", absl::StrJoin(tensor.shape, ", "),
      "]) holds ", std::string(NumberKindName(kind)), " at index ", element, ", [row ", element / cols, ", col ",
      element % cols, "]; a version with such a weight is never sent: ", remedy));
}

}  // namespace wsync
