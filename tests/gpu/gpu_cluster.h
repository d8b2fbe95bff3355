// Real agents on real GPUs, and what a trainer and an engine would be: weights on the trainer agent's GPU, destinations
// on the rollout agents', lent by CUDA IPC, and what the host's encoder says that must arrive.
#ifndef WSYNC_TESTS_GPU_GPU_CLUSTER_H_
#define WSYNC_TESTS_GPU_GPU_CLUSTER_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/cli/local_cluster.h"
#include "client/local/engine_client.h"
#include "client/local/trainer_client.h"
#include "server/backend/cuda/backend.h"
#include "server/backend/cuda/probe.h"
#include "server/core/sync.h"
#include "tests/backend/contract/encoded_model.h"

namespace wsync::gpu {

using contract::Bytes;

inline constexpr absl::Duration kPatience = absl::Seconds(60);

// An engine on its own thread: attaches, takes every version at once, and attaches again when the agent comes back.
class GpuEngine {
 public:
  GpuEngine(int device, std::string socket);
  ~GpuEngine();

  bool WaitForVersion(uint64_t version, absl::Duration timeout = kPatience);
  uint64_t version() const;
  bool WaitForUpdates(int count, absl::Duration timeout = kPatience);  // versions taken in all
  // When it was first told, after `since`, that a version is applied, called off or torn: from then on it depends on
  // nobody. None: not within the timeout.
  std::optional<absl::Time> AwaitLetGo(absl::Time since, absl::Duration timeout);
  // What its memory holds now, output by output without gaps.
  Bytes Memory();
  std::string last_error() const;
  // What a stray write does to its memory.
  void Flip(int64_t byte);

 private:
  void Run();
  absl::Status FollowOnce();
  absl::Status Follow(EngineClient& engine);

  const int device_;
  const std::string socket_;
  std::unique_ptr<cuda::CudaBackend> backend_;
  mutable Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  EngineClient* attached_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;
  int updates_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<absl::Time> let_go_ ABSL_GUARDED_BY(mu_);
  std::string last_error_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Buffer> memory_;  // the thread's, but while a version is served
  int64_t bytes_ = 0;
  std::thread thread_;
};

// Another user of a GPU, who takes all but `left` bytes of it, and at once whatever somebody gives back, for as long as
// it lives.
class MemoryHog {
 public:
  MemoryHog(int device, int64_t left);
  ~MemoryHog();

 private:
  void Take();

  const int device_;
  const int64_t left_;
  std::unique_ptr<cuda::CudaBackend> backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;  // the thread's, once that runs; goes before the backend
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

struct GpuClusterOptions {
  int layers = 4;
  int64_t bucket_bytes = int64_t{1} << 20;
  std::string binary_suffix;  // of the agents: "-faults" are those with failpoints
};

class GpuCluster : public testing::Test {
 protected:
  explicit GpuCluster(GpuClusterOptions options = {}) : options_(std::move(options)) {}
  // Skips the test where two GPUs are missing.
  void SetUp() override;
  void TearDown() override;
  // The trainer agent on GPU 0, one rollout agent on GPU 1 with an engine beside it.
  void Start(cli::ConfigFlags trainer_flags = {}, cli::ConfigFlags rollout_flags = {});
  absl::StatusOr<v1::RegisterReply> TryRegister(bool replace = false);
  void Register();  // and waits until the rollout is ready
  // Changes some thousand weights, on the host and on the GPU.
  void Train(uint32_t seed);
  void Poke(int64_t tensor, int64_t element, uint16_t bits);
  absl::StatusOr<v1::VersionReport> Publish(uint64_t version) { return trainer_->Publish(version, PublishObserver()); }
  void WaitUntilReady();
  v1::JobStatus WaitFor(const std::function<bool(const v1::JobStatus&)>& done, const std::string& what);
  // What an engine must hold now, by the host's encoder.
  Bytes Expected() const;
  std::string LogOf(const std::string& agent) const;

  const GpuClusterOptions options_;
  std::unique_ptr<contract::EncodedModel> model_;
  std::unique_ptr<cli::LocalCluster> cluster_;
  std::unique_ptr<GpuEngine> engine_;
  std::unique_ptr<cuda::CudaBackend> backend_;  // GPU 0
  std::unique_ptr<cuda::Probe> probe_;
  std::unique_ptr<Buffer> weights_;
  MemoryHandle handle_;
  std::unique_ptr<TrainerClient> trainer_;
};

}  // namespace wsync::gpu

#endif  // WSYNC_TESTS_GPU_GPU_CLUSTER_H_
