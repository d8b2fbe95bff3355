#include "client/cli/gpu_ceilings.h"

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "client/cli/median.h"
#include "server/backend/cuda/backend.h"
#include "server/backend/cuda/probe.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr int kRuns = 7;                          // medians of these, after one that warms up
constexpr int64_t kCopyBytes = int64_t{4} << 30;  // far larger than any cache
constexpr absl::Duration kLimit =
    absl::Seconds(30);  // of a connect, and of a broadcast: a thousand times what it takes

// Its thread's own but for `status` and `runs`, which are read when that was joined.
struct Rank {
  std::unique_ptr<cuda::CudaBackend> backend;
  std::unique_ptr<Buffer> buffer;
  std::unique_ptr<Transport> transport;
  struct Run {
    absl::Time begin, end;
  };
  std::vector<Run> runs;
  absl::Status status;
};

absl::StatusOr<std::vector<Rank>> MakeRanks(const std::vector<int>& devices, int64_t bytes) {
  std::vector<Rank> ranks(devices.size());
  for (size_t i = 0; i < devices.size(); ++i) {
    auto backend = cuda::CudaBackend::Create({.device = devices[i]});
    if (!backend.ok()) return backend.status();
    ranks[i].backend = *std::move(backend);
    auto buffer = ranks[i].backend->memory().Allocate(bytes, "a broadcast to time");
    if (!buffer.ok()) return buffer.status();
    ranks[i].buffer = *std::move(buffer);
  }
  const std::string token = ranks[0].backend->NewSessionToken();
  for (size_t i = 0; i < ranks.size(); ++i) {
    auto transport = ranks[i].backend->NewTransport(
        {.token = token, .rank = static_cast<int32_t>(i), .world = static_cast<int32_t>(ranks.size())});
    if (!transport.ok()) return transport.status();
    ranks[i].transport = *std::move(transport);
  }
  return ranks;
}

// One rank's thread. Where it fails it leaves, and its peers fail at their own deadlines.
absl::Status Broadcast(Rank& rank, int64_t bytes, std::barrier<>& all_ready) {
  absl::Status status = rank.transport->Connect(MonotonicNow() + kLimit);
  for (int i = 0; status.ok() && i <= kRuns; ++i) {
    all_ready.arrive_and_wait();
    Rank::Run& run = rank.runs.emplace_back();
    run.begin = MonotonicNow();
    status = rank.transport->Broadcast(rank.buffer->data(), bytes, nullptr)->Wait(run.begin + kLimit);
    run.end = MonotonicNow();
  }
  all_ready.arrive_and_drop();
  return status;
}

absl::StatusOr<double> MeasureBroadcastMs(const std::vector<int>& devices, int64_t bytes) {
  absl::StatusOr<std::vector<Rank>> ranks = MakeRanks(devices, bytes);
  if (!ranks.ok()) return ranks.status();
  std::barrier<> all_ready(static_cast<std::ptrdiff_t>(ranks->size()));
  std::vector<std::thread> threads;
  for (Rank& rank : *ranks) {
    threads.emplace_back([&rank, bytes, &all_ready] { rank.status = Broadcast(rank, bytes, all_ready); });
  }
  for (std::thread& thread : threads) thread.join();
  absl::Status status;
  for (const Rank& rank : *ranks) status.Update(rank.status);
  if (!status.ok()) return status;
  std::vector<double> times;
  for (size_t i = 1; i <= kRuns; ++i) {
    absl::Time begin = absl::InfiniteFuture(), end = absl::InfinitePast();
    for (const Rank& rank : *ranks) {
      begin = std::min(begin, rank.runs[i].begin);
      end = std::max(end, rank.runs[i].end);
    }
    times.push_back(absl::ToDoubleMilliseconds(end - begin));
  }
  return Median(std::move(times));
}

absl::StatusOr<double> CopySeconds(int device, int64_t bytes) {
  const auto probe = cuda::Probe::Open(device);
  if (!probe.ok()) return probe.status();
  return (*probe)->CopySeconds(bytes, kRuns);
}

}  // namespace

absl::StatusOr<GpuCeilings> MeasureCeilings(const std::vector<int>& devices, int64_t payload_bytes,
                                            int64_t wire_bytes) {
  GpuCeilings ceilings;
  const auto copy = CopySeconds(devices.front(), kCopyBytes);
  if (!copy.ok()) return copy.status();
  ceilings.copy_bytes_per_second = 2.0 * kCopyBytes / *copy;
  const auto payload_copy = CopySeconds(devices.back(), payload_bytes);
  if (!payload_copy.ok()) return payload_copy.status();
  ceilings.payload_copy_ms = *payload_copy * 1e3;
  const auto broadcast = MeasureBroadcastMs(devices, wire_bytes);
  if (!broadcast.ok()) return broadcast.status();
  ceilings.broadcast_ms = *broadcast;
  return ceilings;
}

}  // namespace wsync::cli
