#include "client/cli/bench_peers.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/model_shapes.h"
#include "client/cli/command.h"
#include "client/cli/demo_model.h"
#include "client/cli/engine_memory.h"
#include "client/cli/terminal.h"
#include "client/local/engine_client.h"
#include "client/local/trainer_client.h"
#include "server/backend/cuda/backend.h"
#include "server/backend/cuda/probe.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

using nlohmann::json;

constexpr absl::Duration kConnectTimeout = absl::Seconds(20);
constexpr absl::Duration kPlanTimeout = absl::Minutes(2);  // the feeder may still be filling its memory
constexpr int64_t kTensorAlign = 256;                      // as cudaMalloc gives, and PyTorch 512
constexpr int64_t kChunkBytes = int64_t{1} << 30;          // of one allocation, as a caching allocator has them
constexpr int64_t kPatternBytes = int64_t{64} << 20;       // random weights, used over and over
constexpr uint64_t kSeed = 1;
constexpr char kPublishOrder[] = "publish ";

struct PeerArguments {
  int device = 0;
  std::string socket;
  std::string shapes;
  std::string model;  // a checkpoint directory; empty: random weights of those shapes
};

void Say(const json& what) {
  WriteJson(stdout, what.dump());
  std::fflush(stdout);
}

double MsSince(absl::Time begin) { return absl::ToDoubleMilliseconds(MonotonicNow() - begin); }
double MsOf(absl::Time at) { return absl::ToDoubleMilliseconds(at - absl::UnixEpoch()); }

json ToJson(const v1::StageTimings& timings) {
  return {{"encode_ms", timings.encode_ms()},
          {"transfer_ms", timings.transfer_ms()},
          {"check_ms", timings.check_ms()},
          {"apply_ms", timings.apply_ms()},
          {"pause_ms", timings.pause_ms()}};
}

json ToJson(const v1::VersionReport& report) {
  json out = {{"encode_ms", report.encode_ms()},
              {"released_ms", report.released_ms()},
              {"staged_ms", report.staged_ms()},
              {"committed_ms", report.committed_ms()}};
  for (const v1::ReplicaOutcome& replica : report.replicas()) {
    out["replicas"].push_back({{"replica", replica.replica()},
                               {"applied", replica.outcome() == v1::OUTCOME_APPLIED},
                               {"reason", replica.reason()},
                               {"timings", ToJson(replica.timings())}});
  }
  return out;
}

// Tensors in some allocations that can be lent, one after the other.
class DeviceTensors {
 public:
  static absl::StatusOr<DeviceTensors> Allocate(Memory& memory, const std::vector<Tensor>& tensors,
                                                std::string_view purpose) {
    DeviceTensors placed;
    int64_t used = 0;
    std::vector<int64_t> chunks;
    for (const Tensor& tensor : tensors) {
      const int64_t bytes = RoundUp(BytesOf(tensor), kTensorAlign);
      if (chunks.empty() || used + bytes > kChunkBytes) {
        chunks.push_back(0);
        used = 0;
      }
      placed.places_.push_back({static_cast<int32_t>(chunks.size()) - 1, used});
      used += bytes;
      chunks.back() = used;
    }
    for (const int64_t bytes : chunks) {
      auto buffer = memory.AllocateShared(std::max(bytes, kTensorAlign), purpose, &placed.handles_.emplace_back());
      if (!buffer.ok()) return buffer.status();
      placed.buffers_.push_back(*std::move(buffer));
    }
    return placed;
  }

  struct Place {
    int32_t handle;
    int64_t offset_bytes;
  };
  const std::vector<MemoryHandle>& handles() const { return handles_; }
  const Place& place(size_t tensor) const { return places_[tensor]; }
  std::byte* data(size_t tensor) const {
    return buffers_[places_[tensor].handle]->data() + places_[tensor].offset_bytes;
  }

 private:
  std::vector<Place> places_;
  std::vector<MemoryHandle> handles_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

// ---- the feeder

struct Weights {
  std::vector<Tensor> tensors;
  std::unique_ptr<Checkpoint> checkpoint;  // null: random weights
};

absl::StatusOr<Weights> Open(const PeerArguments& arguments) {
  Weights weights;
  if (arguments.model.empty()) {
    auto tensors = ModelTensors(arguments.shapes);
    if (!tensors.ok()) return tensors.status();
    weights.tensors = *std::move(tensors);
    return weights;
  }
  auto checkpoint = Checkpoint::Open(arguments.model);
  if (!checkpoint.ok()) return checkpoint.status();
  weights.checkpoint = *std::move(checkpoint);
  weights.tensors = weights.checkpoint->TensorList();
  return weights;
}

absl::Status Fill(cuda::Probe& probe, const Weights& weights, const DeviceTensors& placed) {
  std::vector<std::byte> pattern(weights.checkpoint == nullptr ? kPatternBytes : 0);
  if (!pattern.empty()) FillRandomBf16(pattern.data(), kPatternBytes / 2, kSeed);
  for (size_t i = 0; i < weights.tensors.size(); ++i) {
    const int64_t bytes = BytesOf(weights.tensors[i]);
    absl::Status status;
    if (weights.checkpoint != nullptr) {
      status = probe.Upload(placed.data(i), weights.checkpoint->tensors()[i].data, bytes);
    } else {
      for (int64_t done = 0; status.ok() && done < bytes; done += kPatternBytes) {
        status = probe.Upload(placed.data(i) + done, pattern.data(), std::min(kPatternBytes, bytes - done));
      }
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<json> Publish(TrainerClient& trainer, uint64_t version) {
  const absl::Time begin = MonotonicNow();
  double released_ms = 0;
  PublishObserver observer;
  observer.released = [&](const v1::Released&) { released_ms = MsSince(begin); };
  const auto report = trainer.Publish(version, observer);
  if (!report.ok()) return report.status();
  return json{{"committed", version},
              {"begun_at_ms", MsOf(begin)},
              {"released_ms", released_ms},
              {"committed_ms", MsSince(begin)},
              {"report", ToJson(*report)}};
}

absl::Status Feed(const PeerArguments& arguments) {
  auto backend = cuda::CudaBackend::Create({.device = arguments.device});
  if (!backend.ok()) return backend.status();
  auto probe = cuda::Probe::Open(arguments.device);
  if (!probe.ok()) return probe.status();
  const auto weights = Open(arguments);
  if (!weights.ok()) return weights.status();
  const auto placed = DeviceTensors::Allocate((*backend)->memory(), weights->tensors, "the trainer's weights");
  if (!placed.ok()) return placed.status();
  if (absl::Status status = Fill(**probe, *weights, *placed); !status.ok()) return status;
  const auto trainer = TrainerClient::Connect(arguments.socket, kConnectTimeout);
  if (!trainer.ok()) return trainer.status();
  std::vector<SourceTensor> sources;
  int64_t source_bytes = 0;
  for (size_t i = 0; i < weights->tensors.size(); ++i) {
    sources.push_back({weights->tensors[i], static_cast<uint32_t>(placed->place(i).handle),
                       static_cast<uint64_t>(placed->place(i).offset_bytes)});
    source_bytes += BytesOf(weights->tensors[i]);
  }
  const absl::Time begin = MonotonicNow();
  const auto reply = (*trainer)->Register(placed->handles(), sources, {}, false);
  if (!reply.ok()) return reply.status();
  Say({{"registered",
        {{"tensors", reply->tensors()},
         {"quantized_tensors", reply->quantized_tensors()},
         {"source_bytes", source_bytes},
         {"payload_bytes", reply->payload_bytes()},
         {"wire_bytes", reply->wire_bytes()},
         {"buckets", reply->buckets()},
         {"ms", MsSince(begin)}}}});
  for (std::string line; std::getline(std::cin, line);) {
    uint64_t version = 0;
    if (!absl::StartsWith(line, kPublishOrder) || !absl::SimpleAtoi(line.substr(sizeof(kPublishOrder) - 1), &version)) {
      return absl::InvalidArgumentError(absl::StrCat("unknown order '", line, "'"));
    }
    const auto published = Publish(**trainer, version);
    if (!published.ok()) return published.status();
    Say(*published);
  }
  return (*trainer)->Unregister();
}

// ---- the engine

absl::Status Follow(EngineClient& engine) {
  absl::Time paused;
  while (true) {
    const auto event = engine.Next();
    if (!event.ok()) return absl::IsCancelled(event.status()) ? absl::OkStatus() : event.status();
    if (const auto version = AsksToPause(*event)) {
      paused = MonotonicNow();
      if (absl::Status answered = engine.Paused(*version); !answered.ok()) return answered;
    }
    if (!event->has_applied()) continue;
    Say({{"applied", event->applied().version()},
         {"at_ms", MsOf(MonotonicNow())},
         {"pause_ms", MsSince(paused)},
         {"timings", ToJson(event->applied().timings())}});
  }
}

absl::Status Serve(const PeerArguments& arguments) {
  auto backend = cuda::CudaBackend::Create({.device = arguments.device});
  if (!backend.ok()) return backend.status();
  const auto engine = EngineClient::Connect(arguments.socket, kConnectTimeout);
  if (!engine.ok()) return engine.status();
  const auto outputs = (*engine)->GetOutputs(kPlanTimeout);
  if (!outputs.ok()) return outputs.status();
  std::vector<Tensor> tensors;
  int64_t bytes = 0;
  for (const EngineOutput& output : outputs->outputs) {
    tensors.push_back(output.tensor);
    bytes += BytesOf(output.tensor);
  }
  const auto placed = DeviceTensors::Allocate((*backend)->memory(), tensors, "the engine's weights");
  if (!placed.ok()) return placed.status();
  std::vector<Destination> destinations;
  for (size_t i = 0; i < tensors.size(); ++i) {
    destinations.push_back(WholeTensor(tensors[i], placed->place(i).handle, placed->place(i).offset_bytes));
  }
  const absl::Time begin = MonotonicNow();
  const auto attached =
      (*engine)->Attach("bench engine", placed->handles(), destinations, /*allow_partial=*/false, kPlanTimeout);
  if (!attached.ok()) return attached.status();
  Say({{"attached", {{"bytes", bytes}, {"ms", MsSince(begin)}}}});
  std::thread end([&] {  // stdin ends with whoever started us
    for (std::string line; std::getline(std::cin, line);) {
    }
    (*engine)->Cancel();
  });
  const absl::Status followed = Follow(**engine);
  if (!followed.ok()) {
    Say({{"error", std::string(followed.message())}});
    std::_Exit(kError);  // `end` waits for a stdin that may stay open
  }
  end.join();
  return absl::OkStatus();
}

ExitCode Tell(const absl::Status& status) {
  if (status.ok()) return kOk;
  Say({{"error", std::string(status.message())}});
  return kError;
}

void Declare(CLI::App* command, const std::shared_ptr<PeerArguments>& arguments) {
  command->group("");  // not for people
  command->add_option("--device", arguments->device)->required();
  command->add_option("--socket", arguments->socket)->required();
}

}  // namespace

void AddBenchPeers(CLI::App& app) {
  auto feeder = std::make_shared<PeerArguments>();
  CLI::App* feed = AddCommand(app, "bench-feeder", "The training process of a benchmark", "",
                              [feeder] { return Tell(Feed(*feeder)); });
  Declare(feed, feeder);
  feed->add_option("--shapes", feeder->shapes)->required();
  feed->add_option("--model", feeder->model);
  auto engine = std::make_shared<PeerArguments>();
  Declare(AddCommand(app, "bench-engine", "The inference engine of a benchmark", "",
                     [engine] { return Tell(Serve(*engine)); }),
          engine);
}

}  // namespace wsync::cli
