#include "server/rollout/attachment.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/backend/checks.h"
#include "server/core/guarded_range.h"
#include "server/rollout/deep_check.h"
#include "server/rollout/direct_buckets.h"
#include "server/rollout/underlay.h"

namespace wsync {

absl::StatusOr<std::unique_ptr<Attachment>> Attachment::Create(Backend& backend, AttachSpec spec, SinkMode mode,
                                                               int32_t ring_slots, std::shared_ptr<const Plan> plan) {
  std::unique_ptr<Attachment> attachment(new Attachment(mode, ring_slots));
  attachment->spec_ = std::move(spec);
  if (attachment->spec_.layer_window > 0 && mode != SinkMode::kInPlace) {
    return absl::FailedPreconditionError(
        "layer_window needs an agent with transfer.sink_mode in_place: one that is `staged` copies to memory that "
        "exists");
  }
  for (size_t i = 0; i < attachment->spec_.handles.size(); ++i) {
    absl::StatusOr<std::unique_ptr<Buffer>> buffer =
        backend.memory().Open(attachment->spec_.handles[i], Access::kReadWrite);
    if (!buffer.ok()) {
      return absl::Status(
          buffer.status().code(),
          absl::StrCat("memory handle ", i, " of engine ", attachment->spec_.engine, ": ", buffer.status().message()));
    }
    attachment->memory_.push_back(*std::move(buffer));
  }
  if (absl::Status status = attachment->Fit(backend, std::move(plan)); !status.ok()) return status;
  return attachment;
}

absl::Status Attachment::Fit(Backend& backend, std::shared_ptr<const Plan> plan) {
  loader_.reset();
  Unfit();
  absl::StatusOr<ScatterTable> table = MakeTable(*plan);
  if (!table.ok()) return table.status();
  bytes_per_version_ = table->bytes;
  std::vector<std::byte*> bases = Bases();
  absl::Status status;
  if (spec_.layer_window > 0) {
    status = FitWindow(backend, plan);
  } else if (mode_ == SinkMode::kInPlace && !plan->buckets().empty()) {
    status = FitInPlace(backend, *plan, &*table, &bases);
  }
  if (!status.ok()) return status;
  layers_ = spec_.layer_events ? std::make_unique<const LayerMap>(*plan) : nullptr;
  absl::StatusOr<std::unique_ptr<Loader>> loader = backend.NewLoader(std::move(plan), *std::move(table), bases);
  if (!loader.ok()) return loader.status();
  loader_ = *std::move(loader);
  return absl::OkStatus();
}

absl::Status Attachment::FitInPlace(Backend& backend, const Plan& plan, ScatterTable* table,
                                    std::vector<std::byte*>* bases) {
  direct_ = FindDirectBuckets(plan, *table, *bases, static_cast<size_t>(ring_slots_));
  const bool whole = TakesEveryByte(plan, *table);
  *table = WithoutDirectBuckets(*table, direct_);
  if (!whole) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<Buffer>> digests =
      backend.memory().Allocate(BytesOfDigestTables(plan), "the digest tables of what is served");
  if (!digests.ok()) return digests.status();
  digests_ = *std::move(digests);
  *table = KeepDigestTables(plan, *table, static_cast<int32_t>(bases->size()));
  bases->push_back(digests_->data());
  return absl::OkStatus();
}

absl::Status Attachment::FitWindow(Backend& backend, const std::shared_ptr<const Plan>& plan) {
  auto window = LayerWindow::Create(backend, plan,
                                    {.window = spec_.layer_window,
                                     .allow_partial = spec_.allow_partial,
                                     .stays = {.handles = spec_.handles, .destinations = spec_.destinations}});
  if (!window.ok()) return window.status();
  window_ = *std::move(window);
  return absl::OkStatus();
}

absl::StatusOr<ScatterTable> Attachment::MakeTable(const Plan& plan) const {
  std::vector<int64_t> bytes;
  for (const auto& buffer : memory_) bytes.push_back(buffer->bytes());
  std::optional<OutputScope> scope;
  if (spec_.layer_window > 0) scope = LayerWindow::StaysOf(plan);
  auto table =
      BuildScatterTable(plan, spec_.destinations, bytes, spec_.allow_partial, scope.has_value() ? &*scope : nullptr);
  if (table.ok()) return table;
  return absl::Status(table.status().code(), absl::StrCat("attach: ", table.status().message()));
}

std::vector<std::byte*> Attachment::Bases() const {
  std::vector<std::byte*> bases;
  for (const auto& buffer : memory_) bases.push_back(buffer->data());
  return bases;
}

absl::Status Attachment::CheckLent() const {
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (CutMarkAt(memory_[i]->data()).cut()) {
      return MemoryCutError(absl::StrCat("memory of engine ", spec_.engine, " (handle ", i, ")"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Hash128> Attachment::Verify(Backend& backend, std::shared_ptr<const Plan> plan, const std::byte* image,
                                           std::function<bool()> interrupted) const {
  const bool staged = mode_ == SinkMode::kStaged;
  if (spec_.layer_window > 0) {
    return absl::FailedPreconditionError(
        "its engine takes layers through a window, and the memory of each went back to it when the layer was complete: "
        "they were checked before they were handed over, and are nowhere to be looked at again");
  }
  if (!staged && digests_ == nullptr) {
    return absl::FailedPreconditionError(
        "not checked: sink_mode in_place keeps nothing to compare slices of tensors with (a tensor-parallel rank's); "
        "they were checked as they landed, and sink_mode staged can be read again");
  }
  absl::StatusOr<ScatterTable> table = MakeTable(*plan);
  if (!table.ok()) return table.status();
  Underlay under = staged ? UnderlayOfImage(*plan, image) : UnderlayOfDigestTables(*plan, digests_->data());
  return DeepCheck(backend, {plan, *std::move(table), Bases(), std::move(under), std::move(interrupted)});
}

}  // namespace wsync
