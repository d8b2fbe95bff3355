#include "server/rollout/sink_messages.h"

#include "server/rpc/convert.h"

namespace wsync {
namespace {

void Fill(const event::ReadyChanged& event, v1::MemberMessage* message) {
  v1::Ready* out = message->mutable_ready();
  out->set_ready(event.ready);
  out->set_reason(event.reason);
  *out->mutable_plan_hash() = ToProto(event.plan_hash);
  out->set_engine(event.engine);
  *out->mutable_serving() = ToProto(event.serving);
  out->set_torn(event.torn);
}

void Fill(const event::Staged& event, v1::MemberMessage* message) {
  v1::Staged* out = message->mutable_staged();
  out->set_epoch(event.epoch);
  out->set_version(event.version);
  *out->mutable_content_digest() = ToProto(event.digest);
  *out->mutable_timings() = ToProto(event.timings);
}

void Fill(const event::Applied& event, v1::MemberMessage* message) {
  v1::Applied* out = message->mutable_applied();
  out->set_epoch(event.epoch);
  out->set_version(event.version);
  *out->mutable_content_digest() = ToProto(event.digest);
  *out->mutable_timings() = ToProto(event.timings);
}

void Fill(const event::Failed& event, v1::MemberMessage* message) {
  v1::Failed* out = message->mutable_failed();
  out->set_epoch(event.epoch);
  out->set_version(event.version);
  out->set_phase(ToProto(event.phase));
  out->set_code(static_cast<int32_t>(event.status.code()));
  out->set_error(std::string(event.status.message()));
  out->set_torn(event.torn);
  out->set_bucket(event.bucket);
}

template <typename T>
void Fill(const T&, v1::MemberMessage*) {}  // events of others

absl::Status AbortStatus(const v1::Abort& abort) {
  const bool known = abort.code() > 0 && abort.code() <= static_cast<int32_t>(absl::StatusCode::kUnauthenticated);
  return absl::Status(known ? static_cast<absl::StatusCode>(abort.code()) : absl::StatusCode::kAborted, abort.error());
}

}  // namespace

v1::MemberMessage ToProto(const sink::Report& report) {
  v1::MemberMessage message;
  std::visit([&](const auto& event) { Fill(event, &message); }, report.message);
  return message;
}

std::optional<sink::Event> FromProto(const v1::CoordinatorMessage& message) {
  if (message.has_begin()) {
    const v1::Begin& begin = message.begin();
    return sink::Begin{begin.epoch(), begin.version(), FromProto(begin.plan_hash()), begin.session_token(),
                       begin.rank(),  begin.world(),   begin.data_address(),         begin.wide()};
  }
  if (message.has_commit()) {
    const v1::Commit& commit = message.commit();
    return sink::Commit{commit.epoch(), commit.version(), FromProto(commit.content_digest())};
  }
  if (message.has_abort()) {
    return sink::Abort{message.abort().epoch(), message.abort().version(), AbortStatus(message.abort())};
  }
  return std::nullopt;
}

}  // namespace wsync
