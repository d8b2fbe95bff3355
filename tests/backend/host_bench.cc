// How fast the host backend moves weights: one source and N sinks, each a process of its own, over TCP on one host.
//
//   wsync_host_bench --sinks 2 --tensors 40 --rows 128000 --cols 128 --versions 3
//
// prints, per version, the time from the first encode to the last sink's last check, what that is in GB/s of wire bytes
// to each sink, and at the end the CPU seconds per GB (of one sink's bytes) of the source and of one sink.
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "server/backend/host/backend.h"
#include "server/core/clock.h"

namespace wsync::host {
namespace {

struct BenchOptions {
  int sinks = 2;
  int64_t tensors = 40;
  int64_t rows = 128 * 1000;
  int64_t cols = 128;
  int64_t bucket_mib = 16;
  int versions = 3;
  int threads = 0;
  bool encode = true;
  bool check = true;
};

struct Rendezvous {
  int port = 0;
  char token[64] = {};
};

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "wsync_host_bench: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}
void Must(const absl::Status& status) {
  if (!status.ok()) Die(status);
}
template <class T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

absl::Time Deadline() { return MonotonicNow() + absl::Seconds(60); }

std::shared_ptr<const Plan> MakePlan(const BenchOptions& options) {
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < options.tensors; ++i) {
    tensors.push_back({"layers." + std::to_string(i) + ".proj.weight", Dtype::kBF16, {options.rows, options.cols}});
  }
  auto catalog = std::make_shared<const Catalog>(Must(Catalog::Create(std::move(tensors))));
  return Must(Plan::Create(catalog, RecipeRules{}, options.bucket_mib << 20));
}

double CpuSeconds(int who) {
  rusage usage = {};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * t.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void ReceiveVersion(const Plan& plan, Transport& transport, Loader* loader, std::byte* image) {
  std::vector<CompletionPtr> received;
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const Bucket& bucket = plan.buckets()[k];
    received.push_back(transport.Broadcast(image + bucket.image_offset, bucket.wire_bytes, nullptr));
    if (loader != nullptr) loader->Check(static_cast<int64_t>(k), image + bucket.image_offset, received.back());
  }
  for (const CompletionPtr& done : received) Must(done->Wait(Deadline()));
  if (loader != nullptr) Must(loader->Finish(Deadline()));
}

// The process of one sink: `in` brings the rendezvous, `out` takes one byte per version and then its CPU seconds.
void RunSink(const BenchOptions& options, int rank, int in, int out) {
  Rendezvous at;
  if (read(in, &at, sizeof(at)) != sizeof(at)) return;
  HostBackend backend({.threads = options.threads});
  const auto plan = MakePlan(options);
  const auto image = Must(backend.memory().Allocate(plan->image_bytes(), "staging"));
  auto loader = Must(backend.NewLoader(plan, {}, {}));
  auto transport = Must(backend.NewTransport({.token = at.token,
                                              .rank = rank,
                                              .world = options.sinks + 1,
                                              .root_address = "127.0.0.1:" + std::to_string(at.port)}));
  Must(transport->Connect(Deadline()));
  double cpu_before = 0;
  for (int version = 0; version < options.versions; ++version) {
    if (version == 1) cpu_before = CpuSeconds(RUSAGE_SELF);  // the first one also faults memory in
    ReceiveVersion(*plan, *transport, options.check ? loader.get() : nullptr, image->data());
    if (write(out, "v", 1) != 1) return;
  }
  const double cpu = CpuSeconds(RUSAGE_SELF) - cpu_before;
  if (write(out, &cpu, sizeof(cpu)) != sizeof(cpu)) std::exit(1);
}

struct SinkProcess {
  int to = -1;
  int from = -1;
};

SinkProcess Spawn(const BenchOptions& options, int rank) {
  int to[2], from[2];
  if (pipe(to) != 0 || pipe(from) != 0) Die(absl::InternalError("pipe failed"));
  std::fflush(stdout);
  if (fork() == 0) {
    close(to[1]);
    close(from[0]);
    RunSink(options, rank, to[0], from[1]);
    std::exit(0);
  }
  close(to[0]);
  close(from[1]);  // so that a sink that dies ends our reading
  return {to[1], from[0]};
}

// Values that differ from row to row; finite, since exponents stay below the top.
void Fill(std::byte* data, int64_t bytes) {
  uint32_t state = 1;
  for (int64_t i = 0; i + 2 <= bytes; i += 2) {
    state = state * 1664525 + 1013904223;
    const uint16_t value = static_cast<uint16_t>(state >> 16) & 0xBFFF;
    std::memcpy(data + i, &value, 2);
  }
}

void SendVersion(const Plan& plan, Transport& transport, Quantizer* quantizer, std::byte* image) {
  std::vector<CompletionPtr> sent;
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const Bucket& bucket = plan.buckets()[k];
    std::byte* wire = image + bucket.image_offset;
    CompletionPtr encoded = quantizer ? quantizer->Encode(static_cast<int64_t>(k), wire, nullptr) : nullptr;
    sent.push_back(transport.Broadcast(wire, bucket.wire_bytes, std::move(encoded)));
  }
  if (quantizer != nullptr) Must(quantizer->Finish(Deadline()));
  for (const CompletionPtr& done : sent) Must(done->Wait(Deadline()));
}

void RunSource(const BenchOptions& options, const std::vector<SinkProcess>& sinks) {
  HostBackend backend({.threads = options.threads});
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.RegisterService(backend.data_plane_service());
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto plan = MakePlan(options);
  const auto image = Must(backend.memory().Allocate(plan->image_bytes(), "send image"));
  const auto weights = Must(backend.memory().Allocate(plan->source_bytes(), "weights"));
  Fill(weights->data(), weights->bytes());
  std::vector<const std::byte*> tensors;
  for (int64_t i = 0; i < options.tensors; ++i)
    tensors.push_back(weights->data() + i * options.rows * options.cols * 2);
  auto quantizer = Must(backend.NewQuantizer(plan, tensors));

  Rendezvous at{.port = port};
  const std::string token = backend.NewSessionToken();
  std::memcpy(at.token, token.data(), token.size());
  for (const SinkProcess& sink : sinks) {
    if (write(sink.to, &at, sizeof(at)) != sizeof(at)) Die(absl::InternalError("a sink died"));
  }
  auto transport = Must(backend.NewTransport({.token = token, .rank = 0, .world = options.sinks + 1}));
  Must(transport->Connect(Deadline()));
  std::printf("%ld tensors, %zu buckets, %.3f GB on the wire\n", options.tensors, plan->buckets().size(),
              plan->image_bytes() / 1e9);

  double cpu_before = 0;
  for (int version = 0; version < options.versions; ++version) {
    if (version == 1) cpu_before = CpuSeconds(RUSAGE_SELF);
    const absl::Time begin = MonotonicNow();
    const bool encode = options.encode || version == 0;
    SendVersion(*plan, *transport, encode ? quantizer.get() : nullptr, image->data());
    for (const SinkProcess& sink : sinks) {
      char done = 0;
      if (read(sink.from, &done, 1) != 1) Die(absl::InternalError("a sink died"));
    }
    const double seconds = absl::ToDoubleSeconds(MonotonicNow() - begin);
    std::printf("version %d: %.3f s, %.3f GB/s to each of %d sinks\n", version, seconds,
                plan->image_bytes() / 1e9 / seconds, options.sinks);
  }
  const double measured_gb = plan->image_bytes() / 1e9 * (options.versions - 1);
  std::printf("CPU s per GB: source %.3f", (CpuSeconds(RUSAGE_SELF) - cpu_before) / measured_gb);
  for (const SinkProcess& sink : sinks) {
    double cpu = 0;
    if (read(sink.from, &cpu, sizeof(cpu)) == sizeof(cpu)) std::printf(", sink %.3f", cpu / measured_gb);
  }
  std::printf("\n");
  transport.reset();
  server->Shutdown();
}

int Main(int argc, char** argv) {
  BenchOptions options;
  CLI::App app("Throughput of wsync's host backend");
  app.add_option("--sinks", options.sinks, "sink processes")->check(CLI::Range(0, 64));
  app.add_option("--tensors", options.tensors, "BF16 tensors")->check(CLI::PositiveNumber);
  app.add_option("--rows", options.rows, "rows of each")->check(CLI::PositiveNumber);
  app.add_option("--cols", options.cols, "columns of each")->check(CLI::PositiveNumber);
  app.add_option("--bucket-mib", options.bucket_mib, "bucket size")->check(CLI::Range(1, 8192));
  app.add_option("--versions", options.versions, "versions sent; the first is a warm-up")->check(CLI::Range(2, 1000));
  app.add_option("--threads", options.threads, "threads of each process; 0: one per CPU");
  app.add_flag("!--no-encode", options.encode, "send the warm-up's image again");
  app.add_flag("!--no-check", options.check, "do not check digests");
  CLI11_PARSE(app, argc, argv);
  std::vector<SinkProcess> sinks;  // before any thread exists: fork copies only the calling one
  for (int rank = 1; rank <= options.sinks; ++rank) sinks.push_back(Spawn(options, rank));
  RunSource(options, sinks);
  while (wait(nullptr) > 0) {
  }
  return 0;
}

}  // namespace
}  // namespace wsync::host

int main(int argc, char** argv) { return wsync::host::Main(argc, argv); }
