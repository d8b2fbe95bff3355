// The coordinator protocol's messages, to and from the core's events and actions. Pure functions.
#ifndef WSYNC_SERVER_TRAINER_MEMBER_MESSAGES_H_
#define WSYNC_SERVER_TRAINER_MEMBER_MESSAGES_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

// What members must have in common with the trainer agent, or must not.
struct JoinRules {
  std::string job;
  std::string backend;
  std::string transport;  // Backend::fingerprint: a mismatch would be a hang within NCCL
  std::string device_id;  // of the trainer agent; NCCL takes one rank per GPU
  std::string host;       // of the trainer agent
};

// What is wrong with a join before the coordinator even looks at it, and what to do about it: another protocol, job,
// backend or transport, the trainer's own GPU, a rank outside its replica, names that are missing, too long or not fit
// to be shown.
absl::Status CheckJoin(const v1::Join& join, const JoinRules& rules);
// `peer`: where it comes from, as gRPC says it.
event::Joined JoinedFrom(MemberId member, const v1::Join& join, const JoinRules& rules, const std::string& peer);
// Texts of the message are bounded and fit to be shown; numbers that cannot be become the nearest that can.
std::string ReasonFrom(const std::string& text);
absl::StatusCode CodeFromProto(int32_t code);  // UNKNOWN for what is none, and for OK: who says so has failed
// The event that a message of a joined member means; nullopt for what such a member must not send.
std::optional<Event> EventFrom(MemberId member, const v1::MemberMessage& message);

v1::CoordinatorMessage WelcomeMessage(const action::SendWelcome& action, absl::Duration heartbeat,
                                      absl::Duration heartbeat_timeout);
v1::CoordinatorMessage BeginMessage(const action::SendBegin& action, const Hash128& plan_hash,
                                    const std::string& data_address);
v1::CoordinatorMessage CommitMessage(const action::SendCommit& action);
v1::CoordinatorMessage AbortMessage(const action::SendAbort& action);
v1::CoordinatorMessage RefusedMessage(const absl::Status& why, bool retry);
v1::CoordinatorMessage HeartbeatAckMessage();

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_MEMBER_MESSAGES_H_
