// The hand of a test in fake_nccl.cc: a libnccl whose ranks never meet, and which does what the test says.
#ifndef WSYNC_TESTS_BACKEND_FAKE_NCCL_H_
#define WSYNC_TESTS_BACKEND_FAKE_NCCL_H_

#include <atomic>

namespace wsync::cuda {

struct FakeNccl {
  // What it does.
  std::atomic<bool> init_hangs = false;        // stays in progress
  std::atomic<bool> launch_hangs = false;      // a broadcast stays in progress, and never reaches the stream
  std::atomic<bool> broadcast_stalls = false;  // on the stream, until the communicator is aborted
  std::atomic<bool> abort_hangs = false;       // for as long as this is true
  std::atomic<int> async_error = 0;            // an ncclResult_t
  // What was asked of it.
  std::atomic<int> min_ctas = 0, max_ctas = 0;  // of the last communicator; NCCL_CONFIG_UNDEF_INT: its own choice
  std::atomic<int> broadcasts = 0;
  std::atomic<int> aborts = 0;
  std::atomic<int> calls_after_end = 0;  // into a communicator that was, or was being, aborted
};

}  // namespace wsync::cuda

// The one that the library obeys.
extern "C" wsync::cuda::FakeNccl* wsync_fake_nccl();

#endif  // WSYNC_TESTS_BACKEND_FAKE_NCCL_H_
