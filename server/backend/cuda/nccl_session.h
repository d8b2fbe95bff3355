// One rank's end of an NCCL communicator: open it, broadcast through it, and end it whatever state it is in.
//
// Three kinds of threads meet here, and NCCL wants no call into a communicator while another aborts it:
//
//   the caller's     Connect and Broadcast, one thread; Cancel and moved_bytes, any
//   "wsync-nccl"     watches: broadcasts that are done, NCCL's asynchronous errors, a failure that ends the session
//   "wsync-nccl-end" is started by the watcher to end the communicator, which may block: past a hard limit it is left
//                    behind with communicator and stream, the device is marked broken, and the agent has to restart
//
// Every call into NCCL is made under call_mu_, and the communicator is taken away under it before it is ended: nobody
// can be inside, and nobody comes in later. A session fails first and is aborted second, and a broadcast counts only
// when its event was seen while the session had not failed: an aborted one can end without an error. Broadcasts that
// are done are forgotten, so a session may serve any number.
//
// A communicator is ended by ncclCommAbort, also an idle one. ncclCommFinalize and ncclCommDestroy meet the other
// ranks, so they block or fail when one of these was killed or has left first. What abort would cut off, bytes of ours
// still on their way through NCCL's proxy, nobody waits for: a session is closed between rounds, or because its round
// failed.
#ifndef WSYNC_SERVER_BACKEND_CUDA_NCCL_SESSION_H_
#define WSYNC_SERVER_BACKEND_CUDA_NCCL_SESSION_H_

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/cuda/completion.h"
#include "server/backend/cuda/nccl_library.h"
#include "server/core/sync.h"

namespace wsync::cuda {

struct NcclSessionSpec {
  ncclUniqueId id = {};
  int32_t rank = 0;
  int32_t world = 2;             // at least 2
  int max_ctas = 0;              // thread blocks of a broadcast at most; 0: NCCL decides
  bool wide = false;             // as many as max_ctas allows
  std::byte* warm_up = nullptr;  // device memory that the first broadcast may overwrite, the same size on every rank
  int64_t warm_up_bytes = 0;
  absl::Duration end_limit = absl::Seconds(5);  // for ending the communicator
};

class NcclSession : public std::enable_shared_from_this<NcclSession> {
 public:
  static absl::StatusOr<std::shared_ptr<NcclSession>> Create(std::shared_ptr<const Device> device,
                                                             const NcclLibrary* nccl, std::shared_ptr<EventPool> events,
                                                             const NcclSessionSpec& spec);

  // As Transport's. Connections are NCCL's to make, and it makes them late: Connect broadcasts once, so that the first
  // real broadcast does not pay for it, and no missing peer is found there.
  absl::Status Connect(absl::Time deadline);
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, const CompletionPtr& after);
  void Cancel(const absl::Status& why) { Fail(why); }
  // Of the broadcasts that somebody saw end, at the latest the watcher. Calls neither NCCL nor the device.
  int64_t moved_bytes() const;
  // Ends the communicator. What is pending fails. Returns within end_limit, and a little. Call it once,
  // last.
  void Close();

 private:
  NcclSession(std::shared_ptr<const Device> device, const NcclLibrary* nccl, std::shared_ptr<EventPool> events,
              std::unique_ptr<Stream> stream, const NcclSessionSpec& spec)
      : device_(std::move(device)), nccl_(nccl), events_(std::move(events)), spec_(spec), stream_(std::move(stream)) {}

  absl::Status BeginConnect();
  absl::Status Init(absl::Time deadline);
  absl::Status WarmUp(absl::Time deadline);
  absl::StatusOr<CudaCompletion::Ptr> Start(std::byte* data, int64_t bytes, const CompletionPtr& after);
  absl::Status Enqueue(std::byte* data, int64_t bytes);
  // Until NCCL has done what it was asked for (a call may only begin it), the session fails, or `deadline`.
  absl::Status AwaitReady(const char* what, absl::Time deadline);
  absl::StatusOr<bool> IsReady(const char* what);

  void Fail(const absl::Status& why);  // OK: nothing; the first failure counts
  absl::Status failure() const;
  // Of a broadcast whose end makes the session's bytes `end_bytes`.
  CudaCompletion::Verdict Verdict(int64_t end_bytes);
  CudaCompletion::Doom Doom();
  std::optional<absl::Status> VerdictOf(bool come, int64_t end_bytes);
  absl::Status Reap();  // forgets what is done; the first error

  void Watch();  // the watcher's thread
  void End();
  void EndCommunicator();
  std::string Who() const;

  const std::shared_ptr<const Device> device_;
  const NcclLibrary* const nccl_;
  const std::shared_ptr<EventPool> events_;
  const NcclSessionSpec spec_;
  std::unique_ptr<Stream> stream_;

  Mutex call_mu_;  // held for each call into NCCL; before mu_, never after it
  ncclComm_t comm_ ABSL_GUARDED_BY(call_mu_) = nullptr;

  mutable Mutex mu_;
  CondVar changed_;
  bool connecting_ ABSL_GUARDED_BY(mu_) = false;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;    // there is no communicator any more, and nothing of it runs
  bool settled_ ABSL_GUARDED_BY(mu_) = false;  // ended, or given up
  absl::Status why_ ABSL_GUARDED_BY(mu_);      // the session failed
  std::deque<CudaCompletion::Ptr> pending_ ABSL_GUARDED_BY(mu_);
  int64_t started_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t moved_bytes_ ABSL_GUARDED_BY(mu_) = 0;

  std::thread watcher_;  // from Connect to Close
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_NCCL_SESSION_H_
