// The CUDA backend's completion: an event in a stream, and what became of the work before it.
//
// Work that is ordered after other work is enqueued at once, on the device, whatever will become of that other work:
// the device only knows "later". So a completion keeps the one it came after and takes its error, once both are there.
// Where writing after a failure would do harm, the work itself is guarded on the device (Loader::Apply).
//
// Thread-safe.
#ifndef WSYNC_SERVER_BACKEND_CUDA_COMPLETION_H_
#define WSYNC_SERVER_BACKEND_CUDA_COMPLETION_H_

#include <functional>
#include <memory>
#include <optional>

#include "server/backend/completion.h"
#include "server/backend/cuda/stream.h"
#include "server/core/sync.h"

namespace wsync::cuda {

class CudaCompletion final : public Completion {
 public:
  using Ptr = std::shared_ptr<CudaCompletion>;
  // What the work itself ended with, or nullopt while that is not known; asked again and again, by any thread, until it
  // answers. `come`: its event has come.
  using Verdict = std::function<std::optional<absl::Status>(bool come)>;
  // Not OK as soon as it is known that the work will fail, although it may still run.
  using Doom = std::function<absl::Status()>;

  static Ptr Failed(absl::Status status);
  // Of work that will fail, once `verdict`, which is never told of an event, says so.
  static Ptr Doomed(Verdict verdict, Doom doom);
  // Of an event that somebody else records.
  static Ptr OfEvent(EventPtr event, const Device* device);
  // Of everything that is in `stream` now, which was ordered after `after` (null: nothing, or all good already).
  static absl::StatusOr<Ptr> Record(EventPool& events, const Stream& stream, Ptr after, Verdict verdict = nullptr,
                                    Doom doom = nullptr);

  CudaCompletion() = default;  // use the factories
  ~CudaCompletion() override;

  absl::Status Wait(absl::Time deadline) override;
  std::optional<absl::Status> Poll() override;

 private:
  friend absl::StatusOr<Ptr> OrderAfter(const Stream& stream, const CompletionPtr& after);

  std::optional<absl::Status> result() const;
  Ptr after() const;
  std::optional<absl::Status> OwnResult();
  // REQUIRES: what it came after has a result, or there is none.
  std::optional<absl::Status> Resolve();
  absl::Status KnownError();

  EventPtr event_;                  // null: there is none to come
  const Device* device_ = nullptr;  // the pool's, which the event keeps alive
  Verdict verdict_;
  Doom doom_;
  mutable Mutex mu_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
  Ptr after_ ABSL_GUARDED_BY(mu_);  // null once there is a result
};

// Lets everything that `stream` gets from now on wait for `after`, on the device. Null: it need not wait. Else what the
// new work's completion comes after. `after`'s error where that is known already, and INVALID_ARGUMENT for a completion
// of another backend; nothing is ordered then.
absl::StatusOr<CudaCompletion::Ptr> OrderAfter(const Stream& stream, const CompletionPtr& after);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_COMPLETION_H_
