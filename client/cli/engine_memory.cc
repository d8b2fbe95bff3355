#include "client/cli/engine_memory.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cli/terminal.h"
#include "server/core/clock.h"
#include "server/core/sync.h"

namespace wsync::cli {
namespace {

constexpr int64_t kTensorAlign = 128;

// Cancels the engine's stream at a deadline, so that a blocking read ends.
class Watchdog {
 public:
  Watchdog(EngineClient& engine, absl::Time deadline)
      : thread_([this, &engine, deadline] {
          MutexLock lock(&mu_);
          while (!done_) {
            if (cv_.WaitUntil(&mu_, deadline)) continue;
            fired_ = true;
            engine.Cancel();
            return;
          }
        }) {}
  ~Watchdog() {
    Stop();
    thread_.join();
  }
  bool fired() {
    MutexLock lock(&mu_);
    return fired_;
  }

 private:
  void Stop() {
    MutexLock lock(&mu_);
    done_ = true;
    cv_.SignalAll();
  }
  Mutex mu_;
  CondVar cv_;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  bool fired_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EngineMemory>> EngineMemory::Create(const EngineOutputs& outputs) {
  std::unique_ptr<EngineMemory> memory(new EngineMemory());
  int64_t bytes = 0;
  for (const EngineOutput& output : outputs.outputs) {
    memory->tensors_.push_back(output.tensor);
    memory->offsets_.push_back(bytes);
    bytes = RoundUp(bytes + BytesOf(output.tensor), kTensorAlign);
  }
  auto segment = SharedSegment::Create(std::max<int64_t>(bytes, kTensorAlign), "engine memory");
  if (!segment.ok()) return segment.status();
  memory->segment_ = *std::move(segment);
  return memory;
}

std::vector<Destination> EngineMemory::Destinations() const {
  std::vector<Destination> destinations;
  destinations.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) destinations.push_back(WholeTensor(tensors_[i], 0, offsets_[i]));
  return destinations;
}

std::optional<uint64_t> AsksToPause(const v1::UpdateEvent& event) {
  if (event.has_apply()) return event.apply().version();
  if (event.has_prepare() && event.prepare().in_place()) return event.prepare().version();
  return std::nullopt;
}

absl::StatusOr<v1::AppliedUpdate> WaitForApplied(EngineClient& engine, uint64_t at_least, absl::Duration timeout) {
  Watchdog watchdog(engine, MonotonicNow() + timeout);
  while (true) {
    const auto event = engine.Next();
    if (!event.ok()) {
      if (!watchdog.fired()) return event.status();
      return absl::DeadlineExceededError(absl::StrCat("no version ", at_least > 1 ? absl::StrCat(at_least, " ") : "",
                                                      "was committed within ",
                                                      FormatMs(absl::ToDoubleMilliseconds(timeout)),
                                                      "; see 'wsync status' for why, or wait longer with --timeout"));
    }
    if (const auto version = AsksToPause(*event)) {
      if (absl::Status answered = engine.Paused(*version); !answered.ok()) return answered;
    }
    if (event->has_applied() && event->applied().version() >= at_least) return event->applied();
  }
}

}  // namespace wsync::cli
