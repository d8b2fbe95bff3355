// What the sink's mind says and hears <-> coordinator.proto. Pure.
#ifndef WSYNC_SERVER_ROLLOUT_SINK_MESSAGES_H_
#define WSYNC_SERVER_ROLLOUT_SINK_MESSAGES_H_

#include <optional>

#include "server/rollout/sink_state.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

// ReadyChanged, Staged, Applied and Failed; nothing else is for a sink to say.
v1::MemberMessage ToProto(const sink::Report& report);
// Begin, Commit or Abort; nullopt for anything else.
std::optional<sink::Event> FromProto(const v1::CoordinatorMessage& message);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_SINK_MESSAGES_H_
