#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "server/rpc/convert.h"
#include "server/rpc/version.h"

namespace wsync {
namespace {

constexpr Hash128 kDigest{1, 2};

VersionReport MakeReport() {
  VersionReport report;
  report.version = 7;
  report.digest = kDigest;
  report.plan.payload_bytes = 100;
  report.plan.wire_bytes = 128;
  report.plan.tensors = 3;
  report.replicas = {{.replica = "a", .result = ReplicaResult::kApplied, .timings = {.apply = absl::Milliseconds(5)}},
                     {.replica = "b", .result = ReplicaResult::kLeftOut, .reason = "lost \xFF"},
                     {.replica = "c", .result = ReplicaResult::kTorn, .reason = "torn"}};
  report.encode = absl::Milliseconds(1);
  report.released = absl::Milliseconds(2);
  report.staged = absl::Milliseconds(3);
  report.committed = absl::Microseconds(4500);
  return report;
}

TEST(ConvertStatus, ServedVersionsComeBack) {
  const ServedVersion served{.version = 9, .digest = kDigest};
  EXPECT_EQ(FromProto(ToProto(served)), served);
}

TEST(ConvertStatus, TimingsComeBackAndImpossibleOnesBecomeZero) {
  const StageTimings timings{absl::Milliseconds(1), absl::Milliseconds(2), absl::Milliseconds(3), absl::Milliseconds(4),
                             absl::Milliseconds(5)};
  const StageTimings back = FromProto(ToProto(timings));
  EXPECT_EQ(back.encode, timings.encode);
  EXPECT_EQ(back.transfer, timings.transfer);
  EXPECT_EQ(back.check, timings.check);
  EXPECT_EQ(back.apply, timings.apply);
  EXPECT_EQ(back.pause, timings.pause);
  v1::StageTimings wrong;
  wrong.set_encode_ms(std::nan(""));
  wrong.set_transfer_ms(-1);
  wrong.set_check_ms(std::numeric_limits<double>::infinity());
  wrong.set_apply_ms(1e300);
  wrong.set_pause_ms(2);
  const StageTimings cleaned = FromProto(wrong);
  EXPECT_EQ(cleaned.encode, absl::ZeroDuration());
  EXPECT_EQ(cleaned.transfer, absl::ZeroDuration());
  EXPECT_EQ(cleaned.check, absl::ZeroDuration());
  EXPECT_EQ(cleaned.apply, absl::ZeroDuration());
  EXPECT_EQ(cleaned.pause, absl::Milliseconds(2));
}

TEST(ConvertStatus, PhasesComeBackAndUnknownOnesAreIdle) {
  for (int number = 1; number <= static_cast<int>(MemberPhase::kApply); ++number) {
    const auto phase = static_cast<MemberPhase>(number);
    EXPECT_TRUE(v1::MemberPhase_IsValid(ToProto(phase)));
    EXPECT_EQ(FromProto(ToProto(phase)), phase);
  }
  EXPECT_EQ(FromProto(v1::MEMBER_PHASE_UNSPECIFIED), MemberPhase::kIdle);
  EXPECT_EQ(FromProto(static_cast<v1::MemberPhase>(77)), MemberPhase::kIdle);
}

TEST(ConvertStatus, ReportsKeepOutcomesAndTimes) {
  const v1::VersionReport proto = ToProto(MakeReport());
  EXPECT_EQ(proto.version(), 7u);
  EXPECT_EQ(FromProto(proto.content_digest()), kDigest);
  EXPECT_EQ(proto.payload_bytes(), 100u);
  EXPECT_EQ(proto.wire_bytes(), 128u);
  EXPECT_EQ(proto.tensors(), 3);
  ASSERT_EQ(proto.replicas_size(), 3);
  EXPECT_EQ(proto.replicas(0).outcome(), v1::OUTCOME_APPLIED);
  EXPECT_EQ(proto.replicas(0).timings().apply_ms(), 5);
  EXPECT_EQ(proto.replicas(1).outcome(), v1::OUTCOME_LEFT_OUT);
  EXPECT_EQ(proto.replicas(1).reason(), "lost ?");
  EXPECT_EQ(proto.replicas(2).outcome(), v1::OUTCOME_TORN);
  EXPECT_EQ(proto.encode_ms(), 1);
  EXPECT_EQ(proto.released_ms(), 2);
  EXPECT_EQ(proto.staged_ms(), 3);
  EXPECT_EQ(proto.committed_ms(), 4.5);
}

StatusSnapshot MakeSnapshot(absl::Time now) {
  StatusSnapshot snapshot;
  snapshot.job = "grpo";
  snapshot.epoch = 4;
  snapshot.policy = "quorum: 2";
  snapshot.min_replicas = 1;
  snapshot.backend = "host";
  snapshot.state = SyncState::kDegraded;
  snapshot.reason = "replica b lags";
  snapshot.plan = PlanInfo{.catalog_fingerprint = kDigest,
                           .tensors = 3,
                           .quantized_tensors = 2,
                           .buckets = 1,
                           .source_bytes = 200,
                           .payload_bytes = 100,
                           .wire_bytes = 128};
  snapshot.committed = {.version = 7, .digest = kDigest};
  snapshot.last_report = MakeReport();
  snapshot.last_report_age = absl::Seconds(12);
  snapshot.round = RoundStatus{.version = 8, .phase = "transfer", .age = absl::Milliseconds(1500), .participants = 2};
  MemberStatus member;
  member.info = {.name = "b/0", .replica = "b", .rank = 1, .host = "h", .pid = 42, .backend = "host"};
  member.engine = "vllm";
  member.state = "syncing";
  member.phase = MemberPhase::kReceive;
  member.serving = {.version = 6, .digest = kDigest};
  member.lag = 1;
  member.last_seen = absl::Milliseconds(250);
  member.received_fraction = 0.5;
  member.last_error = "none";
  snapshot.members = {member};
  snapshot.events = {{now - absl::Seconds(3), action::Log::kWarn, "first"}, {now, action::Log::kError, "second"}};
  return snapshot;
}

TEST(ConvertStatus, SnapshotsAreShownWhole) {
  const absl::Time now = absl::UnixEpoch() + absl::Seconds(1000);
  const absl::Time wall = absl::FromUnixMillis(1'800'000'000'000);
  const v1::JobStatus proto = ToProto(MakeSnapshot(now), now, wall);
  EXPECT_EQ(proto.job(), "grpo");
  EXPECT_EQ(proto.software(), std::string(kSoftware));
  EXPECT_EQ(proto.epoch(), 4u);
  EXPECT_EQ(proto.policy(), "quorum: 2");
  EXPECT_EQ(proto.min_replicas(), 1);
  EXPECT_EQ(proto.state(), v1::SYNC_STATE_DEGRADED);
  EXPECT_EQ(proto.reason(), "replica b lags");
  EXPECT_EQ(proto.backend(), "host");
  EXPECT_TRUE(proto.catalog().registered());
  EXPECT_EQ(proto.catalog().quantized_tensors(), 2);
  EXPECT_EQ(proto.catalog().source_bytes(), 200u);
  EXPECT_EQ(proto.last_version().version(), 7u);
  EXPECT_EQ(proto.last_version_age_s(), 12);
  EXPECT_EQ(proto.round().version(), 8u);
  EXPECT_EQ(proto.round().phase(), "transfer");
  EXPECT_EQ(proto.round().age_s(), 1.5);
  ASSERT_EQ(proto.members_size(), 1);
  const v1::MemberStatus& member = proto.members(0);
  EXPECT_EQ(member.name(), "b/0");
  EXPECT_EQ(member.role(), "rollout");
  EXPECT_EQ(member.rank(), 1);
  EXPECT_EQ(member.pid(), 42);
  EXPECT_EQ(member.engine(), "vllm");
  EXPECT_EQ(member.state(), "syncing");
  EXPECT_EQ(member.phase(), std::string(MemberPhaseName(MemberPhase::kReceive)));
  EXPECT_EQ(FromProto(member.serving()), (ServedVersion{6, kDigest}));
  EXPECT_EQ(member.lag(), 1u);
  EXPECT_EQ(member.last_seen_s(), 0.25);
  EXPECT_EQ(member.received_fraction(), 0.5);
  ASSERT_EQ(proto.events_size(), 2);
  EXPECT_EQ(proto.events(0).unix_ms(), 1'799'999'997'000);
  EXPECT_EQ(proto.events(0).severity(), "warn");
  EXPECT_EQ(proto.events(1).unix_ms(), 1'800'000'000'000);
  EXPECT_EQ(proto.events(1).severity(), "error");
}

TEST(ConvertStatus, NothingRegisteredAndNothingPublishedLeavesFieldsUnset) {
  const v1::JobStatus proto = ToProto(StatusSnapshot(), absl::UnixEpoch(), absl::UnixEpoch());
  EXPECT_EQ(proto.state(), v1::SYNC_STATE_EMPTY);
  EXPECT_FALSE(proto.has_catalog());
  EXPECT_FALSE(proto.has_last_version());
  EXPECT_FALSE(proto.has_round());
}

TEST(ConvertStatus, ACommittedVersionWithoutReportIsStillShown) {
  StatusSnapshot snapshot;
  snapshot.committed = {.version = 3, .digest = kDigest};
  const v1::JobStatus proto = ToProto(snapshot, absl::UnixEpoch(), absl::UnixEpoch());
  EXPECT_EQ(proto.last_version().version(), 3u);
  EXPECT_EQ(FromProto(proto.last_version().content_digest()), kDigest);
}

// 3,000 members that were remembered made a status that no client takes.
TEST(ConvertStatus, AStatusFitsIntoOneMessageWhateverThereIsAndSaysWhatItLeavesOut) {
  constexpr size_t kMost = size_t{4} << 20;
  StatusSnapshot snapshot;
  snapshot.last_report = MakeReport();
  for (int i = 0; i < 4096; ++i) {
    MemberStatus member;
    member.info.name = std::string(256, 'n');
    member.info.host = std::string(256, 'h');
    member.last_error = std::string(2500, 'e');
    snapshot.members.push_back(member);
    snapshot.last_report->replicas.push_back({.replica = std::string(256, 'r'), .reason = std::string(2500, 'e')});
  }
  for (int i = 0; i < 10'000; ++i) snapshot.events.push_back({.text = std::to_string(i) + std::string(2500, 'e')});
  const v1::JobStatus status = ToProto(snapshot, absl::UnixEpoch(), absl::UnixEpoch());
  EXPECT_LT(status.ByteSizeLong(), kMost);
  EXPECT_GT(status.members_size(), 500);
  EXPECT_EQ(status.members_size() + status.members_omitted(), 4096);
  EXPECT_EQ(status.last_version().replicas_size() + status.last_version().replicas_omitted(), 4099);
  EXPECT_EQ(status.events_size() + status.events_omitted(), 10'000);
  EXPECT_EQ(status.events(status.events_size() - 1).text().substr(0, 4), "9999") << "the newest stay, and stay last";
  EXPECT_LT(status.events(0).text(), status.events(1).text());
}

}  // namespace
}  // namespace wsync
