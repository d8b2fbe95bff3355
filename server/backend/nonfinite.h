// The error that a NaN or an infinity in a weight gives, on every backend. Stateless.
#ifndef WSYNC_SERVER_BACKEND_NONFINITE_H_
#define WSYNC_SERVER_BACKEND_NONFINITE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "server/core/catalog.h"

namespace wsync {

// INVALID_ARGUMENT naming tensor, dtype and shape, which value it is, its flat index and its [row, col]; of an infinity
// in a tensor that is moved as it is, how to allow it. `value`: the bytes of element `element`, in host memory.
// REQUIRES: it is a NaN or an infinity.
absl::Status NonFiniteError(const Tensor& tensor, const Recipe& recipe, int64_t element, const std::byte* value);

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_NONFINITE_H_
