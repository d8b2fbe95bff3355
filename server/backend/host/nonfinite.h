// The error that a NaN or an infinity in a weight gives. Stateless.
#ifndef WSYNC_SERVER_BACKEND_HOST_NONFINITE_H_
#define WSYNC_SERVER_BACKEND_HOST_NONFINITE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "server/core/catalog.h"

namespace wsync::host {

// INVALID_ARGUMENT naming tensor, dtype and shape, which value it is, its flat index and its [row, col].
// REQUIRES: element `element` of `data` is a NaN or an infinity.
absl::Status NonFiniteError(const Tensor& tensor, const std::byte* data, int64_t element);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_NONFINITE_H_
