// An engine that lends memory for a window of layers, beside one that keeps everything, through real daemons: both get
// the same bytes, and the first one never has more than its window.
#include <algorithm>
#include <cstring>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cli/engine_memory.h"
#include "client/local/engine_client.h"
#include "client/local/shared_segment.h"
#include "server/core/layers.h"
#include "server/rpc/convert.h"
#include "tests/system/system_testing.h"

namespace wsync::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

// Lends shared memory per layer, copies what landed, and gives the memory up before it says so.
class WindowedEngine {
 public:
  static constexpr int64_t kAlign = 128;

  WindowedEngine(const std::string& socket, uint32_t window) : window_(window) {
    auto client = EngineClient::Connect(socket, kPatience);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    auto outputs = client_->GetOutputs(kPatience);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    EngineOutputs stay;
    for (const EngineOutput& output : outputs->outputs) {
      if (LayerOf(output.tensor.name).empty()) stay.outputs.push_back(output);
    }
    stays_ = *EngineMemory::Create(stay);
    for (size_t i = 0; i < stay.outputs.size(); ++i) stays_names_.push_back(stay.outputs[i].tensor);
  }
  absl::Status Attach() {
    return client_->Attach("windowed", {stays_->handle()}, stays_->Destinations(), false, kPatience, window_).status();
  }
  // Follows one version to its end, which it returns. `fail_at`: the layer for which it has no memory.
  v1::UpdateEvent Follow(const std::string& fail_at = "") {
    while (true) {
      auto event = client_->Next();
      EXPECT_TRUE(event.ok()) << event.status();
      if (!event.ok()) return {};
      if (event->has_prepare()) {
        lent_.clear();
        EXPECT_TRUE(client_->Paused(event->prepare().version()).ok());
      } else if (event->has_layer_wanted()) {
        Lend(event->layer_wanted(), fail_at);
      } else if (event->has_layer_ready()) {
        if (!event->layer_ready().layer().empty()) Take(event->layer_ready().layer());
        EXPECT_TRUE(client_->LayerTaken(event->layer_ready().ticket()).ok());
      } else {
        lent_.clear();
        return *event;
      }
    }
  }
  absl::StatusOr<v1::UpdateEvent> Next() { return client_->Next(); }
  absl::Status Paused(uint64_t version) { return client_->Paused(version); }

  // What has been taken and what stays, by output.
  std::map<std::string, Bytes> Weights() const {
    std::map<std::string, Bytes> all = taken_;
    for (size_t i = 0; i < stays_names_.size(); ++i) {
      all[stays_names_[i].name] = Bytes(stays_->Data(i), stays_->Data(i) + BytesOf(stays_names_[i]));
    }
    return all;
  }
  int64_t most_bytes() const { return most_bytes_; }
  size_t most_layers() const { return most_layers_; }
  int64_t largest() const { return largest_; }

 private:
  struct Lent {
    std::vector<Tensor> tensors;
    std::vector<int64_t> offsets;
    std::unique_ptr<SharedSegment> memory;
  };

  void Lend(const v1::LayerWanted& wanted, const std::string& fail_at) {
    if (wanted.layer() == fail_at) {
      EXPECT_TRUE(client_->LayerRefused(wanted.ticket(), "out of memory").ok());
      return;
    }
    Lent lent;
    std::vector<Destination> destinations;
    int64_t bytes = 0;
    for (const v1::OutputTensor& output : wanted.outputs()) {
      lent.tensors.push_back(*FromProto(output.tensor()));
      lent.offsets.push_back(bytes);
      destinations.push_back(WholeTensor(lent.tensors.back(), 0, bytes));
      bytes = RoundUp(bytes + BytesOf(lent.tensors.back()), kAlign);
    }
    lent.memory = *SharedSegment::Create(bytes, "a layer");
    EXPECT_TRUE(client_->ProvideLayer(wanted.ticket(), {lent.memory->handle()}, destinations).ok());
    lent_[wanted.layer()] = std::move(lent);
    int64_t now = 0;
    for (const auto& [layer, held] : lent_) now += held.memory->bytes();
    most_bytes_ = std::max(most_bytes_, now);
    most_layers_ = std::max(most_layers_, lent_.size());
    largest_ = std::max(largest_, bytes);
  }
  void Take(const std::string& layer) {
    const Lent lent = std::move(lent_.extract(layer).mapped());
    for (size_t i = 0; i < lent.tensors.size(); ++i) {
      const std::byte* begin = lent.memory->data() + lent.offsets[i];
      taken_[lent.tensors[i].name] = Bytes(begin, begin + BytesOf(lent.tensors[i]));
    }
  }

  const uint32_t window_;
  std::unique_ptr<EngineClient> client_;
  std::vector<Tensor> stays_names_;
  std::unique_ptr<EngineMemory> stays_;
  std::map<std::string, Lent> lent_;
  std::map<std::string, Bytes> taken_;
  int64_t most_bytes_ = 0, largest_ = 0;
  size_t most_layers_ = 0;
};

// An engine that keeps everything, for comparison.
class WholeEngine {
 public:
  explicit WholeEngine(const std::string& socket) {
    client_ = *EngineClient::Connect(socket, kPatience);
    outputs_ = *client_->GetOutputs(kPatience);
    memory_ = *EngineMemory::Create(outputs_);
    const auto attached = client_->Attach("whole", {memory_->handle()}, memory_->Destinations(), false, kPatience);
    EXPECT_TRUE(attached.ok()) << attached.status();
  }
  absl::StatusOr<v1::AppliedUpdate> Follow(uint64_t version) { return WaitForApplied(*client_, version, kPatience); }
  std::map<std::string, Bytes> Weights() const {
    std::map<std::string, Bytes> all;
    for (size_t i = 0; i < outputs_.outputs.size(); ++i) {
      const Tensor& tensor = outputs_.outputs[i].tensor;
      all[tensor.name] = Bytes(memory_->Data(i), memory_->Data(i) + BytesOf(tensor));
    }
    return all;
  }

 private:
  std::unique_ptr<EngineClient> client_;
  EngineOutputs outputs_;
  std::unique_ptr<EngineMemory> memory_;
};

class LayerWindows : public System, public ::testing::WithParamInterface<uint32_t> {
 protected:
  // As Start, without engines of its own.
  void StartAgents(int rollouts) {
    Start(rollouts, {}, {{"transfer.sink_mode", "in_place"}});
    for (auto& engine : engines_) engine->Stop();
    ASSERT_NO_FATAL_FAILURE(RegisterModel(0));
  }
};

TEST_P(LayerWindows, AnEngineGetsEveryByteThroughMemoryForItsWindow) {
  ASSERT_NO_FATAL_FAILURE(StartAgents(2));
  WindowedEngine windowed(cluster_->rollout_socket(0), GetParam());
  ASSERT_TRUE(windowed.Attach().ok());
  WholeEngine whole(cluster_->rollout_socket(1));
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 2; }, "both engines");
  for (uint64_t version = 1; version <= 3; ++version) {
    Perturb(*model_, 1000, version);
    absl::StatusOr<v1::VersionReport> report = absl::UnknownError("not yet");
    absl::StatusOr<v1::AppliedUpdate> beside = absl::UnknownError("not yet");
    std::thread publishing([&] { report = Publish(version); });
    std::thread following([&] { beside = whole.Follow(version); });
    const v1::UpdateEvent end = windowed.Follow();
    publishing.join();
    following.join();
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_TRUE(beside.ok()) << beside.status();
    ASSERT_TRUE(end.has_applied()) << end.ShortDebugString();
    EXPECT_EQ(end.applied().version(), version);
    EXPECT_EQ(FromProto(end.applied().content_digest()), FromProto(report->content_digest()));
    EXPECT_EQ(FromProto(beside->content_digest()), FromProto(report->content_digest()));
    EXPECT_TRUE(windowed.Weights() == whole.Weights()) << "version " << version;
  }
  EXPECT_GE(windowed.most_layers(), 1u);
  EXPECT_LE(windowed.most_layers(), GetParam());
  EXPECT_LE(windowed.most_bytes(), GetParam() * windowed.largest());
}

INSTANTIATE_TEST_SUITE_P(Windows, LayerWindows, ::testing::Values(1u, 2u));

using LayerWindow = LayerWindows;

TEST_F(LayerWindow, AnEngineWithoutMemoryForALayerIsTornAndNamedAndTheNextVersionMendsIt) {
  ASSERT_NO_FATAL_FAILURE(StartAgents(1));
  WindowedEngine engine(cluster_->rollout_socket(0), 1);
  ASSERT_TRUE(engine.Attach().ok());
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "the engine");
  absl::StatusOr<v1::VersionReport> report = absl::UnknownError("not yet");
  std::thread publishing([&] { report = Publish(1); });
  const v1::UpdateEvent torn = engine.Follow("model.layers.1");
  publishing.join();
  EXPECT_TRUE(torn.has_torn()) << torn.ShortDebugString();
  EXPECT_FALSE(report.ok());
  EXPECT_THAT(std::string(report.status().message()),
              AllOf(HasSubstr("windowed"), HasSubstr("model.layers.1"), HasSubstr("out of memory")));
  std::thread again([&] { report = Publish(2); });
  EXPECT_EQ(engine.Follow().applied().version(), 2u);
  again.join();
  EXPECT_TRUE(report.ok()) << report.status();
  const Run verify = Wsync(absl::StrCat("verify --deep -c ", cluster_->coordinator()));
  EXPECT_THAT(verify.output, HasSubstr("through a window")) << verify.output;
}

TEST_F(LayerWindow, AnEngineThatDiesWithALayerInItsHandsMakesRoomForItsSuccessor) {
  ASSERT_NO_FATAL_FAILURE(StartAgents(1));
  absl::StatusOr<v1::VersionReport> report = absl::UnknownError("not yet");
  std::thread publishing;
  {
    WindowedEngine engine(cluster_->rollout_socket(0), 1);
    ASSERT_TRUE(engine.Attach().ok());
    WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "the engine");
    publishing = std::thread([&] { report = Publish(1); });
    for (auto event = engine.Next(); event.ok() && !event->has_layer_wanted(); event = engine.Next()) {
      if (!event->has_prepare()) continue;
      EXPECT_TRUE(engine.Paused(1).ok());
    }
  }
  publishing.join();
  EXPECT_FALSE(report.ok());
  WindowedEngine successor(cluster_->rollout_socket(0), 1);
  ASSERT_TRUE(successor.Attach().ok());
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "its successor");
  std::thread again([&] { report = Publish(2); });
  EXPECT_EQ(successor.Follow().applied().version(), 2u);
  again.join();
  EXPECT_TRUE(report.ok()) << report.status();
}

TEST_F(LayerWindow, ALateEngineIsCaughtUpThroughItsWindow) {
  ASSERT_NO_FATAL_FAILURE(StartAgents(2));
  WholeEngine whole(cluster_->rollout_socket(1));
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "one engine");
  absl::StatusOr<v1::AppliedUpdate> beside = absl::UnknownError("not yet");
  std::thread following([&] { beside = whole.Follow(1); });
  const auto report = Publish(1);
  following.join();
  ASSERT_TRUE(report.ok()) << report.status();
  WindowedEngine late(cluster_->rollout_socket(0), 1);
  ASSERT_TRUE(late.Attach().ok());
  const v1::UpdateEvent end = late.Follow();
  ASSERT_TRUE(end.has_applied()) << end.ShortDebugString();
  EXPECT_EQ(FromProto(end.applied().content_digest()), FromProto(report->content_digest()));
  EXPECT_TRUE(late.Weights() == whole.Weights());
}

}  // namespace
}  // namespace wsync::cli
