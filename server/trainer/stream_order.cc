#include "server/trainer/stream_order.h"

#include "absl/strings/str_cat.h"

namespace wsync {

absl::Status StreamOrder::Open(ClientEvents* events, Memory& memory) {
  auto opened = events->Open(memory, handle_);
  if (!opened.ok()) return opened.status();
  after_ = *std::move(opened);
  return absl::OkStatus();
}

absl::Status StreamOrder::AwaitStart(absl::Duration limit, const std::function<absl::Status()>& called_off) const {
  return AwaitRecorded(
      *after_, limit, called_off,
      absl::StrCat("the training process's stream did not get to the point of its publish within ",
                   absl::FormatDuration(limit),
                   ": publish when the work before it is nearly done, or raise coordinator.stage_timeout_ms"));
}

}  // namespace wsync
