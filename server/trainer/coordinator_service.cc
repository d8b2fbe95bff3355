#include "server/trainer/coordinator_service.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/core/printable.h"
#include "server/rpc/convert.h"
#include "server/rpc/log.h"
#include "server/trainer/member_messages.h"

namespace wsync {
namespace {

// The answer must be there before the caller's own deadline cuts it off.
constexpr absl::Duration kAnswerInTime = absl::Milliseconds(200);
constexpr absl::Duration kLongestVerification = absl::Minutes(10);
// Each has a list of all members. People ask for one at a time.
constexpr size_t kMaxVerifications = 16;
constexpr size_t kMaxWatchers = 256;  // each costs a whole status on every change

absl::Status StoppedError() { return absl::UnavailableError("the trainer agent is shutting down: try again later"); }

// Refuses a call in the callback that opened it.
template <typename Reactor>
Reactor* Refused(const absl::Status& why) {
  struct Refusal final : Reactor {
    void OnDone() override { delete this; }
  };
  auto* refusal = new Refusal;
  refusal->Finish(ToGrpc(why));
  return refusal;
}

}  // namespace

CoordinatorService::CoordinatorService(Options options, ControlLoop* loop)
    : options_(std::move(options)), loop_(loop), catalog_(MakeCatalogMessages(nullptr)) {}

// ---- gRPC's threads

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* CoordinatorService::Member(
    grpc::CallbackServerContext* context) {
  using Base = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
  if (absl::Status status = options_.authorize(*context); !status.ok()) return Refused<Base>(status);
  MemberConnection::Handlers handlers;
  handlers.message = [this](Connection connection, v1::MemberMessage message) {
    const bool queued = loop_->Run([this, connection, message = std::move(message)] {
      Received(connection, message);
      connection->ReadNext();
    });
    if (!queued) connection->Close(StoppedError());
  };
  handlers.closed = [this](Connection connection, const std::string& why) {
    (void)loop_->Run([this, connection, why] { Closed(connection, why); });
  };
  Connection connection = MemberConnection::Open(context, next_id_.fetch_add(1), std::move(handlers));
  if (!loop_->Run([this, connection] { Opened(connection); })) connection->Close(StoppedError());
  return connection.get();
}

grpc::ServerUnaryReactor* CoordinatorService::GetStatus(grpc::CallbackServerContext* context,
                                                        const v1::GetStatusRequest*, v1::JobStatus* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (absl::Status status = options_.authorize(*context); !status.ok()) {
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  const bool queued = loop_->Run([this, reactor, reply] {
    *reply = options_.status();
    reactor->Finish(grpc::Status::OK);
  });
  if (!queued) reactor->Finish(ToGrpc(StoppedError()));
  return reactor;
}

grpc::ServerWriteReactor<v1::JobStatus>* CoordinatorService::WatchStatus(grpc::CallbackServerContext* context,
                                                                         const v1::WatchStatusRequest* request) {
  using Base = grpc::ServerWriteReactor<v1::JobStatus>;
  if (absl::Status status = options_.authorize(*context); !status.ok()) return Refused<Base>(status);
  auto watcher = WatchStream::Open(absl::Milliseconds(request->min_interval_ms()));
  const bool queued = loop_->Run([this, watcher] {
    if (!closed_.ok()) return watcher->Close(closed_);
    if (watchers_.size() >= kMaxWatchers) {
      return watcher->Close(absl::ResourceExhaustedError(
          absl::StrCat(kMaxWatchers, " callers watch this job already: end some, or ask for the status by itself")));
    }
    watchers_.push_back(watcher);
  });
  if (!queued) watcher->Close(StoppedError());
  return watcher.get();
}

grpc::ServerUnaryReactor* CoordinatorService::Verify(grpc::CallbackServerContext* context, const v1::VerifyRequest*,
                                                     v1::VerifyReply* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (absl::Status status = options_.authorize(*context); !status.ok()) {
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  const absl::Duration left = absl::FromChrono(context->deadline() - std::chrono::system_clock::now());
  const absl::Time deadline = MonotonicNow() + std::clamp(left - kAnswerInTime, kAnswerInTime, kLongestVerification);
  if (!loop_->Run([=, this] { StartVerification(deadline, reactor, reply); })) reactor->Finish(ToGrpc(StoppedError()));
  return reactor;
}

grpc::ServerUnaryReactor* CoordinatorService::Unfence(grpc::CallbackServerContext* context,
                                                      const v1::UnfenceRequest* request, v1::UnfenceReply* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (absl::Status status = options_.authorize(*context); !status.ok()) {
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  const bool queued = loop_->Run([this, reactor, reply, name = Printable(request->name(), kMaxShownName)] {
    loop_->Step(event::Unfence{name});  // answers by Carry
    for (const std::string& one : unfenced_.names) reply->add_names(one);
    reactor->Finish(ToGrpc(unfenced_.status));
  });
  if (!queued) reactor->Finish(ToGrpc(StoppedError()));
  return reactor;
}

// ---- members' messages, on the control thread

void CoordinatorService::StartVerification(absl::Time deadline, grpc::ServerUnaryReactor* reactor,
                                           v1::VerifyReply* reply) {
  if (!closed_.ok()) return reactor->Finish(ToGrpc(closed_));
  if (verifications_.size() >= kMaxVerifications) {
    return reactor->Finish(ToGrpc(absl::ResourceExhaustedError(
        absl::StrCat(kMaxVerifications, " deep verifications run already: wait for one of them to end"))));
  }
  const uint64_t id = ++last_verification_;
  verifications_.try_emplace(id, names_, deadline, reactor, reply);
  v1::CoordinatorMessage message;
  message.mutable_verify()->set_id(id);
  for (const auto& [member, connection] : members_) connection->Send(message);
}

absl::Time CoordinatorService::TellVerifications(absl::Time now) {
  absl::Time due = absl::InfiniteFuture();
  for (auto& [id, verification] : verifications_) {
    verification.Expire(now);
    due = std::min(due, verification.deadline());
  }
  std::erase_if(verifications_, [](const auto& entry) { return entry.second.done(); });
  return due;
}

void CoordinatorService::MemberGone(MemberId member, const std::string& why) {
  names_.erase(member);
  for (auto& [id, verification] : verifications_) verification.Gone(member, why);
}

void CoordinatorService::Opened(const Connection& connection) {
  if (!closed_.ok()) return Refuse(connection, closed_, /*retry=*/true);
  waiting_[connection->id()] = {connection, MonotonicNow()};
  connection->ReadNext();
}

void CoordinatorService::Received(const Connection& connection, const v1::MemberMessage& message) {
  if (members_.contains(connection->id())) return StepFor(connection, message);
  if (waiting_.erase(connection->id()) == 0) return;  // refused meanwhile
  if (!message.has_join()) {
    return Refuse(connection, absl::InvalidArgumentError("the first message of a member must be `join`"), false);
  }
  Join(connection, message.join());
}

void CoordinatorService::Closed(const Connection& connection, const std::string& why) {
  waiting_.erase(connection->id());
  if (members_.erase(connection->id()) == 0) return;
  MemberGone(connection->id(), why);
  loop_->Step(event::Lost{connection->id(), why});
}

void CoordinatorService::Join(const Connection& connection, const v1::Join& join) {
  (void)WSYNC_FAILPOINT("trainer.join");
  if (absl::Status status = CheckJoin(join, options_.join); !status.ok()) {
    LogWarn("a rollout agent was refused", {{"peer", connection->peer()},
                                            {"name", Printable(join.name(), kMaxShownName)},
                                            {"reason", std::string(status.message())}});
    return Refuse(connection, status, /*retry=*/false);
  }
  members_[connection->id()] = connection;
  names_[connection->id()] = join.name();
  loop_->Step(JoinedFrom(connection->id(), join, options_.join, connection->peer()));
}

void CoordinatorService::StepFor(const Connection& connection, const v1::MemberMessage& message) {
  const MemberId id = connection->id();
  if (message.has_verified()) {
    const auto it = verifications_.find(message.verified().id());
    if (it != verifications_.end()) it->second.Answer(id, message.verified());
    return;
  }
  const std::optional<Event> event = EventFrom(id, message);
  if (!event.has_value()) {
    members_.erase(id);
    MemberGone(id, "it broke the protocol");
    Refuse(connection, absl::InvalidArgumentError("a member that has joined sent a second `join` or an empty message"),
           /*retry=*/false);
    return loop_->Step(event::Lost{id, "it broke the protocol"});
  }
  if (message.has_leave()) {
    members_.erase(id);
    MemberGone(id, "it left");
    connection->Close(absl::OkStatus());
  }
  if (message.has_staged()) (void)WSYNC_FAILPOINT("trainer.staged");
  if (message.has_applied()) (void)WSYNC_FAILPOINT("trainer.applied");
  loop_->Step(*event);
  if (message.has_heartbeat()) connection->Send(HeartbeatAckMessage());
}

void CoordinatorService::Refuse(const Connection& connection, const absl::Status& why, bool retry) {
  connection->Send(RefusedMessage(why, retry));
  connection->Close(why);
}

// ---- actions

void CoordinatorService::SendTo(MemberId member, const v1::CoordinatorMessage& message) {
  const auto it = members_.find(member);
  if (it != members_.end()) it->second->Send(message);
}

void CoordinatorService::Carry(const action::SendWelcome& action) {
  SendTo(action.member, WelcomeMessage(action, options_.heartbeat, options_.heartbeat_timeout));
}

void CoordinatorService::Carry(const action::SendCatalog& action) {
  (void)WSYNC_FAILPOINT("trainer.catalog");
  const auto it = members_.find(action.member);
  if (it != members_.end()) it->second->Send(catalog_.chunks);
}

void CoordinatorService::Carry(const action::SendBegin& action) {
  (void)WSYNC_FAILPOINT("trainer.begin");
  SendTo(action.member, BeginMessage(action, catalog_.plan_hash, options_.data_address));
}

void CoordinatorService::Carry(const action::SendCommit& action) {
  (void)WSYNC_FAILPOINT("trainer.commit");
  SendTo(action.member, CommitMessage(action));
}

void CoordinatorService::Carry(const action::SendAbort& action) { SendTo(action.member, AbortMessage(action)); }

void CoordinatorService::Carry(const action::Refuse& action) {
  const auto node = members_.extract(action.member);
  MemberGone(action.member, "it was refused");
  if (!node.empty()) Refuse(node.mapped(), action.status, action.retry);
}

void CoordinatorService::Carry(const action::Disconnect& action) {
  const auto node = members_.extract(action.member);
  MemberGone(action.member, action.reason);
  if (!node.empty()) node.mapped()->Close(absl::UnavailableError(action.reason));
}

absl::Time CoordinatorService::Tell(absl::Time now) {
  absl::Time due = TellVerifications(now);
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const auto& [connection, since] = it->second;
    const absl::Time last_chance = since + options_.heartbeat_timeout;
    due = std::min(due, last_chance);
    if (now < last_chance) {
      ++it;
      continue;
    }
    Refuse(connection, absl::DeadlineExceededError("no `join` came: is this a wsync-rollout?"), /*retry=*/false);
    it = waiting_.erase(it);
  }
  watchers_.remove_if([](const auto& watcher) { return watcher->closed(); });
  for (const auto& watcher : watchers_) due = std::min(due, watcher->Update(now, loop_->changes(), options_.status));
  return due;
}

void CoordinatorService::CloseAll(const absl::Status& why) {
  closed_ = why;
  for (const auto& [id, connection] : members_) Refuse(connection, why, /*retry=*/true);
  for (const auto& [id, entry] : waiting_) Refuse(entry.first, why, /*retry=*/true);
  for (const auto& watcher : watchers_) watcher->Close(why);
  members_.clear();
  names_.clear();
  verifications_.clear();
  waiting_.clear();
  watchers_.clear();
}

}  // namespace wsync
