#include "client/local/trainer_client.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/local/connect.h"
#include "server/core/clock.h"
#include "server/core/sync.h"
#include "server/rpc/convert.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync {
namespace {

// Far below gRPC's 4 MiB cap for names of 512 bytes.
constexpr size_t kTensorsPerMessage = 4000;
// How often the keeper looks whether it is to stop; changes of the connection wake it at once.
constexpr absl::Duration kKeeperPeriod = absl::Milliseconds(200);
// An agent that was silent for longer before it was lost has not died but stands still: of a running version it tells
// the progress ten times a second. Nobody starts it again, and it has cost the trainer the keepalive's 4 s by now.
// (Before it accepts a version it may have been silent while it waited for replicas; the caller publishes again, then.)
constexpr absl::Duration kStoodStill = absl::Seconds(2);

std::chrono::system_clock::time_point In(absl::Duration duration) {
  return std::chrono::system_clock::now() + absl::ToChronoMilliseconds(duration);
}

struct Lent {  // what a registration says
  std::vector<MemoryHandle> handles;
  std::vector<SourceTensor> tensors;
  std::vector<std::string> modules_to_not_convert;
};

absl::StatusOr<v1::RegisterReply> SendRegistration(v1::Trainer::Stub& stub, const Lent& lent, bool replace) {
  grpc::ClientContext context;
  v1::RegisterReply reply;
  auto writer = stub.Register(&context, &reply);
  v1::RegisterRequest request;
  v1::RegisterHeader* header = request.mutable_header();
  header->set_pid(getpid());
  header->set_replace(replace);
  header->set_tensors(lent.tensors.size());
  for (const MemoryHandle& handle : lent.handles) *header->add_handles() = ToProto(handle);
  for (const std::string& module : lent.modules_to_not_convert) header->add_modules_to_not_convert(module);
  bool writable = true;
  for (const SourceTensor& source : lent.tensors) {
    v1::RegisteredTensor* out = request.add_tensors();
    *out->mutable_tensor() = ToProto(source.tensor);
    out->set_handle(source.handle);
    out->set_offset_bytes(source.offset_bytes);
    if (request.tensors_size() == static_cast<int>(kTensorsPerMessage)) {
      writable = writer->Write(request);
      request.Clear();
      if (!writable) break;  // the agent has answered already: Finish says why
    }
  }
  if (writable && (request.has_header() || request.tensors_size() > 0)) writer->Write(request);
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return FromGrpc(status);
  return reply;
}

// What the agent has said of a publish, for who has to tell where it was lost.
struct Heard {
  absl::Duration Age() const { return MonotonicNow() - last; }
  std::string Phase() const {
    if (!accepted) return "begin";
    if (!released) return "encode";
    return progress.replicas() > 0 && progress.staged_replicas() == progress.replicas() ? "apply" : "broadcast";
  }

  bool accepted = false;
  bool released = false;
  v1::PublishProgress progress;
  absl::Time last = MonotonicNow();
};

absl::StatusOr<v1::VersionReport> PublishOnce(v1::Trainer::Stub& stub, const std::string& registration,
                                              uint64_t version, const PublishObserver& observer, Heard* heard) {
  grpc::ClientContext context;
  v1::PublishRequest request;
  request.set_registration_id(registration);
  request.set_version(version);
  auto reader = stub.Publish(&context, request);
  v1::PublishEvent event;
  v1::VersionReport report;
  bool committed = false;
  while (reader->Read(&event)) {
    heard->last = MonotonicNow();
    switch (event.event_case()) {
      case v1::PublishEvent::kAccepted:
        heard->accepted = true;
        if (observer.accepted) observer.accepted(event.accepted());
        break;
      case v1::PublishEvent::kProgress:
        heard->progress = event.progress();
        if (observer.progress) observer.progress(event.progress());
        break;
      case v1::PublishEvent::kReleased:
        heard->released = true;
        if (observer.released) observer.released(event.released());
        break;
      case v1::PublishEvent::kCommitted:
        report = event.committed();
        committed = true;
        break;
      case v1::PublishEvent::EVENT_NOT_SET:
        break;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status);
  if (!committed) {
    return absl::InternalError(absl::StrCat("wsync-trainer ended version ", version, " without a report"));
  }
  return report;
}

// The agent's word on the version; else UNAVAILABLE is about the agent itself.
bool IsVerdict(const absl::Status& status, uint64_t version) {
  return absl::StartsWith(status.message(), absl::StrCat("version ", version, " failed")) ||
         absl::StrContains(status.message(), "replicas");
}

// It stood still before the version was released, and could not know that we still waited: the weights are as they
// were.
bool IsCalledOffUnasked(const absl::Status& status) {
  return absl::IsAborted(status) && absl::StrContains(status.message(), "stood still");
}

// The agent restarted since, and does not know the registration.
bool IsForgotten(const absl::Status& status, const std::string& registration) {
  return absl::IsFailedPrecondition(status) && absl::StrContains(status.message(), registration);
}

}  // namespace

struct TrainerClient::Impl {
  void KeepRegistered();
  // Says the registration again to an agent that may have lost it. True: it had, and has it again.
  absl::StatusOr<bool> RegisterAgain();
  std::string registration_id();
  // A call made without a connection fails at once, with what the last attempt ended with. And only a wait drives the
  // next attempt: a caller that sleeps between calls had one every two seconds.
  bool AwaitConnection(absl::Time deadline) {
    return channel->GetState(true) == GRPC_CHANNEL_READY || channel->WaitForConnected(In(deadline - MonotonicNow()));
  }
  bool WaitUnlessStopping(absl::Duration duration);
  absl::Status Lost(const absl::Status& why, uint64_t version, const Heard& heard) const;

  std::string socket;
  TrainerClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Trainer::Stub> stub;

  Mutex mu;
  CondVar changed;
  std::optional<Lent> lent ABSL_GUARDED_BY(mu);
  std::string id ABSL_GUARDED_BY(mu);
  bool registering ABSL_GUARDED_BY(mu) = false;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  std::thread keeper;
};

TrainerClient::TrainerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

TrainerClient::~TrainerClient() {
  {
    MutexLock lock(&impl_->mu);
    impl_->stopping = true;
    impl_->changed.SignalAll();
  }
  if (impl_->keeper.joinable()) impl_->keeper.join();
}

absl::StatusOr<std::unique_ptr<TrainerClient>> TrainerClient::Connect(const std::string& socket, absl::Duration timeout,
                                                                      TrainerClientOptions options) {
  auto channel = ConnectLocal(socket, timeout, "wsync-trainer", "local_socket in trainer.yaml");
  if (!channel.ok()) return channel.status();
  auto impl = std::make_unique<Impl>();
  impl->socket = socket;
  impl->options = options;
  impl->channel = *channel;
  impl->stub = v1::Trainer::NewStub(impl->channel);
  return std::unique_ptr<TrainerClient>(new TrainerClient(std::move(impl)));
}

absl::StatusOr<v1::RegisterReply> TrainerClient::Register(const std::vector<MemoryHandle>& handles,
                                                          const std::vector<SourceTensor>& tensors,
                                                          const std::vector<std::string>& modules_to_not_convert,
                                                          bool replace) {
  Lent lent{handles, tensors, modules_to_not_convert};
  (void)impl_->AwaitConnection(MonotonicNow() + impl_->options.reconnect_timeout);
  auto reply = SendRegistration(*impl_->stub, lent, replace);
  if (!reply.ok()) return reply;
  MutexLock lock(&impl_->mu);
  impl_->id = reply->registration_id();
  impl_->lent = std::move(lent);
  if (!impl_->keeper.joinable()) impl_->keeper = std::thread([impl = impl_.get()] { impl->KeepRegistered(); });
  return reply;
}

absl::StatusOr<v1::VersionReport> TrainerClient::Publish(uint64_t version, const PublishObserver& observer) {
  absl::Time give_up = absl::InfiniteFuture();
  if (impl_->channel->GetState(true) != GRPC_CHANNEL_READY) {
    give_up = MonotonicNow() + impl_->options.reconnect_timeout;
    (void)impl_->AwaitConnection(give_up);
  }
  bool called_off = false;
  while (true) {
    const bool connected = impl_->channel->GetState(false) == GRPC_CHANNEL_READY;
    Heard heard;
    const std::string id = impl_->registration_id();  // the keeper may have another by the time of the answer
    auto report = PublishOnce(*impl_->stub, id, version, observer, &heard);
    if (!called_off && IsCalledOffUnasked(report.status())) {
      called_off = true;  // once
      continue;
    }
    const bool agent_gone = absl::IsUnavailable(report.status()) && !IsVerdict(report.status(), version);
    if (!agent_gone && !IsForgotten(report.status(), id)) return report;
    const absl::Status why = agent_gone && connected ? impl_->Lost(report.status(), version, heard) : report.status();
    if (heard.released) return why;
    const absl::Duration patience = heard.Age() > kStoodStill ? absl::ZeroDuration() : impl_->options.reconnect_timeout;
    give_up = std::min(give_up, MonotonicNow() + patience);
    // An agent that is shutting down says UNAVAILABLE with the connection standing.
    const bool lost = impl_->channel->GetState(false) != GRPC_CHANNEL_READY;
    const absl::Duration left = give_up - MonotonicNow();
    if (left <= absl::ZeroDuration() || !impl_->channel->WaitForConnected(In(left))) {
      return absl::Status(why.code(),
                          absl::StrCat(why.message(), "; version ", version, " was not published: no ",
                                       "wsync-trainer answers at ", impl_->socket, ": start it and publish again"));
    }
    const auto again = impl_->RegisterAgain();
    if (absl::IsUnavailable(again.status())) continue;  // gone again
    if (!again.ok()) return again.status();
    if (!*again && id == impl_->registration_id() && !lost) return why;
  }
}

absl::Status TrainerClient::Impl::Lost(const absl::Status& why, uint64_t version, const Heard& heard) const {
  return absl::Status(
      why.code(),
      absl::StrFormat("wsync-trainer at %s was lost in phase %s of version %d, last heard of %.1f s "
                      "before: %s",
                      socket, heard.Phase(), version, absl::ToDoubleSeconds(heard.Age()), std::string(why.message())));
}

absl::Status TrainerClient::Unregister() {
  std::string id;
  {
    MutexLock lock(&impl_->mu);
    impl_->lent.reset();
    id = impl_->id;
  }
  grpc::ClientContext context;
  v1::UnregisterRequest request;
  request.set_registration_id(id);
  v1::UnregisterReply reply;
  return FromGrpc(impl_->stub->Unregister(&context, request, &reply));
}

std::string TrainerClient::Impl::registration_id() {
  MutexLock lock(&mu);
  return id;
}

absl::StatusOr<bool> TrainerClient::Impl::RegisterAgain() {
  Lent again;
  std::string id_before;
  {
    MutexLock lock(&mu);
    id_before = id;
    while (registering && !stopping) changed.Wait(&mu);
    if (id != id_before) return true;  // the other thread did it meanwhile
    if (stopping || !lent.has_value()) return false;
    again = *lent;
    registering = true;
  }
  // Not `replace`: an agent that still has a live registration keeps it, ours or that of who took over.
  const auto reply = SendRegistration(*stub, again, /*replace=*/false);
  MutexLock lock(&mu);
  registering = false;
  changed.SignalAll();
  if (absl::IsAlreadyExists(reply.status())) return false;
  if (!reply.ok()) return reply.status();
  id = reply->registration_id();
  return true;
}

bool TrainerClient::Impl::WaitUnlessStopping(absl::Duration duration) {
  const absl::Time until = MonotonicNow() + duration;
  MutexLock lock(&mu);
  while (!stopping && changed.WaitUntil(&mu, until)) {
  }
  return !stopping;
}

// An agent that is back has no catalog, and so its sinks have none: it gets it at once, not with the next version.
void TrainerClient::Impl::KeepRegistered() {
  pthread_setname_np(pthread_self(), "wsync-client");
  bool lost = false;
  grpc_connectivity_state state = channel->GetState(true);
  while (WaitUnlessStopping(absl::ZeroDuration())) {
    if (state != GRPC_CHANNEL_READY) lost = true;
    if (state == GRPC_CHANNEL_READY && lost) {
      lost = !RegisterAgain().ok();
      if (lost && !WaitUnlessStopping(kKeeperPeriod)) return;
    }
    channel->WaitForStateChange(state, In(kKeeperPeriod));
    state = channel->GetState(true);
  }
}

}  // namespace wsync
