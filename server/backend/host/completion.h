// The host backend's completion: a flag with a result, and callbacks that run when it is set.
//
// Thread-safe. Callbacks run on the thread that finishes (a pool thread, a transport's thread, or one of gRPC's with
// gRPC's locks held): they only queue work, never block and never call gRPC.
#ifndef WSYNC_SERVER_BACKEND_HOST_COMPLETION_H_
#define WSYNC_SERVER_BACKEND_HOST_COMPLETION_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "server/backend/completion.h"
#include "server/core/sync.h"

namespace wsync::host {

class HostCompletion final : public Completion {
 public:
  using Callback = std::function<void(const absl::Status&)>;

  static std::shared_ptr<HostCompletion> Finished(absl::Status result);

  absl::Status Wait(absl::Time deadline) override;
  std::optional<absl::Status> Poll() override;

  void Finish(absl::Status result);  // the first call counts, later ones change nothing
  void OnDone(Callback callback);    // runs at once if the result is there already

 private:
  Mutex mu_;
  CondVar done_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
  std::vector<Callback> callbacks_ ABSL_GUARDED_BY(mu_);
};

// Runs `callback` with `after`'s result once that is there; INVALID_ARGUMENT if `after` is of another backend.
void RunAfter(const CompletionPtr& after, HostCompletion::Callback callback);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_COMPLETION_H_
