// What a trainer registered: names, shapes, dtypes, in the order given. Immutable once made.
//
// Pure data; safe to share between threads. Where the bytes lie is not here: that is the trainer agent's business.
#ifndef WSYNC_SERVER_CORE_CATALOG_H_
#define WSYNC_SERVER_CORE_CATALOG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/format.h"
#include "server/core/hash.h"

namespace wsync {

inline constexpr int64_t kMaxTensors = 4'000'000;
inline constexpr size_t kMaxNameBytes = 512;
inline constexpr size_t kMaxDims = 8;
inline constexpr int64_t kMaxTensorBytes = int64_t{1} << 42;   // 4 TiB: far above any weight, far below overflow
inline constexpr int64_t kMaxCatalogBytes = int64_t{1} << 60;  // leaves room for scales, padding and digests in int64

struct Tensor {
  std::string name;  // the checkpoint's name, e.g. "model.layers.0.mlp.down_proj.weight"
  Dtype dtype = Dtype::kBF16;
  std::vector<int64_t> shape;  // [] is a scalar
  bool operator==(const Tensor&) const = default;
};

// The matrix a tensor is moved as: a scalar is 1 x 1, [n] is one row of n, [a, b, c] is a*b rows of c.
struct MatrixView {
  int64_t rows = 1;
  int64_t cols = 1;
};
MatrixView ViewOf(const Tensor& tensor);
int64_t BytesOf(const Tensor& tensor);  // rows * cols * DtypeBytes

class Catalog {
 public:
  Catalog() = default;
  Catalog(Catalog&&) = default;
  Catalog& operator=(Catalog&&) = default;
  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  // INVALID_ARGUMENT naming the tensor: empty or over-long name, control characters in a name, duplicate name,
  // unknown dtype, negative dimension, too many dimensions, a tensor above kMaxTensorBytes (a zero dimension counts as
  // one here, so that no product of the others overflows), all of them above kMaxCatalogBytes, more than kMaxTensors,
  // no tensors at all. A zero dimension is allowed (no bytes move).
  static absl::StatusOr<Catalog> Create(std::vector<Tensor> tensors);

  const std::vector<Tensor>& tensors() const { return tensors_; }
  // Index of a tensor by name, or -1.
  int64_t Find(std::string_view name) const;
  // Hash of every name, dtype and shape in order.
  Hash128 fingerprint() const { return fingerprint_; }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  std::vector<Tensor> tensors_;
  absl::flat_hash_map<std::string_view, int64_t> index_;  // views into tensors_: moves keep them, copies are forbidden
  Hash128 fingerprint_;
  int64_t total_bytes_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_CATALOG_H_
