#include "server/rollout/deep_check.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync {
namespace {

constexpr absl::Duration kBucketTimeout = absl::Seconds(30);  // one bucket's copies; far more than any device takes

// The copies of `table` into handle `handle`, the other way round: out of that memory, into the scratch bucket.
ScatterTable Reversed(const ScatterTable& table, int32_t handle) {
  ScatterTable reversed;
  for (size_t k = 0; k + 1 < table.bucket_begin.size(); ++k) {
    reversed.bucket_begin.push_back(static_cast<int64_t>(reversed.copies.size()));
    for (int64_t i = table.bucket_begin[k]; i < table.bucket_begin[k + 1]; ++i) {
      const ScatterCopy& copy = table.copies[i];
      if (copy.handle != handle) continue;
      reversed.copies.push_back({.source_offset = copy.dest_offset,
                                 .source_pitch = copy.dest_pitch,
                                 .dest_offset = copy.source_offset,
                                 .dest_pitch = copy.source_pitch,
                                 .rows = copy.rows,
                                 .row_bytes = copy.row_bytes});
    }
  }
  reversed.bucket_begin.push_back(static_cast<int64_t>(reversed.copies.size()));
  return reversed;
}

struct Gatherer {
  std::unique_ptr<Loader> loader;
  const std::byte* from = nullptr;
};

absl::Status WaitFor(const CompletionPtr& work) {
  return work == nullptr ? absl::OkStatus() : work->Wait(MonotonicNow() + kBucketTimeout);
}

}  // namespace

absl::StatusOr<Hash128> DeepCheck(Backend& backend, const DeepCheckInput& input) {
  const Plan& plan = *input.plan;
  auto scratch = backend.memory().Allocate(std::max<int64_t>(plan.max_bucket_bytes(), kPieceAlign),
                                           "a bucket to compare live weights in");
  if (!scratch.ok()) return scratch.status();
  std::byte* const wire = (*scratch)->data();
  auto under = backend.NewLoader(input.plan, input.under.table, {wire});
  if (!under.ok()) return under.status();
  auto check = backend.NewLoader(input.plan, {}, {});
  if (!check.ok()) return check.status();
  std::vector<Gatherer> gatherers;
  for (size_t handle = 0; handle < input.handles.size(); ++handle) {
    auto gather = backend.NewLoader(input.plan, Reversed(input.table, static_cast<int32_t>(handle)), {wire});
    if (!gather.ok()) return gather.status();
    gatherers.push_back({*std::move(gather), input.handles[handle]});
  }
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    if (input.interrupted()) return absl::AbortedError("a version came in between: ask again");
    const auto bucket = static_cast<int64_t>(k);
    absl::Status status = WaitFor((*under)->Apply(bucket, input.under.at[k], nullptr));
    for (const Gatherer& gatherer : gatherers) {
      if (status.ok()) status = WaitFor(gatherer.loader->Apply(bucket, gatherer.from, nullptr));
    }
    if (status.ok()) status = WaitFor((*check)->Check(bucket, wire, nullptr));
    if (!status.ok()) return status;
  }
  const auto digests = (*check)->Finish(MonotonicNow() + kBucketTimeout);
  if (!digests.ok()) return digests.status();
  return plan.ContentDigest(*digests);
}

}  // namespace wsync
