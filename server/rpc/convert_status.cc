#include <algorithm>
#include <cmath>
#include <utility>

#include "server/rpc/convert.h"
#include "server/rpc/message_budget.h"
#include "server/rpc/version.h"

namespace wsync {
namespace {

constexpr double kMaxTimingMs = 1e9;  // eleven days: beyond it a peer's clock is broken

double Ms(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

// Timings are shown, never acted upon: what cannot be true becomes 0 instead of an error that fails a version.
absl::Duration TimingFromProto(double ms) {
  const bool plausible = std::isfinite(ms) && ms >= 0 && ms <= kMaxTimingMs;
  return plausible ? absl::Milliseconds(ms) : absl::ZeroDuration();
}

v1::OutcomeCode ToProto(ReplicaResult result) {
  switch (result) {
    case ReplicaResult::kApplied:
      return v1::OUTCOME_APPLIED;
    case ReplicaResult::kLeftOut:
      return v1::OUTCOME_LEFT_OUT;
    case ReplicaResult::kTorn:
      return v1::OUTCOME_TORN;
  }
  return v1::OUTCOME_UNSPECIFIED;
}

v1::SyncState ToProto(SyncState state) {
  switch (state) {
    case SyncState::kInSync:
      return v1::SYNC_STATE_IN_SYNC;
    case SyncState::kSyncing:
      return v1::SYNC_STATE_SYNCING;
    case SyncState::kDegraded:
      return v1::SYNC_STATE_DEGRADED;
    case SyncState::kEmpty:
      return v1::SYNC_STATE_EMPTY;
  }
  return v1::SYNC_STATE_UNSPECIFIED;
}

const char* SeverityName(action::Log::Severity severity) {
  switch (severity) {
    case action::Log::kInfo:
      return "info";
    case action::Log::kWarn:
      return "warn";
    case action::Log::kError:
      return "error";
  }
  return "info";
}

v1::CatalogStatus CatalogToProto(const PlanInfo& plan) {
  v1::CatalogStatus proto;
  proto.set_registered(true);
  *proto.mutable_fingerprint() = ToProto(plan.catalog_fingerprint);
  *proto.mutable_plan_hash() = ToProto(plan.plan_hash);
  proto.set_tensors(plan.tensors);
  proto.set_quantized_tensors(plan.quantized_tensors);
  proto.set_source_bytes(static_cast<uint64_t>(plan.source_bytes));
  proto.set_payload_bytes(static_cast<uint64_t>(plan.payload_bytes));
  proto.set_wire_bytes(static_cast<uint64_t>(plan.wire_bytes));
  proto.set_buckets(plan.buckets);
  return proto;
}

v1::RoundStatus RoundToProto(const RoundStatus& round) {
  v1::RoundStatus proto;
  proto.set_version(round.version);
  proto.set_phase(round.phase);
  proto.set_age_s(absl::ToDoubleSeconds(round.age));
  proto.set_catch_up(round.catch_up);
  proto.set_participants(round.participants);
  return proto;
}

v1::MemberStatus MemberToProto(const MemberStatus& member) {
  v1::MemberStatus proto;
  proto.set_name(member.info.name);
  proto.set_role("rollout");
  proto.set_replica(member.info.replica);
  proto.set_rank(member.info.rank);
  proto.set_replica_size(member.info.replica_size);
  proto.set_host(member.info.host);
  proto.set_pid(member.info.pid);
  proto.set_backend(member.info.backend);
  proto.set_engine(member.engine);
  proto.set_state(member.state);
  proto.set_phase(std::string(MemberPhaseName(member.phase)));
  *proto.mutable_serving() = ToProto(member.serving);
  proto.set_lag(member.lag);
  proto.set_last_seen_s(absl::ToDoubleSeconds(member.last_seen));
  proto.set_received_fraction(member.received_fraction);
  proto.set_last_error(WireText(member.last_error));
  return proto;
}

// The version that is committed, also where its report was not kept.
v1::VersionReport LastVersion(const StatusSnapshot& snapshot) {
  if (snapshot.last_report.has_value()) return ToProto(*snapshot.last_report);
  v1::VersionReport proto;
  proto.set_version(snapshot.committed.version);
  *proto.mutable_content_digest() = ToProto(snapshot.committed.digest);
  return proto;
}

}  // namespace

v1::ServedVersion ToProto(const ServedVersion& served) {
  v1::ServedVersion proto;
  proto.set_version(served.version);
  *proto.mutable_content_digest() = ToProto(served.digest);
  return proto;
}

ServedVersion FromProto(const v1::ServedVersion& served) {
  return ServedVersion{.version = served.version(), .digest = FromProto(served.content_digest())};
}

v1::StageTimings ToProto(const StageTimings& timings) {
  v1::StageTimings proto;
  proto.set_encode_ms(Ms(timings.encode));
  proto.set_transfer_ms(Ms(timings.transfer));
  proto.set_check_ms(Ms(timings.check));
  proto.set_apply_ms(Ms(timings.apply));
  proto.set_pause_ms(Ms(timings.pause));
  return proto;
}

StageTimings FromProto(const v1::StageTimings& timings) {
  return StageTimings{.encode = TimingFromProto(timings.encode_ms()),
                      .transfer = TimingFromProto(timings.transfer_ms()),
                      .check = TimingFromProto(timings.check_ms()),
                      .apply = TimingFromProto(timings.apply_ms()),
                      .pause = TimingFromProto(timings.pause_ms())};
}

// The wire's numbers are ours.
v1::MemberPhase ToProto(MemberPhase phase) { return static_cast<v1::MemberPhase>(phase); }

MemberPhase FromProto(v1::MemberPhase phase) {
  const bool known = v1::MemberPhase_IsValid(phase) && phase != v1::MEMBER_PHASE_UNSPECIFIED;
  return known ? static_cast<MemberPhase>(phase) : MemberPhase::kIdle;
}

v1::VersionReport ToProto(const VersionReport& report) {
  v1::VersionReport proto;
  proto.set_version(report.version);
  *proto.mutable_content_digest() = ToProto(report.digest);
  proto.set_payload_bytes(static_cast<uint64_t>(report.plan.payload_bytes));
  proto.set_wire_bytes(static_cast<uint64_t>(report.plan.wire_bytes));
  proto.set_tensors(report.plan.tensors);
  MessageBudget replicas(kReplicaListBytes);
  for (const ReplicaOutcome& outcome : report.replicas) {
    v1::ReplicaOutcome replica;
    replica.set_replica(outcome.replica);
    replica.set_outcome(ToProto(outcome.result));
    replica.set_reason(WireText(outcome.reason));
    *replica.mutable_timings() = ToProto(outcome.timings);
    if (replicas.Take(replica)) *proto.add_replicas() = std::move(replica);
  }
  proto.set_replicas_omitted(replicas.omitted());
  proto.set_encode_ms(Ms(report.encode));
  proto.set_released_ms(Ms(report.released));
  proto.set_staged_ms(Ms(report.staged));
  proto.set_committed_ms(Ms(report.committed));
  proto.set_already_committed(report.already_committed);
  return proto;
}

v1::JobStatus ToProto(const StatusSnapshot& snapshot, absl::Time now, absl::Time wall_now) {
  v1::JobStatus proto;
  proto.set_job(snapshot.job);
  proto.set_software(std::string(kSoftware));
  proto.set_epoch(snapshot.epoch);
  proto.set_policy(snapshot.policy);
  proto.set_min_replicas(snapshot.min_replicas);
  proto.set_state(ToProto(snapshot.state));
  proto.set_reason(WireText(snapshot.reason));
  proto.set_backend(snapshot.backend);
  if (snapshot.plan.has_value()) *proto.mutable_catalog() = CatalogToProto(*snapshot.plan);
  if (snapshot.last_report.has_value() || snapshot.committed.version > 0) {
    *proto.mutable_last_version() = LastVersion(snapshot);
    proto.set_last_version_age_s(absl::ToDoubleSeconds(snapshot.last_report_age));
  }
  if (snapshot.round.has_value()) *proto.mutable_round() = RoundToProto(*snapshot.round);
  MessageBudget members(kMemberListBytes);
  for (const MemberStatus& member : snapshot.members) {
    v1::MemberStatus row = MemberToProto(member);
    if (members.Take(row)) *proto.add_members() = std::move(row);
  }
  proto.set_members_omitted(members.omitted());
  MessageBudget events(kEventListBytes);  // of the newest, which are last
  for (auto event = snapshot.events.rbegin(); event != snapshot.events.rend(); ++event) {
    v1::StatusEvent shown;
    shown.set_unix_ms(absl::ToUnixMillis(wall_now - (now - event->when)));
    shown.set_severity(SeverityName(event->severity));
    shown.set_text(WireText(event->text));
    if (events.Take(shown)) *proto.add_events() = std::move(shown);
  }
  std::reverse(proto.mutable_events()->begin(), proto.mutable_events()->end());
  proto.set_events_omitted(events.omitted());
  return proto;
}

}  // namespace wsync
