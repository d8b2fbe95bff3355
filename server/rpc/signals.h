// What signals mean to a daemon. SIGTERM or SIGINT: the end, once, gracefully; twice, at once. SIGHUP: told on, and no
// end, though it is one by default: logrotate(8) sends it, and a terminal that closes. SIGPIPE, SIGUSR1, SIGUSR2 and
// SIGXFSZ are ignored: a peer that goes away and a full log file are error codes, and nothing here listens for the
// other two. SIGQUIT and SIGABRT end it with a core, for who wants to see where it hangs.
#ifndef WSYNC_SERVER_RPC_SIGNALS_H_
#define WSYNC_SERVER_RPC_SIGNALS_H_

#include <memory>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/sync.h"

namespace wsync {

// Owns a thread that takes the three signals. REQUIRES: made before any other thread, which all inherit the blocked
// signals, and once per process. Thread-safe.
class SignalWatcher {
 public:
  static absl::StatusOr<std::unique_ptr<SignalWatcher>> Create();
  ~SignalWatcher();

  // Blocks until a signal and returns its number; nullopt at the deadline. SIGHUP is told once, however many came; of
  // the other two the first, from then on always. The second one ends the process with 128 + its number, whatever it is
  // doing.
  std::optional<int> WaitUntil(absl::Time deadline);

 private:
  SignalWatcher(int signal_fd, int stop_fd);
  void Run();

  const int signal_fd_;
  const int stop_fd_;
  Mutex mu_;
  CondVar changed_;
  int first_ ABSL_GUARDED_BY(mu_) = 0;  // of those that end
  bool hung_up_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_SIGNALS_H_
