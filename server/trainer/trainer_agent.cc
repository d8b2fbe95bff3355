#include "server/trainer/trainer_agent.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/core/sync.h"
#include "server/rpc/address.h"
#include "server/rpc/convert.h"
#include "server/rpc/log.h"
#include "server/rpc/server.h"
#include "server/rpc/tls.h"
#include "server/trainer/control_loop.h"
#include "server/trainer/coordinator_service.h"
#include "server/trainer/publish_tracker.h"
#include "server/trainer/publisher.h"
#include "server/trainer/registrar.h"
#include "server/trainer/trainer_service.h"

namespace wsync {
namespace {

// How much longer the source goes on than the coordinator grants the members: it notices first, and names the culprit.
constexpr absl::Duration kBeyondCoordinator = absl::Seconds(1);
// For farewells to reach members and callers; who does not read them within this is cut off.
constexpr absl::Duration kHangUpGrace = absl::Seconds(1);

CoordinatorOptions CoordinatorOptionsFrom(const v1::TrainerConfig& config, Backend* backend) {
  const v1::CoordinatorConfig& c = config.coordinator();
  CoordinatorOptions options;
  options.job = config.job();
  options.quorum = c.policy() == "quorum" ? c.quorum() : 0;
  options.min_replicas = c.min_replicas();
  options.min_replicas_wait = absl::Milliseconds(c.min_replicas_wait_ms());
  options.heartbeat_timeout = absl::Milliseconds(c.heartbeat_timeout_ms());
  options.stage_timeout = absl::Milliseconds(c.stage_timeout_ms());
  options.min_rate_bytes_per_second = static_cast<double>(c.min_rate_bytes_per_second());
  options.apply_timeout = absl::Milliseconds(c.apply_timeout_ms());
  options.event_history = c.event_history();
  options.source_retains = config.transfer().source_mode() != "ring";
  options.backend = backend->name();
  options.new_session_token = [backend] { return backend->NewSessionToken(); };
  options.new_rank_token = [backend](const std::string& session) { return backend->NewRankToken(session); };
  return options;
}

PublisherOptions PublisherOptionsFrom(const v1::TrainerConfig& config) {
  PublisherOptions options;
  options.mode = config.transfer().source_mode() == "ring" ? SourceMode::kRing : SourceMode::kFull;
  options.ring_slots = config.transfer().ring_slots();
  options.connect_timeout = absl::Milliseconds(config.coordinator().stage_timeout_ms()) + kBeyondCoordinator;
  options.transfer_timeout = options.connect_timeout;
  options.start_timeout = absl::Milliseconds(config.coordinator().stage_timeout_ms()) * 4 / 5;
  options.min_rate_bytes_per_second = static_cast<double>(config.coordinator().min_rate_bytes_per_second());
  return options;
}

void WriteLog(const action::Log& log) {
  switch (log.severity) {
    case action::Log::kInfo:
      return LogInfo(log.text);
    case action::Log::kWarn:
      return LogWarn(log.text);
    case action::Log::kError:
      return LogError(log.text);
  }
}

// A rollout that joins is given the weights.
void WarnIfOpen(const v1::TrainerConfig& config) {
  const auto address = ParseAddress(config.coordinator().listen());
  if (!address.ok() || address->is_unix || !config.tls().ca_file().empty()) return;
  if (address->host == "127.0.0.1" || address->host == "::1" || address->host == "localhost") return;
  LogWarn("the coordinator listens for other hosts without TLS: whoever reaches the port may join; set the section tls",
          {{"coordinator.listen", config.coordinator().listen()}});
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

}  // namespace

// Destroyed from the bottom up: servers before what their calls use, the backend last.
struct TrainerAgent::Parts {
  Parts(const v1::TrainerConfig& trainer_config, RecipeRules rules, std::unique_ptr<Backend> owned_backend);

  void CarryOut(const Action& action);
  v1::JobStatus Status() const;                                   // control thread
  v1::MemberStatus OwnRow(const ServedVersion& committed) const;  // control thread
  absl::Time ReportProgress(absl::Time now);                      // a chore
  absl::Time NoteRunning(absl::Time now);                         // a chore
  void AwaitIdle(absl::Time deadline);                            // no version is running

  const v1::TrainerConfig config;
  const absl::Time started = MonotonicNow();
  const std::string host = HostName();
  const std::unique_ptr<Backend> backend;
  ControlLoop loop;
  PublishTracker tracker;
  Publisher publisher;
  CoordinatorService coordinator_service;
  Registrar registrar;
  TrainerService trainer_service;
  std::unique_ptr<RpcServer> coordinator_server;
  std::unique_ptr<RpcServer> local_server;
  bool stopped = false;

  Mutex mu;
  CondVar idle;
  bool running ABSL_GUARDED_BY(mu) = false;
};

TrainerAgent::Parts::Parts(const v1::TrainerConfig& trainer_config, RecipeRules rules,
                           std::unique_ptr<Backend> owned_backend)
    : config(trainer_config),
      backend(std::move(owned_backend)),
      loop([this] {
        CoordinatorOptions options = CoordinatorOptionsFrom(config, backend.get());
        options.peers = [this](uint64_t epoch) { return publisher.Peers(epoch); };  // once a round runs
        return options;
      }()),
      publisher(PublisherOptionsFrom(config), backend.get(), [this](Event event) { loop.Post(std::move(event)); }),
      coordinator_service(
          {.join = {.job = config.job(),
                    .backend = backend->name(),
                    .transport = backend->fingerprint(),
                    .device_id = backend->device_id(),
                    .host = host},
           .data_address = config.coordinator().advertise(),
           .heartbeat = absl::Milliseconds(config.coordinator().heartbeat_ms()),
           .heartbeat_timeout = absl::Milliseconds(config.coordinator().heartbeat_timeout_ms()),
           .authorize = [this](const grpc::ServerContextBase& c) { return AuthorizePeer(config.tls(), c); },
           .status = [this] { return Status(); }},
          &loop),
      registrar({.rules = std::move(rules),
                 .bucket_bytes = config.transfer().bucket_bytes(),
                 .check_rules = [](const RecipeRules& all) { return CheckSendable(all); },
                 .prepare_catalog =
                     [this](const Plan* plan) {
                       return [this, catalog = MakeCatalogMessages(plan)] { coordinator_service.SetCatalog(catalog); };
                     }},
                &backend->memory(), &publisher, &tracker, &loop),
      trainer_service(&registrar, &tracker, &loop, &backend->memory(), [this] { return Status(); }) {
  loop.OnAction([this](const Action& action) { CarryOut(action); });
  loop.AddChore([this](absl::Time now) { return registrar.Watch(now); });
  loop.AddChore([this](absl::Time now) { return ReportProgress(now); });
  loop.AddChore([this](absl::Time now) { return NoteRunning(now); });
  loop.AddChore([this](absl::Time now) { return coordinator_service.Tell(now); });  // last: shows what the others did
  loop.Start();
}

namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

}  // namespace

void TrainerAgent::Parts::CarryOut(const Action& action) {
  std::visit(
      Overloaded{[this](const action::StartSource& a) { publisher.Start(a, tracker.OrderOf(a.version)); },
                 [this](const action::CancelSource& a) { publisher.Cancel(a); },
                 [this](const action::CheckContent& a) { publisher.CheckContent(a, tracker.OrderOf(a.version)); },
                 [this](const action::PublishAccepted& a) { tracker.Carry(a); },
                 [this](const action::PublishReleased& a) {
                   (void)WSYNC_FAILPOINT("trainer.released");
                   tracker.Carry(a);
                 },
                 [this](const action::PublishDone& a) {
                   (void)WSYNC_FAILPOINT("trainer.done");
                   tracker.Carry(a);
                 },
                 [](const action::Log& a) { WriteLog(a); },
                 [this](const auto& to_member) { coordinator_service.Carry(to_member); }},
      action);
}

v1::JobStatus TrainerAgent::Parts::Status() const {
  const absl::Time now = MonotonicNow();
  const StatusSnapshot snapshot = loop.Snapshot();
  v1::JobStatus status = ToProto(snapshot, now, absl::Now());
  status.set_uptime_s(absl::ToDoubleSeconds(now - started));
  // The trainer first, then the rollouts as the coordinator sorted them.
  *status.add_members() = OwnRow(snapshot.committed);
  std::rotate(status.mutable_members()->pointer_begin(), status.mutable_members()->pointer_end() - 1,
              status.mutable_members()->pointer_end());
  return status;
}

v1::MemberStatus TrainerAgent::Parts::OwnRow(const ServedVersion& committed) const {
  const SourceProgress progress = publisher.Progress();
  v1::MemberStatus row;
  row.set_name("trainer");
  row.set_role("trainer");
  row.set_host(host);
  row.set_pid(getpid());
  row.set_backend(backend->name());
  const bool registered = registrar.registered();
  registered ? row.set_engine(registrar.Owner()) : row.set_last_error(registrar.Owner());
  row.set_state(tracker.Running() ? "syncing" : registered ? "ready" : "waiting");
  const bool sending = tracker.Running() && progress.sent_bytes < progress.total_bytes;
  row.set_phase(progress.encoding ? "encode" : sending ? "send" : "idle");
  *row.mutable_serving() = ToProto(committed);
  return row;
}

absl::Time TrainerAgent::Parts::ReportProgress(absl::Time now) {
  return tracker.ReportProgress(now, [this](uint64_t version) {
    PublishProgress progress;
    progress.source = publisher.Progress();
    if (progress.source.version != version) progress.source = {};
    const StatusSnapshot snapshot = loop.Snapshot();
    if (snapshot.round.has_value() && snapshot.round->version == version) {
      progress.staged_replicas = snapshot.round->staged;
      progress.applied_replicas = snapshot.round->applied;
    }
    return progress;
  });
}

absl::Time TrainerAgent::Parts::NoteRunning(absl::Time) {
  MutexLock lock(&mu);
  running = tracker.Running();
  idle.SignalAll();
  return absl::InfiniteFuture();
}

void TrainerAgent::Parts::AwaitIdle(absl::Time deadline) {
  loop.RunAndWait([this] { NoteRunning(MonotonicNow()); });  // counts what was admitted just now
  MutexLock lock(&mu);
  while (running && MonotonicNow() < deadline) idle.WaitUntil(&mu, deadline);
}

// ---- the agent

TrainerAgent::TrainerAgent(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

TrainerAgent::~TrainerAgent() { Stop(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<TrainerAgent>> TrainerAgent::Start(const v1::TrainerConfig& config,
                                                                  std::unique_ptr<Backend> backend) {
  auto rules = FromConfig(config.recipe());
  if (!rules.ok()) return rules.status();
  if (absl::Status status = ValidateRules(*rules); !status.ok()) return status;
  auto credentials = ServerCredentialsFor(config.tls());
  if (!credentials.ok()) return credentials.status();

  // From here on the destructor cleans up.
  std::unique_ptr<TrainerAgent> agent(
      new TrainerAgent(std::make_unique<Parts>(config, *std::move(rules), std::move(backend))));
  Parts& parts = *agent->parts_;
  ServerOptions coordinator{.address = config.coordinator().listen(), .credentials = *credentials};
  coordinator.config_key = "coordinator.listen";
  coordinator.services.push_back(&parts.coordinator_service);
  if (grpc::Service* data_plane = parts.backend->data_plane_service(); data_plane != nullptr) {
    coordinator.services.push_back(data_plane);
  }
  auto coordinator_server = RpcServer::Start(std::move(coordinator));
  if (!coordinator_server.ok()) return coordinator_server.status();
  parts.coordinator_server = *std::move(coordinator_server);

  ServerOptions local{.address = config.local_socket()};
  local.config_key = "local_socket";
  local.services.push_back(&parts.trainer_service);
  auto local_server = RpcServer::Start(std::move(local));
  if (!local_server.ok()) return local_server.status();
  parts.local_server = *std::move(local_server);
  WarnIfOpen(config);
  return agent;
}

void TrainerAgent::Stop(absl::Duration grace) {
  Parts& parts = *parts_;
  if (std::exchange(parts.stopped, true)) return;
  if (parts.coordinator_server != nullptr) parts.coordinator_server->SetServing(false);
  if (parts.local_server != nullptr) parts.local_server->SetServing(false);
  parts.trainer_service.Drain();
  parts.AwaitIdle(MonotonicNow() + grace);
  parts.registrar.Stop();
  parts.loop.RunAndWait([&parts] {
    parts.coordinator_service.CloseAll(absl::UnavailableError("the trainer agent is shutting down"));
    // What is being applied was decided: the agent that comes back learns from its sinks how it ended.
    parts.tracker.Abandon(absl::UnavailableError(
        "the trainer agent is shutting down while the version is being applied; once it is back, 'wsync status' tells "
        "what was committed"));
  });
  parts.publisher.Stop();
  if (parts.local_server != nullptr) parts.local_server->Shutdown(kHangUpGrace);
  if (parts.coordinator_server != nullptr) parts.coordinator_server->Shutdown(kHangUpGrace);
  parts.loop.Stop();
}

std::string TrainerAgent::Banner() const {
  return absl::StrCat("listening on ", local_address(), ", coordinator on ", coordinator_address());
}

absl::Status TrainerAgent::Health() const {
  absl::Status health = WSYNC_FAILPOINT("trainer.health");
  health.Update(parts_->backend->health());
  health.Update(parts_->loop.Look(MonotonicNow()));
  health.Update(parts_->publisher.Look(MonotonicNow()));
  return health;
}

std::string TrainerAgent::local_address() const { return parts_->local_server->address(); }

std::string TrainerAgent::coordinator_address() const { return parts_->coordinator_server->address(); }

}  // namespace wsync
