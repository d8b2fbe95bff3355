// A stand-in for an inference server, on a thread of this process: attaches to a rollout agent, takes every version,
// and attaches again when the agent comes back.
#ifndef WSYNC_CLIENT_CLI_ENGINE_THREAD_H_
#define WSYNC_CLIENT_CLI_ENGINE_THREAD_H_

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/engine_memory.h"
#include "server/core/sync.h"

namespace wsync::cli {

class EngineThread {
 public:
  EngineThread(std::string name, std::string socket);
  ~EngineThread();  // Stop

  // Detaches and joins. The memory stays readable.
  void Stop();
  // The version in memory; 0: none.
  uint64_t version() const;
  // True once that version is in memory; false at the timeout.
  bool WaitForVersion(uint64_t version, absl::Duration timeout);
  std::vector<double> pauses_ms() const;  // one per version taken
  std::string last_error() const;

 private:
  void Run();
  absl::Status FollowOnce();
  absl::Status Follow(EngineClient& engine);

  const std::string name_;
  const std::string socket_;
  mutable Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  EngineClient* attached_ ABSL_GUARDED_BY(mu_) = nullptr;  // to cancel on Stop
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<double> pauses_ms_ ABSL_GUARDED_BY(mu_);
  std::string last_error_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<EngineMemory> memory_;  // of thread_
  std::thread thread_;
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_ENGINE_THREAD_H_
