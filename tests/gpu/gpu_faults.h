// One fault, done to one of two agents at one step of a version that goes from GPU to GPU.
#ifndef WSYNC_TESTS_GPU_GPU_FAULTS_H_
#define WSYNC_TESTS_GPU_GPU_FAULTS_H_

#include <cstdint>
#include <future>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/faults/fault_kind.h"
#include "tests/gpu/gpu_cluster.h"

namespace wsync::gpu {

enum class Side : uint8_t { kTrainer = 1, kRollout };
enum class Step : uint8_t { kInit = 1, kFirstBucket, kMiddleBucket, kLastBucket, kApply };
const char* NameOf(Side side);
const char* NameOf(Step step);
const char* NameOf(Fault fault);

// Agents with failpoints; weights of more buckets than NCCL has room for between two GPUs, so that whoever waits for
// a peer waits inside a kernel of NCCL's, or while it makes a communicator.
class GpuFaults : public GpuCluster {
 protected:
  explicit GpuFaults(int layers = 8);  // five buckets
  void SetUp() override;
  void TearDown() override;
  void StartInSync();  // both agents, registered and ready

  // The fault, in a group that is in sync and has published `*version`; afterwards it has published a later one, and
  // everything was compared byte by byte. Reports gtest failures.
  void RunCell(Side side, Fault fault, Step step, uint64_t* version);

  // OK once the rollout and its engine are ready and nothing is running.
  void WaitUntilSettled();
  void StartAgain(Side side);  // as a supervisor does

  pid_t PidOf(Side side) const;

 private:
  struct Answer {
    absl::StatusOr<v1::VersionReport> report;
    absl::Time at;
  };
  void Arm(Side side, Fault fault, Step step);
  void AwaitFired(Side side, Fault fault, Step step, uint64_t version);
  void Judge(Side side, Fault fault, const Answer& answer, absl::Duration unblocked) const;
  std::string LogPathOf(Side side) const;

  int fired_before_ = 0;
};

}  // namespace wsync::gpu

#endif  // WSYNC_TESTS_GPU_GPU_FAULTS_H_
