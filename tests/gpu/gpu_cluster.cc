#include "tests/gpu/gpu_cluster.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::gpu {
namespace {

constexpr int64_t kOutputAlign = 256;
constexpr absl::Duration kRetry = absl::Milliseconds(100);

// Several buckets, odd shapes, tensors larger than a bucket, everything that is not quantized.
std::vector<Tensor> Model(int layers) {
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", Dtype::kBF16, {1500, 384}}};
  for (int layer = 0; layer < layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors.push_back({prefix + "self_attn.q_proj.weight", Dtype::kBF16, {1024, 384}});
    tensors.push_back({prefix + "self_attn.q_proj.bias", Dtype::kBF16, {1024}});
    tensors.push_back({prefix + "mlp.up_proj.weight", Dtype::kBF16, {4100, 384}});
    tensors.push_back({prefix + "mlp.down_proj.weight", Dtype::kBF16, {384, 4100}});
    tensors.push_back({prefix + "input_layernorm.weight", Dtype::kBF16, {384}});
  }
  return tensors;
}

std::vector<int64_t> OutputOffsets(const std::vector<Tensor>& outputs, int64_t* bytes) {
  std::vector<int64_t> offsets;
  *bytes = 0;
  for (const Tensor& output : outputs) {
    offsets.push_back(*bytes);
    *bytes = RoundUp(*bytes + BytesOf(output), kOutputAlign);
  }
  return offsets;
}

}  // namespace

// ---- the engine

GpuEngine::GpuEngine(int device, std::string socket) : device_(device), socket_(std::move(socket)) {
  auto backend = cuda::CudaBackend::Create({.device = device_});
  EXPECT_TRUE(backend.ok()) << backend.status();
  backend_ = *std::move(backend);
  thread_ = std::thread([this] { Run(); });
}

GpuEngine::~GpuEngine() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    if (attached_ != nullptr) attached_->Cancel();
    changed_.SignalAll();
  }
  thread_.join();
}

bool GpuEngine::WaitForVersion(uint64_t version, absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  MutexLock lock(&mu_);
  while (version_ != version) {
    if (!changed_.WaitUntil(&mu_, deadline)) return version_ == version;
  }
  return true;
}

uint64_t GpuEngine::version() const {
  MutexLock lock(&mu_);
  return version_;
}

bool GpuEngine::WaitForUpdates(int count, absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  MutexLock lock(&mu_);
  while (updates_ < count) {
    if (!changed_.WaitUntil(&mu_, deadline)) return updates_ >= count;
  }
  return true;
}

std::optional<absl::Time> GpuEngine::AwaitLetGo(absl::Time since, absl::Duration timeout) {
  const absl::Time deadline = since + timeout;
  MutexLock lock(&mu_);
  while (true) {
    const auto found = std::lower_bound(let_go_.begin(), let_go_.end(), since);
    if (found != let_go_.end()) return *found;
    if (!changed_.WaitUntil(&mu_, deadline)) return std::nullopt;
  }
}

std::string GpuEngine::last_error() const {
  MutexLock lock(&mu_);
  return last_error_;
}

Bytes GpuEngine::Memory() {
  Bytes bytes(static_cast<size_t>(bytes_));
  auto probe = cuda::Probe::Open(device_);
  EXPECT_TRUE(probe.ok()) << probe.status();
  const absl::Status status = (*probe)->Download(bytes.data(), memory_->data(), bytes_);
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

void GpuEngine::Flip(int64_t byte) {
  auto probe = cuda::Probe::Open(device_);
  ASSERT_TRUE(probe.ok()) << probe.status();
  std::byte value{};
  ASSERT_TRUE((*probe)->Download(&value, memory_->data() + byte, 1).ok());
  value ^= std::byte{4};
  ASSERT_TRUE((*probe)->Upload(memory_->data() + byte, &value, 1).ok());
}

void GpuEngine::Run() {
  while (true) {
    const absl::Status ended = FollowOnce();
    MutexLock lock(&mu_);
    attached_ = nullptr;
    if (stopping_) return;
    last_error_ = std::string(ended.message());
    const absl::Time retry = MonotonicNow() + kRetry;
    while (!stopping_ && changed_.WaitUntil(&mu_, retry)) {
    }
    if (stopping_) return;
  }
}

absl::Status GpuEngine::FollowOnce() {
  auto engine = EngineClient::Connect(socket_, absl::Milliseconds(500));
  if (!engine.ok()) return engine.status();
  const auto outputs = (*engine)->GetOutputs(absl::Seconds(2));
  if (!outputs.ok()) return outputs.status();
  std::vector<Tensor> tensors;
  for (const EngineOutput& output : outputs->outputs) tensors.push_back(output.tensor);
  const std::vector<int64_t> offsets = OutputOffsets(tensors, &bytes_);
  MemoryHandle handle;
  auto memory = backend_->memory().AllocateShared(bytes_, "the engine", &handle);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  std::vector<Destination> destinations;
  for (size_t i = 0; i < tensors.size(); ++i) destinations.push_back(WholeTensor(tensors[i], 0, offsets[i]));
  const auto attached = (*engine)->Attach("gpu test", {handle}, destinations, false, absl::Seconds(10));
  if (!attached.ok()) return attached.status();
  {
    MutexLock lock(&mu_);
    if (stopping_) return absl::CancelledError("stopping");
    attached_ = engine->get();
    version_ = 0;
  }
  const absl::Status ended = Follow(**engine);
  MutexLock lock(&mu_);
  attached_ = nullptr;
  return ended;
}

absl::Status GpuEngine::Follow(EngineClient& engine) {
  while (true) {
    const auto event = engine.Next();
    if (!event.ok()) return event.status();
    absl::Status answered;
    if (event->has_prepare() && event->prepare().in_place()) answered = engine.Paused(event->prepare().version());
    if (event->has_apply()) answered = engine.Paused(event->apply().version());
    if (!answered.ok()) return answered;
    MutexLock lock(&mu_);
    if (event->has_applied() || event->has_cancelled() || event->has_torn()) {
      let_go_.push_back(MonotonicNow());
      changed_.SignalAll();
    }
    if (!event->has_applied()) continue;
    version_ = event->applied().version();
    ++updates_;
  }
}

// ---- memory that somebody else has

MemoryHog::MemoryHog(int device, int64_t left) : device_(device), left_(left) {
  auto backend = cuda::CudaBackend::Create({.device = device});
  EXPECT_TRUE(backend.ok()) << backend.status();
  backend_ = *std::move(backend);
  Take();
  thread_ = std::thread([this] {
    while (!stopping_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Take();
    }
  });
}

MemoryHog::~MemoryHog() {
  stopping_ = true;
  thread_.join();
}

void MemoryHog::Take() {
  for (int64_t chunk = int64_t{8} << 30; chunk >= (int64_t{1} << 20);) {
    const auto facts = cuda::FactsOf(device_);
    if (!facts.ok() || facts->free_bytes <= left_) return;
    auto buffer = backend_->memory().Allocate(std::min(facts->free_bytes - left_, chunk), "the hog");
    if (buffer.ok()) {
      buffers_.push_back(*std::move(buffer));
    } else {
      chunk /= 2;  // what is free is in pieces
    }
  }
}

// ---- the cluster

void GpuCluster::SetUp() {
  if (cuda::DeviceCount() < 2) GTEST_SKIP() << "needs two GPUs: this process sees " << cuda::DeviceCount();
  model_ = std::make_unique<contract::EncodedModel>(Model(options_.layers), RecipeRules(), options_.bucket_bytes);
  auto backend = cuda::CudaBackend::Create({.device = 0});
  ASSERT_TRUE(backend.ok()) << backend.status();
  backend_ = *std::move(backend);
  auto probe = cuda::Probe::Open(0);
  ASSERT_TRUE(probe.ok()) << probe.status();
  probe_ = *std::move(probe);
  auto weights = backend_->memory().AllocateShared(static_cast<int64_t>(model_->weights().size()), "weights", &handle_);
  ASSERT_TRUE(weights.ok()) << weights.status();
  weights_ = *std::move(weights);
  Train(1);
}

void GpuCluster::TearDown() {
  if (HasFailure() && cluster_ != nullptr) {
    for (const char* agent : {"trainer", "rollout-0"}) std::printf("---- %s\n%s\n", agent, LogOf(agent).c_str());
    if (engine_ != nullptr) std::printf("---- engine: %s\n", engine_->last_error().c_str());
  }
  trainer_.reset();
  engine_.reset();
  cluster_.reset();
}

void GpuCluster::Start(cli::ConfigFlags trainer_flags, cli::ConfigFlags rollout_flags) {
  cli::LocalCluster::Options options;
  options.rollouts = 1;
  options.devices = {0, 1};
  options.binary_suffix = options_.binary_suffix;
  options.trainer_flags = std::move(trainer_flags);
  options.trainer_flags.emplace_back("transfer.bucket_bytes", absl::StrCat(options_.bucket_bytes));
  options.rollout_flags = std::move(rollout_flags);
  auto cluster = cli::LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  cluster_ = *std::move(cluster);
  engine_ = std::make_unique<GpuEngine>(1, cluster_->rollout_socket(0));
  auto trainer = TrainerClient::Connect(cluster_->trainer_socket(), absl::Seconds(20));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  trainer_ = *std::move(trainer);
}

absl::StatusOr<v1::RegisterReply> GpuCluster::TryRegister(bool replace) {
  std::vector<SourceTensor> sources;
  const std::vector<Tensor>& tensors = model_->plan()->catalog().tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    sources.push_back({tensors[i], 0, static_cast<uint64_t>(model_->offset(static_cast<int64_t>(i)))});
  }
  return trainer_->Register({handle_}, sources, {}, replace);
}

void GpuCluster::Register() {
  const auto reply = TryRegister();
  ASSERT_TRUE(reply.ok()) << reply.status();
  WaitUntilReady();
}

void GpuCluster::WaitUntilReady() {
  WaitFor(
      [](const v1::JobStatus& status) {
        return std::any_of(status.members().begin(), status.members().end(), [](const v1::MemberStatus& member) {
          return member.role() == "rollout" && member.state() == "ready";
        });
      },
      "a rollout that is ready");
}

v1::JobStatus GpuCluster::WaitFor(const std::function<bool(const v1::JobStatus&)>& done, const std::string& what) {
  const auto status = cluster_->WaitFor(done, kPatience, what);
  EXPECT_TRUE(status.ok()) << status.status();
  return status.ok() ? *status : v1::JobStatus();
}

void GpuCluster::Train(uint32_t seed) {
  std::mt19937 random(seed);
  const std::vector<Tensor>& tensors = model_->plan()->catalog().tensors();
  for (int i = 0; i < 5000; ++i) {
    const auto tensor = static_cast<int64_t>(random() % tensors.size());
    const int64_t elements = BytesOf(tensors[tensor]) / 2;
    const auto bits = static_cast<uint16_t>(0x3C00 + random() % 0x200);  // about 0.01 to 0.03
    model_->Poke(tensor, static_cast<int64_t>(random() % elements), static_cast<uint16_t>(bits | (random() % 2) << 15));
  }
  const absl::Status status =
      probe_->Upload(weights_->data(), model_->weights().data(), static_cast<int64_t>(model_->weights().size()));
  ASSERT_TRUE(status.ok()) << status;
}

void GpuCluster::Poke(int64_t tensor, int64_t element, uint16_t bits) {
  const absl::Status status = probe_->Upload(weights_->data() + model_->offset(tensor) + 2 * element, &bits, 2);
  ASSERT_TRUE(status.ok()) << status;
}

Bytes GpuCluster::Expected() const {
  std::vector<uint64_t> digests;
  const Bytes image = model_->EncodeImage(&digests);
  const Plan& plan = *model_->plan();
  std::vector<Tensor> outputs;
  for (const Output& output : plan.outputs()) outputs.push_back({output.name, output.dtype, output.shape});
  int64_t bytes = 0;
  const std::vector<int64_t> offsets = OutputOffsets(outputs, &bytes);
  std::vector<int64_t> data_at(plan.catalog().tensors().size(), -1), scales_at(data_at);
  for (size_t i = 0; i < outputs.size(); ++i) {
    (plan.outputs()[i].is_scale ? scales_at : data_at)[plan.outputs()[i].tensor] = offsets[i];
  }
  Bytes expected(static_cast<size_t>(bytes));
  for (const Bucket& bucket : plan.buckets()) {
    for (const Piece& piece : plan.PiecesOf(bucket)) {
      const std::byte* const wire = image.data() + bucket.image_offset;
      const int64_t row_bytes = piece.data_bytes / piece.rows;
      std::memcpy(expected.data() + data_at[piece.tensor] + piece.row_begin * row_bytes, wire + piece.data_offset,
                  static_cast<size_t>(piece.data_bytes));
      if (piece.scale_bytes == 0) continue;
      std::memcpy(expected.data() + scales_at[piece.tensor] + 4 * plan.FirstScaleOf(piece), wire + piece.scale_offset,
                  static_cast<size_t>(piece.scale_bytes));
    }
  }
  return expected;
}

std::string GpuCluster::LogOf(const std::string& agent) const {
  std::ifstream in(absl::StrCat(cluster_->directory(), "/", agent, ".log"));
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace wsync::gpu
