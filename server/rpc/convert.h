// proto <-> core, and gRPC status <-> absl status. Nothing from a peer is believed unchecked: every FromProto
// validates.
#ifndef WSYNC_SERVER_RPC_CONVERT_H_
#define WSYNC_SERVER_RPC_CONVERT_H_

#include <grpcpp/support/status.h>

#include "absl/status/statusor.h"
#include "server/backend/memory.h"
#include "server/core/coordinator.h"
#include "server/core/destinations.h"
#include "server/core/events.h"
#include "server/core/plan.h"
#include "server/core/status.h"
#include "server/rpc/wire_text.h"
#include "wsync/v1/config.pb.h"
#include "wsync/v1/coordinator.pb.h"
#include "wsync/v1/rollout.pb.h"
#include "wsync/v1/trainer.pb.h"
#include "wsync/v1/types.pb.h"

namespace wsync {

// Messages that would not fit gRPC's 8 KiB of trailing metadata are cut, with "... (n bytes more)" in place of the
// rest.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

v1::Hash ToProto(const Hash128& hash);
Hash128 FromProto(const v1::Hash& hash);
v1::Tensor ToProto(const Tensor& tensor);
absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor);  // INVALID_ARGUMENT: unknown dtype, negative dimension
v1::RecipeRules ToProto(const RecipeRules& rules);
absl::StatusOr<RecipeRules> FromProto(const v1::RecipeRules& rules);
// INVALID_ARGUMENT: a list that is too long, or an entry.
absl::Status CheckModulesToNotConvert(const google::protobuf::RepeatedPtrField<std::string>& modules);
// INVALID_ARGUMENT: rules that no sink would take: FromProto refuses them, or they do not fit one message.
absl::Status CheckSendable(const RecipeRules& rules);
absl::StatusOr<RecipeRules> FromConfig(const v1::RecipeConfig& config);
v1::MemoryHandle ToProto(const MemoryHandle& handle);
absl::StatusOr<MemoryHandle> FromProto(const v1::MemoryHandle& handle);
EventHandle FromProto(const v1::StreamEvent& event);  // checked by Memory::CheckEvent
v1::ServedVersion ToProto(const ServedVersion& served);
ServedVersion FromProto(const v1::ServedVersion& served);
v1::StageTimings ToProto(const StageTimings& timings);
StageTimings FromProto(const v1::StageTimings& timings);  // negative, infinite or NaN: 0
v1::MemberPhase ToProto(MemberPhase phase);
MemberPhase FromProto(v1::MemberPhase phase);  // unknown numbers become kIdle
absl::StatusOr<Destination> FromProto(const v1::Destination& destination);
v1::Destination ToProto(const Destination& destination);
v1::VersionReport ToProto(const VersionReport& report);
// Status as the wire shows it. `now` and `wall_now` turn monotonic event times into wall-clock ones. Members are the
// rollouts; the trainer's own row and `uptime_s` are the caller's to add.
v1::JobStatus ToProto(const StatusSnapshot& snapshot, absl::Time now, absl::Time wall_now);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONVERT_H_
