#include "server/trainer/member_messages.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/rpc/version.h"

namespace wsync {
namespace {

constexpr size_t kMaxMemberNameBytes = 512;   // of any name a member gives: they end up in logs and tables
constexpr size_t kMaxTransportBytes = 16384;  // NCCL_* variables may be dozens, with lists of devices in them
constexpr size_t kMaxReasonBytes = 4096;      // of explanations: enough for the first names of a long list
constexpr int32_t kMaxReplicaSize = 4096;

std::string Cut(const std::string& text, size_t bytes) { return text.substr(0, bytes); }

event::Failed FailedFrom(MemberId member, const v1::Failed& m) {
  absl::Status why(static_cast<absl::StatusCode>(m.code()), Cut(m.error(), kMaxReasonBytes));
  if (why.ok()) why = absl::UnknownError(Cut(m.error(), kMaxReasonBytes));
  return {member, m.epoch(), m.version(), FromProto(m.phase()), std::move(why), m.torn(), m.bucket()};
}

}  // namespace

absl::Status CheckJoin(const v1::Join& join, const JoinRules& rules) {
  for (const std::string* text : {&join.job(), &join.name(), &join.replica(), &join.host(), &join.backend(),
                                  &join.software(), &join.device_id()}) {
    if (text->size() > kMaxMemberNameBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a name in `join` has ", text->size(), " bytes; at most ", kMaxMemberNameBytes, " are allowed"));
    }
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
        absl::StrCat("'", join.name(), "' would move weights by '", join.transport(), "', the trainer agent by '",
                     rules.transport, "': use the same NCCL library, environment and transfer.nccl_max_ctas on both"));
  }
  if (!join.device_id().empty() && join.device_id() == rules.device_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", join.name(), "' is on GPU ", join.device_id(),
                     ", which is the trainer agent's own: NCCL takes one rank per GPU; set transfer.device"));
  }
  return absl::OkStatus();
}

event::Joined JoinedFrom(MemberId member, const v1::Join& join, const JoinRules& rules) {
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
  joined.info.group = join.group();
  return joined;
}

std::optional<Event> EventFrom(MemberId member, const v1::MemberMessage& message) {
  switch (message.message_case()) {
    case v1::MemberMessage::kReady: {
      const v1::Ready& m = message.ready();
      return event::ReadyChanged{member,
                                 m.ready(),
                                 Cut(m.reason(), kMaxReasonBytes),
                                 FromProto(m.plan_hash()),
                                 Cut(m.engine(), kMaxMemberNameBytes),
                                 FromProto(m.serving()),
                                 m.torn()};
    }
    case v1::MemberMessage::kHeartbeat: {
      const v1::Heartbeat& m = message.heartbeat();
      return event::HeartbeatSeen{member, m.epoch(), m.version(), FromProto(m.phase()), m.received_bytes(), m.bucket()};
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
      return event::Left{member, Cut(message.leave().reason(), kMaxReasonBytes)};
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
