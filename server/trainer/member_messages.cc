#include "server/trainer/member_messages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/printable.h"
#include "server/rpc/convert.h"
#include "server/rpc/version.h"

namespace wsync {
namespace {

constexpr size_t kMaxMemberNameBytes = 256;  // of any name a member gives: they end up in logs and tables
constexpr size_t kIncarnationBytes = 16;
constexpr size_t kMaxTransportBytes = 16384;  // NCCL_* variables may be dozens, with lists of devices in them
constexpr size_t kMaxReasonBytes = 2048;      // of explanations: enough for the first names of a long list
constexpr int32_t kMaxReplicaSize = 4096;
constexpr int32_t kMaxGroup = 4096;  // as many members as there may be

event::Failed FailedFrom(MemberId member, const v1::Failed& m) {
  const absl::Status why(CodeFromProto(m.code()), ReasonFrom(m.error()));
  return {member, m.epoch(), m.version(), FromProto(m.phase()), why, m.torn(), std::max<int64_t>(m.bucket(), -1)};
}

// "ipv4:10.0.0.7:51234" without the port, which changes with every connection.
std::string HostOf(const std::string& peer) { return Printable(peer.substr(0, peer.rfind(':')), kMaxMemberNameBytes); }

Hash128 IncarnationOf(const std::string& bytes) {
  Hash128 key;
  for (size_t i = 0; i < bytes.size(); ++i) {
    uint64_t& half = i < kIncarnationBytes / 2 ? key.high : key.low;
    half = half << 8 | static_cast<unsigned char>(bytes[i]);
  }
  return key;
}

absl::Status CheckNames(const v1::Join& join) {
  for (const std::string* text : {&join.job(), &join.name(), &join.replica(), &join.host(), &join.backend(),
                                  &join.software(), &join.device_id()}) {
    if (text->size() > kMaxMemberNameBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a name in `join` has ", text->size(), " bytes; at most ", kMaxMemberNameBytes, " are allowed"));
    }
    if (Printable(*text) != *text) {
      return absl::InvalidArgumentError(absl::StrCat("a name in `join` is '", Printable(*text),
                                                     "': control characters and what is no UTF-8 are not allowed in "
                                                     "names, which people read"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string ReasonFrom(const std::string& text) { return PrintableLines(text, kMaxReasonBytes); }

absl::StatusCode CodeFromProto(int32_t code) {
  const bool known = code > 0 && code <= static_cast<int32_t>(absl::StatusCode::kUnauthenticated);
  return known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown;
}

absl::Status CheckJoin(const v1::Join& join, const JoinRules& rules) {
  if (absl::Status status = CheckNames(join); !status.ok()) return status;
  if (!join.incarnation().empty() && join.incarnation().size() != kIncarnationBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the incarnation of '", join.name(), "' has ",
                                                   join.incarnation().size(), " bytes; it takes ", kIncarnationBytes));
  }
  if (join.transport().size() > kMaxTransportBytes) {
    return absl::InvalidArgumentError(absl::StrCat("what `join` says of NCCL's environment has ",
                                                   join.transport().size(), " bytes; at most ", kMaxTransportBytes,
                                                   " are allowed: unset NCCL_* variables that are not needed"));
  }
  if (join.protocol() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the trainer agent speaks protocol ", kProtocolVersion, ", '",
                                                      join.software(), "' speaks ", join.protocol(),
                                                      ": run the same release of wsync on both sides"));
  }
  if (join.job() != rules.job) {
    return absl::FailedPreconditionError(
        absl::StrCat("this trainer agent runs job '", rules.job, "', the rollout agent belongs to job '", join.job(),
                     "': make `job` the same in both configurations, or dial the right coordinator"));
  }
  if (join.name().empty() || join.replica().empty()) {
    return absl::InvalidArgumentError("`join` needs a name and a replica");
  }
  if (join.replica_size() < 1 || join.replica_size() > kMaxReplicaSize || join.rank() < 0 ||
      join.rank() >= join.replica_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", join.name(), "' says it is rank ", join.rank(), " of ", join.replica_size(),
                     ": ranks go from 0 to replica_size - 1, and replica_size to ", kMaxReplicaSize));
  }
  if (join.backend() != rules.backend) {
    return absl::FailedPreconditionError(absl::StrCat("'", join.name(), "' has backend '", join.backend(),
                                                      "', the trainer agent '", rules.backend,
                                                      "': make transfer.backend the same in both configurations"));
  }
  if (join.transport() != rules.transport) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", join.name(), "' would move weights by '", Printable(join.transport(), kMaxReasonBytes),
                     "', the trainer agent by '", rules.transport,
                     "': use the same NCCL library, environment and transfer.nccl_max_ctas on both"));
  }
  if (!join.device_id().empty() && join.device_id() == rules.device_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", join.name(), "' is on GPU ", join.device_id(),
                     ", which is the trainer agent's own: NCCL takes one rank per GPU; set transfer.device"));
  }
  return absl::OkStatus();
}

event::Joined JoinedFrom(MemberId member, const v1::Join& join, const JoinRules& rules, const std::string& peer) {
  event::Joined joined;
  joined.member = member;
  joined.info.name = join.name();
  joined.info.replica = join.replica();
  joined.info.rank = join.rank();
  joined.info.replica_size = join.replica_size();
  joined.info.host = join.host();
  joined.info.pid = join.pid();
  joined.info.backend = join.backend();
  joined.info.software = join.software();
  joined.info.device_id = join.device_id();
  joined.info.wide = join.idle_receiver() && join.host() == rules.host;
  joined.info.serving = FromProto(join.serving());
  joined.info.group = std::clamp(join.group(), 0, kMaxGroup);
  joined.info.incarnation = IncarnationOf(join.incarnation());
  joined.info.peer = HostOf(peer);
  return joined;
}

std::optional<Event> EventFrom(MemberId member, const v1::MemberMessage& message) {
  switch (message.message_case()) {
    case v1::MemberMessage::kReady: {
      const v1::Ready& m = message.ready();
      return event::ReadyChanged{member,
                                 m.ready(),
                                 ReasonFrom(m.reason()),
                                 FromProto(m.plan_hash()),
                                 Printable(m.engine(), kMaxMemberNameBytes),
                                 FromProto(m.serving()),
                                 m.torn()};
    }
    case v1::MemberMessage::kHeartbeat: {
      const v1::Heartbeat& m = message.heartbeat();
      return event::HeartbeatSeen{
          member, m.epoch(), m.version(), FromProto(m.phase()), m.received_bytes(), std::max<int64_t>(m.bucket(), -1)};
    }
    case v1::MemberMessage::kStaged: {
      const v1::Staged& m = message.staged();
      return event::Staged{member, m.epoch(), m.version(), FromProto(m.content_digest()), FromProto(m.timings())};
    }
    case v1::MemberMessage::kApplied: {
      const v1::Applied& m = message.applied();
      return event::Applied{member, m.epoch(), m.version(), FromProto(m.content_digest()), FromProto(m.timings())};
    }
    case v1::MemberMessage::kFailed:
      return FailedFrom(member, message.failed());
    case v1::MemberMessage::kLeave:
      return event::Left{member, ReasonFrom(message.leave().reason())};
    case v1::MemberMessage::kJoin:
    case v1::MemberMessage::kVerified:
    case v1::MemberMessage::MESSAGE_NOT_SET:
      return std::nullopt;
  }
  return std::nullopt;
}

v1::CoordinatorMessage WelcomeMessage(const action::SendWelcome& action, absl::Duration heartbeat,
                                      absl::Duration heartbeat_timeout) {
  v1::CoordinatorMessage message;
  v1::Welcome* welcome = message.mutable_welcome();
  welcome->set_heartbeat_ms(absl::ToInt64Milliseconds(heartbeat));
  welcome->set_heartbeat_timeout_ms(absl::ToInt64Milliseconds(heartbeat_timeout));
  *welcome->mutable_committed() = ToProto(action.committed);
  return message;
}

v1::CoordinatorMessage BeginMessage(const action::SendBegin& action, const Hash128& plan_hash,
                                    const std::string& data_address) {
  v1::CoordinatorMessage message;
  v1::Begin* begin = message.mutable_begin();
  begin->set_epoch(action.epoch);
  begin->set_version(action.version);
  *begin->mutable_plan_hash() = ToProto(plan_hash);
  begin->set_session_token(action.session);
  begin->set_rank(action.rank);
  begin->set_world(action.world);
  begin->set_group(action.group);
  begin->set_wide(action.wide);
  begin->set_data_address(data_address);
  return message;
}

v1::CoordinatorMessage CommitMessage(const action::SendCommit& action) {
  v1::CoordinatorMessage message;
  v1::Commit* commit = message.mutable_commit();
  commit->set_epoch(action.epoch);
  commit->set_version(action.version);
  *commit->mutable_content_digest() = ToProto(action.digest);
  return message;
}

v1::CoordinatorMessage AbortMessage(const action::SendAbort& action) {
  v1::CoordinatorMessage message;
  v1::Abort* abort = message.mutable_abort();
  abort->set_epoch(action.epoch);
  abort->set_version(action.version);
  abort->set_code(static_cast<int32_t>(action.status.code()));
  abort->set_error(WireText(action.status.message()));
  return message;
}

v1::CoordinatorMessage RefusedMessage(const absl::Status& why, bool retry) {
  v1::CoordinatorMessage message;
  v1::Refused* refused = message.mutable_refused();
  refused->set_code(static_cast<int32_t>(why.code()));
  refused->set_error(WireText(why.message()));
  refused->set_retry(retry);
  return message;
}

v1::CoordinatorMessage HeartbeatAckMessage() {
  v1::CoordinatorMessage message;
  message.mutable_heartbeat_ack();
  return message;
}

}  // namespace wsync
