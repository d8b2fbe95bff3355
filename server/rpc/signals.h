// The end of a daemon as the outside asks for it: SIGTERM or SIGINT once, gracefully; twice, at once.
#ifndef WSYNC_SERVER_RPC_SIGNALS_H_
#define WSYNC_SERVER_RPC_SIGNALS_H_

#include <memory>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/sync.h"

namespace wsync {

// Owns a thread that takes the two signals. REQUIRES: made before any other thread, which all inherit the blocked
// signals, and once per process. Thread-safe.
class SignalWatcher {
 public:
  // Also ignores SIGPIPE: a peer that goes away is an error code, not the end of the process.
  static absl::StatusOr<std::unique_ptr<SignalWatcher>> Create();
  ~SignalWatcher();

  // Blocks until the first signal and returns its number; nullopt at the deadline. The second one ends the process with
  // 128 + its number, whatever it is doing.
  std::optional<int> WaitUntil(absl::Time deadline);

 private:
  SignalWatcher(int signal_fd, int stop_fd);
  void Run();

  const int signal_fd_;
  const int stop_fd_;
  Mutex mu_;
  CondVar changed_;
  int first_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_SIGNALS_H_
