#include "server/trainer/coordinator_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rpc/convert.h"
#include "server/rpc/log.h"
#include "server/trainer/member_messages.h"

namespace wsync {
namespace {

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
  MemberStream::Handlers handlers;
  handlers.message = [this](Stream stream, v1::MemberMessage message) {
    const bool queued = loop_->Run([this, stream, message = std::move(message)] {
      Received(stream, message);
      stream->ReadNext();
    });
    if (!queued) stream->Close(StoppedError());
  };
  handlers.closed = [this](Stream stream) { (void)loop_->Run([this, stream] { Closed(stream); }); };
  Stream stream = MemberStream::Open(context, next_id_.fetch_add(1), std::move(handlers));
  if (!loop_->Run([this, stream] { Opened(stream); })) stream->Close(StoppedError());
  return stream.get();
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
    watchers_.push_back(watcher);
  });
  if (!queued) watcher->Close(StoppedError());
  return watcher.get();
}

// ---- members' messages, on the control thread

void CoordinatorService::Opened(const Stream& stream) {
  if (!closed_.ok()) return Refuse(stream, closed_, /*retry=*/true);
  waiting_[stream->id()] = {stream, MonotonicNow()};
  stream->ReadNext();
}

void CoordinatorService::Received(const Stream& stream, const v1::MemberMessage& message) {
  if (members_.contains(stream->id())) return StepFor(stream, message);
  if (waiting_.erase(stream->id()) == 0) return;  // refused meanwhile
  if (!message.has_join()) {
    return Refuse(stream, absl::InvalidArgumentError("the first message of a member must be `join`"), false);
  }
  Join(stream, message.join());
}

void CoordinatorService::Closed(const Stream& stream) {
  waiting_.erase(stream->id());
  if (members_.erase(stream->id()) == 0) return;
  loop_->Step(event::Lost{stream->id(), "its connection broke"});
}

void CoordinatorService::Join(const Stream& stream, const v1::Join& join) {
  if (absl::Status status = CheckJoin(join, options_.job, options_.backend); !status.ok()) {
    LogWarn("a rollout agent was refused",
            {{"name", WireText(join.name())}, {"reason", std::string(status.message())}});
    return Refuse(stream, status, /*retry=*/false);
  }
  members_[stream->id()] = stream;
  loop_->Step(JoinedFrom(stream->id(), join));
}

void CoordinatorService::StepFor(const Stream& stream, const v1::MemberMessage& message) {
  const MemberId id = stream->id();
  const std::optional<Event> event = EventFrom(id, message);
  if (!event.has_value()) {
    members_.erase(id);
    Refuse(stream, absl::InvalidArgumentError("a member that has joined sent a second `join` or an empty message"),
           /*retry=*/false);
    return loop_->Step(event::Lost{id, "it broke the protocol"});
  }
  if (message.has_leave()) {
    members_.erase(id);
    stream->Close(absl::OkStatus());
  }
  loop_->Step(*event);
  if (message.has_heartbeat()) stream->Send(HeartbeatAckMessage());
}

void CoordinatorService::Refuse(const Stream& stream, const absl::Status& why, bool retry) {
  stream->Send(RefusedMessage(why, retry));
  stream->Close(why);
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
  const auto it = members_.find(action.member);
  if (it != members_.end()) it->second->Send(catalog_.chunks);
}

void CoordinatorService::Carry(const action::SendBegin& action) {
  SendTo(action.member, BeginMessage(action, catalog_.plan_hash, options_.data_address));
}

void CoordinatorService::Carry(const action::SendCommit& action) { SendTo(action.member, CommitMessage(action)); }

void CoordinatorService::Carry(const action::SendAbort& action) { SendTo(action.member, AbortMessage(action)); }

void CoordinatorService::Carry(const action::Refuse& action) {
  const auto node = members_.extract(action.member);
  if (!node.empty()) Refuse(node.mapped(), action.status, action.retry);
}

void CoordinatorService::Carry(const action::Disconnect& action) {
  const auto node = members_.extract(action.member);
  if (!node.empty()) node.mapped()->Close(absl::UnavailableError(action.reason));
}

absl::Time CoordinatorService::Tell(absl::Time now) {
  absl::Time due = absl::InfiniteFuture();
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const auto& [stream, since] = it->second;
    const absl::Time last_chance = since + options_.heartbeat_timeout;
    due = std::min(due, last_chance);
    if (now < last_chance) {
      ++it;
      continue;
    }
    Refuse(stream, absl::DeadlineExceededError("no `join` came: is this a wsync-rollout?"), /*retry=*/false);
    it = waiting_.erase(it);
  }
  watchers_.remove_if([](const auto& watcher) { return watcher->closed(); });
  for (const auto& watcher : watchers_) due = std::min(due, watcher->Update(now, loop_->changes(), options_.status));
  return due;
}

void CoordinatorService::CloseAll(const absl::Status& why) {
  closed_ = why;
  for (const auto& [id, stream] : members_) Refuse(stream, why, /*retry=*/true);
  for (const auto& [id, entry] : waiting_) Refuse(entry.first, why, /*retry=*/true);
  for (const auto& watcher : watchers_) watcher->Close(why);
  members_.clear();
  waiting_.clear();
  watchers_.clear();
}

}  // namespace wsync
