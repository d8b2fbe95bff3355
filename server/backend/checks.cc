#include "server/backend/checks.h"

#include "absl/strings/str_cat.h"

namespace wsync {

absl::Status CheckSources(const Plan& plan, absl::Span<const std::byte* const> tensors) {
  const std::vector<Tensor>& catalog = plan.catalog().tensors();
  if (tensors.size() != catalog.size()) {
    return absl::InvalidArgumentError(absl::StrCat("quantizer: ", tensors.size(), " addresses for ", catalog.size(),
                                                   " tensors of the catalog; give one for each"));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (reinterpret_cast<uintptr_t>(tensors[i]) % DtypeBytes(catalog[i].dtype) == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("quantizer: the memory of tensor '", catalog[i].name,
                                                   "' is not aligned for ", std::string(DtypeName(catalog[i].dtype)),
                                                   "; register it at a multiple of ", DtypeBytes(catalog[i].dtype),
                                                   " bytes"));
  }
  return absl::OkStatus();
}

absl::Status CheckScatterTable(const Plan& plan, const ScatterTable& table, size_t handles) {
  const size_t buckets = plan.buckets().size();
  if (!table.copies.empty() && table.bucket_begin.size() != buckets + 1) {
    return absl::InvalidArgumentError(absl::StrCat("loader: the destinations are cut for ", table.bucket_begin.size(),
                                                   " bucket bounds, the plan has ", buckets,
                                                   " buckets; build them from the same plan"));
  }
  for (const ScatterCopy& copy : table.copies) {
    if (copy.handle >= 0 && copy.handle < static_cast<int64_t>(handles)) continue;
    return absl::InvalidArgumentError(absl::StrCat("loader: a destination names memory handle ", copy.handle, " of ",
                                                   handles, "; open every handle of the attachment"));
  }
  return absl::OkStatus();
}

absl::Status CheckBucket(const Plan& plan, int64_t bucket, const char* what) {
  const auto buckets = static_cast<int64_t>(plan.buckets().size());
  if (bucket >= 0 && bucket < buckets) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": there is no bucket ", bucket, "; the plan has ", buckets));
}

absl::Status CheckSession(const SessionSpec& spec) {
  if (spec.world < 1 || spec.rank < 0 || spec.rank >= spec.world) {
    return absl::InvalidArgumentError(
        absl::StrCat("data plane: there is no rank ", spec.rank, " in a session of ", spec.world));
  }
  if (!spec.peer_tokens.empty() && spec.peer_tokens.size() + 1 != static_cast<size_t>(spec.world)) {
    return absl::InvalidArgumentError(
        absl::StrCat("data plane: ", spec.peer_tokens.size(), " tokens for the sinks of a session of ", spec.world));
  }
  if (spec.token.empty()) return absl::InvalidArgumentError("data plane: the session has no token");
  return absl::OkStatus();
}

absl::Status MemoryCutError(const std::string& what) {
  return absl::FailedPreconditionError(
      absl::StrCat(what,
                   " was cut short by the process that lent it, or could never be had whole (a full /dev/shm): "
                   "lend new memory, and keep its size for as long as it is lent"));
}

absl::Status MismatchError(const Plan& plan, int64_t bucket, int64_t piece) {
  const Piece& p = plan.pieces()[piece];
  return absl::DataLossError(
      absl::StrCat("check: rows ", p.row_begin, " to ", p.row_begin + p.rows - 1, " of tensor '",
                   plan.catalog().tensors()[p.tensor].name, "' in bucket ", bucket,
                   " are not the bytes that were sent; the version is not taken: it has to be sent again"));
}

}  // namespace wsync
