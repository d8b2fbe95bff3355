// What a quantizer or a loader started since the last Finish, and how that ended. One thread's.
#ifndef WSYNC_SERVER_BACKEND_CUDA_WORK_LOG_H_
#define WSYNC_SERVER_BACKEND_CUDA_WORK_LOG_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/cuda/completion.h"

namespace wsync::cuda {

class WorkLog {
 public:
  // Takes note of work, or of why there is none; gives the completion to hand out.
  CompletionPtr Add(absl::StatusOr<CudaCompletion::Ptr> work);
  bool empty() const { return all_.empty(); }
  // The first error of all that was added, in that order. `done` false: some is not done at the deadline, and the error
  // says so. Forgets nothing.
  absl::Status Wait(absl::Time deadline, const char* what, bool* done) const;
  void Clear() { all_.clear(); }

 private:
  std::vector<CudaCompletion::Ptr> all_;
};

// For destructors, which must not hang: waits up to 10 s until `stream` has nothing left to do. False: it never may,
// what it uses must be left alone, and the device is marked broken.
bool DrainOrBreak(EventPool& events, const Stream& stream, const char* what);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_WORK_LOG_H_
