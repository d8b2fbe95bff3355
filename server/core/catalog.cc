#include "server/core/catalog.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// Names reach logs and terminals: never quote one unescaped or at full length.
std::string Quoted(std::string_view name) { return absl::StrCat("'", Printable(name.substr(0, 100)), "'"); }

absl::Status CheckName(const Tensor& tensor, size_t index) {
  const std::string& name = tensor.name;
  if (name.empty()) return absl::InvalidArgumentError(absl::StrCat("catalog: tensor ", index, " has an empty name"));
  if (name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("catalog: the name of tensor ", index, " (", Quoted(name),
                                                   "...) has ", name.size(), " bytes; the limit is ", kMaxNameBytes));
  }
  if (std::any_of(name.begin(), name.end(), IsControl)) {
    return absl::InvalidArgumentError(absl::StrCat("catalog: the name of tensor ", index, " (", Quoted(name),
                                                   ") has control characters; rename the tensor"));
  }
  return absl::OkStatus();
}

absl::Status ShapeError(const Tensor& tensor, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("catalog: tensor ", Quoted(tensor.name), " of shape [",
                                                 absl::StrJoin(tensor.shape, ", "), "] ", why));
}

absl::Status CheckShape(const Tensor& tensor) {
  if (DtypeBytes(tensor.dtype) == 0) {
    return ShapeError(tensor, absl::StrCat("has an unknown dtype (number ", static_cast<int>(tensor.dtype), ")"));
  }
  if (tensor.shape.size() > kMaxDims) {
    return absl::InvalidArgumentError(absl::StrCat("catalog: tensor ", Quoted(tensor.name), " has ",
                                                   tensor.shape.size(), " dimensions; the limit is ", kMaxDims));
  }
  int64_t bytes = DtypeBytes(tensor.dtype);
  for (int64_t dim : tensor.shape) {
    if (dim < 0) return ShapeError(tensor, "has a negative dimension");
    if (dim == 0) continue;
    if (dim > kMaxTensorBytes / bytes) return ShapeError(tensor, "is larger than the limit of 4 TiB");
    bytes *= dim;
  }
  return absl::OkStatus();
}

Hash128 FingerprintOf(const std::vector<Tensor>& tensors) {
  Hasher hasher;
  hasher.Add(tensors.size());
  for (const Tensor& tensor : tensors) {
    hasher.Add(tensor.name).Add(static_cast<uint64_t>(tensor.dtype)).Add(tensor.shape.size());
    hasher.AddBytes(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
  }
  return hasher.Finish();
}

}  // namespace

MatrixView ViewOf(const Tensor& tensor) {
  if (tensor.shape.empty()) return {};
  MatrixView view{1, tensor.shape.back()};
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) view.rows *= tensor.shape[i];
  return view;
}

int64_t BytesOf(const Tensor& tensor) {
  const MatrixView view = ViewOf(tensor);
  return view.rows * view.cols * DtypeBytes(tensor.dtype);
}

absl::StatusOr<Catalog> Catalog::Create(std::vector<Tensor> tensors) {
  if (tensors.empty()) {
    return absl::InvalidArgumentError("catalog: no tensors were registered; register the model's weights first");
  }
  if (tensors.size() > static_cast<size_t>(kMaxTensors)) {
    return absl::InvalidArgumentError(
        absl::StrCat("catalog: ", tensors.size(), " tensors were registered; the limit is ", kMaxTensors));
  }
  Catalog catalog;
  catalog.tensors_ = std::move(tensors);
  catalog.tensors_.shrink_to_fit();  // kept for long, and a streamed registration grew it by doubling
  catalog.index_.reserve(catalog.tensors_.size());
  for (size_t i = 0; i < catalog.tensors_.size(); ++i) {
    const Tensor& tensor = catalog.tensors_[i];
    if (absl::Status status = CheckName(tensor, i); !status.ok()) return status;
    if (absl::Status status = CheckShape(tensor); !status.ok()) return status;
    if (!catalog.index_.emplace(tensor.name, static_cast<int64_t>(i)).second) {
      return absl::InvalidArgumentError(absl::StrCat("catalog: tensor ", Quoted(tensor.name),
                                                     " was registered twice (tensors ", catalog.Find(tensor.name),
                                                     " and ", i, "); register each name once"));
    }
    catalog.total_bytes_ += BytesOf(tensor);
    if (catalog.total_bytes_ > kMaxCatalogBytes) {
      return absl::InvalidArgumentError(absl::StrCat("catalog: the tensors up to ", Quoted(tensor.name),
                                                     " are larger than the limit of 1 EiB in all"));
    }
  }
  catalog.fingerprint_ = FingerprintOf(catalog.tensors_);
  return catalog;
}

int64_t Catalog::Find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? -1 : it->second;
}

}  // namespace wsync
