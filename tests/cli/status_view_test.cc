// What a tired person reads: the status table, verify's verdicts, units.
#include "client/cli/status_view.h"

#include <gmock/gmock.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "client/cli/terminal.h"

namespace wsync::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

v1::MemberStatus* AddMember(v1::JobStatus& status, const std::string& name, const std::string& state, uint64_t version,
                            uint64_t digest) {
  v1::MemberStatus* member = status.add_members();
  member->set_name(name);
  member->set_role("rollout");
  member->set_state(state);
  member->mutable_serving()->set_version(version);
  member->mutable_serving()->mutable_content_digest()->set_high(digest);
  member->set_lag(status.last_version().version() - version);
  return member;
}

v1::JobStatus InSync() {
  v1::JobStatus status;
  status.set_job("rl");
  status.set_policy("all");
  status.set_epoch(9);
  status.set_state(v1::SYNC_STATE_IN_SYNC);
  status.set_reason("all 2 replicas serve version 7");
  status.mutable_catalog()->set_registered(true);
  status.mutable_catalog()->set_tensors(18867);
  v1::VersionReport* report = status.mutable_last_version();
  report->set_version(7);
  report->set_tensors(18867);
  report->set_payload_bytes(31'200'000'000);
  report->mutable_content_digest()->set_high(0x0123456789abcdef);
  report->set_committed_ms(1500);
  report->set_staged_ms(1200);
  report->set_released_ms(21.5);
  report->add_replicas()->mutable_timings()->set_transfer_ms(1100);
  AddMember(status, "rollout-0", "ready", 7, 0x0123456789abcdef);
  AddMember(status, "rollout-1", "ready", 7, 0x0123456789abcdef);
  return status;
}

TEST(StatusView, ShowsVersionDigestStagesAndMembers) {
  const std::string text = RenderStatus(InSync(), {});
  EXPECT_THAT(text, AllOf(HasSubstr("rl  in sync: all 2 replicas serve version 7"), HasSubstr("18,867 tensors"),
                          HasSubstr("31.2 GB"), HasSubstr("digest 0123456789ab"), HasSubstr("released after 22 ms")));
  EXPECT_THAT(text, AllOf(HasSubstr("26.00 GB/s to each sink"), HasSubstr("transfer 1.10 s"), HasSubstr("rollout-1")));
  EXPECT_THAT(text, Not(HasSubstr("\033[")));
}

TEST(StatusView, ExitCodeTellsDegradedFromInSync) {
  v1::JobStatus status = InSync();
  EXPECT_EQ(StatusExit(status), kOk);
  status.set_state(v1::SYNC_STATE_SYNCING);
  EXPECT_EQ(StatusExit(status), kOk);
  status.set_state(v1::SYNC_STATE_DEGRADED);
  EXPECT_EQ(StatusExit(status), kDegraded);
}

TEST(StatusView, ErrorsAndEventsAreShownNewestLastAndCapped) {
  v1::JobStatus status = InSync();
  status.mutable_members(1)->set_state("lost");
  status.mutable_members(1)->set_last_error("no heartbeat for 3.1 s");
  for (int i = 0; i < 20; ++i) status.add_events()->set_text("event " + std::to_string(i) + ".");
  const std::string text = RenderStatus(status, {});
  EXPECT_THAT(text, AllOf(HasSubstr("no heartbeat for 3.1 s"), HasSubstr("event 19."), HasSubstr("event 12."),
                          Not(HasSubstr("event 11."))));
}

TEST(StatusView, WideAddsDigestAndProcessOfEachMember) {
  v1::JobStatus status = InSync();
  status.mutable_members(0)->set_pid(4711);
  StatusViewOptions wide;
  wide.wide = true;
  EXPECT_THAT(RenderStatus(status, wide),
              AllOf(HasSubstr("PID"), HasSubstr("4711"), HasSubstr("0123456789abcdef0000")));
  EXPECT_THAT(RenderStatus(status, {}), Not(HasSubstr("4711")));
}

TEST(StatusView, JsonIsOneObjectWithTheProtosKeysNumbersAndDigestsAsTablesHaveThem) {
  const v1::JobStatus status = InSync();
  const auto json = nlohmann::json::parse(StatusJson(status), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["job"], "rl");
  EXPECT_EQ(json["members"].size(), 2u);
  EXPECT_EQ(json["members"][0]["serving"]["version"], 7);
  EXPECT_TRUE(json["members"][0]["lag"].is_number());
  EXPECT_EQ(json["state"], "SYNC_STATE_IN_SYNC");
  EXPECT_EQ(json["last_version"]["content_digest"], HashHex(status.last_version().content_digest()));
  EXPECT_EQ(json["members"][1]["serving"]["content_digest"], HashHex(status.members(1).serving().content_digest()));
}

TEST(VerifyView, AgreesOnlyWhenEveryMemberServesTheCommittedContent) {
  bool agree = false;
  v1::JobStatus status = InSync();
  EXPECT_THAT(RenderVerify(status, false, &agree), HasSubstr("equal"));
  EXPECT_TRUE(agree);

  AddMember(status, "behind", "ready", 6, 5);
  EXPECT_THAT(RenderVerify(status, false, &agree), HasSubstr("behind"));
  EXPECT_FALSE(agree);

  status = InSync();
  AddMember(status, "other", "ready", 7, 5);
  EXPECT_THAT(RenderVerify(status, false, &agree), HasSubstr("DIFFERENT"));
  EXPECT_FALSE(agree);

  status = InSync();
  status.mutable_members(0)->set_state("torn");
  EXPECT_THAT(RenderVerify(status, false, &agree), HasSubstr("torn"));
  EXPECT_FALSE(agree);

  status = v1::JobStatus();  // nothing was published: there is nothing to be equal to
  AddMember(status, "new", "ready", 0, 0);
  EXPECT_THAT(RenderVerify(status, false, &agree), AllOf(HasSubstr("serves nothing"), Not(HasSubstr("equal"))));
  EXPECT_FALSE(agree);
}

TEST(Units, AreWhatPeopleRead) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(630'300'000), "630.3 MB");
  EXPECT_EQ(FormatBytes(999'999), "1.0 MB");
  EXPECT_EQ(FormatRate(1'240'000'000), "1.24 GB/s");
  EXPECT_EQ(FormatMs(0.84), "0.8 ms");
  EXPECT_EQ(FormatMs(1200), "1.20 s");
  EXPECT_EQ(FormatMs(123'000), "2 min 3 s");
  EXPECT_EQ(FormatCount(18867), "18,867");
  EXPECT_EQ(FormatCount(-1234), "-1,234");
  EXPECT_EQ(FormatCount(12), "12");
  EXPECT_EQ(FormatAge(7000), "117 min");
}

TEST(Table, LinesUpPaintedAndUnicodeCells) {
  Table table({"NAME", "N"});
  table.AlignRight(1);
  table.Add({{"ab", Color::kRed}, "1"});
  table.Add({"ünïcode", "100"});
  table.Add({"模型", "7"});
  EXPECT_EQ(table.Render(false), "NAME       N\nab         1\nünïcode  100\n模型       7\n");
  EXPECT_THAT(table.Render(true), HasSubstr("\033[31mab\033[0m         1\n"));
}

TEST(Table, ACellStaysACellWhateverItHolds) {
  Table table({"NAME", "N"});
  table.Add({"evil\nforged  row\x1b[2J", "1"});
  table.Add({std::string(5000, 'x'), "1"});
  const std::string text = table.Render(false);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_THAT(text, AllOf(HasSubstr("evil\\nforged  row\\x1b[2J"), Not(HasSubstr("\x1b"))));
  EXPECT_LT(text.size(), 2000u);
}

constexpr char kHostile[] = "\x1b[2J\xc2\x9bmx\n\u202Ey\a";  // what proto3 lets through

// Every text of a status, at every depth, is somebody's who could not be trusted.
void Poison(google::protobuf::Message* message) {
  using Field = google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const Field& field = *message->GetDescriptor()->field(i);
    if (field.cpp_type() == Field::CPPTYPE_STRING && !field.is_repeated() && field.name() != "state") {
      reflection.SetString(message, &field, kHostile);
    } else if (field.cpp_type() == Field::CPPTYPE_MESSAGE && field.is_repeated()) {
      for (int k = 0; k < reflection.FieldSize(*message, &field); ++k) {
        Poison(reflection.MutableRepeatedMessage(message, &field, k));
      }
    } else if (field.cpp_type() == Field::CPPTYPE_MESSAGE && reflection.HasField(*message, &field)) {
      Poison(reflection.MutableMessage(message, &field));
    }
  }
}

void ExpectHarmless(const std::string& text) {
  for (const char* raw : {"\x1b", "\xc2\x9b", "\u202E", "\a"}) EXPECT_THAT(text, Not(HasSubstr(raw)));
  EXPECT_EQ(PrintableScreen(text), text);
}

TEST(Hostile, NoTextOfAPeerReachesATerminalRawFromStatusOrVerify) {
  v1::JobStatus status = InSync();
  status.add_events();
  status.mutable_round()->set_version(8);
  AddMember(status, "", "syncing", 6, 5);
  Poison(&status);
  StatusViewOptions wide;
  wide.wide = true;
  ExpectHarmless(RenderStatus(status, {}));
  ExpectHarmless(RenderStatus(status, wide));
  EXPECT_THAT(RenderStatus(status, wide), HasSubstr("\\x1b[2J\\x9bmx\\n\\u202ey\\x07"));
  bool agree = false;
  ExpectHarmless(RenderVerify(status, false, &agree));
  v1::VerifyReply reply;
  for (const int code : {0, 3, static_cast<int>(absl::StatusCode::kDataLoss)}) reply.add_members()->set_code(code);
  Poison(&reply);
  ExpectHarmless(RenderDeepVerify(status, reply, false, &agree));
  const std::string json = StatusJson(status);
  for (const char* raw : {"\x1b", "\xc2\x9b", "\u202E"}) EXPECT_THAT(json, Not(HasSubstr(raw)));
  EXPECT_EQ(nlohmann::json::parse(json)["members"][0]["name"], kHostile);
}

TEST(ManyMembers, ThoseThatAreNotWellAreShownFirstAndTheRestCounted) {
  v1::JobStatus status = InSync();
  for (int i = 0; i < 3000; ++i) AddMember(status, "r" + std::to_string(i), "ready", 7, 0x0123456789abcdef);
  for (int i = 0; i < 30; ++i) AddMember(status, "gone" + std::to_string(i), "lost", 6, 5);
  AddMember(status, "trainer-0", "ready", 0, 0)->set_role("trainer");
  const std::string text = RenderStatus(status, {});
  EXPECT_THAT(text, AllOf(HasSubstr("trainer-0"), HasSubstr("gone0 "), HasSubstr("gone29"),
                          HasSubstr("and 2,973 more: 2,973 ready")));
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 80);
  bool agree = true;
  const std::string verify = RenderVerify(status, false, &agree);
  EXPECT_FALSE(agree);
  EXPECT_THAT(verify,
              AllOf(HasSubstr("gone29"), HasSubstr("serves nothing"), HasSubstr("and 2,973 more: 2,973 equal")));
  EXPECT_EQ(nlohmann::json::parse(StatusJson(status))["members"].size(), 3033u);
  v1::VerifyReply reply;
  for (int i = 0; i < 100; ++i) reply.add_members()->set_code(3);
  EXPECT_THAT(RenderDeepVerify(status, reply, false, &agree), HasSubstr("and 40 more: 40 not checked"));
}

TEST(WrappedRows, CountsWhatATerminalShows) {
  EXPECT_EQ(WrappedRows("", 10), 0);
  EXPECT_EQ(WrappedRows("a\n\nb", 10), 3);
  EXPECT_EQ(WrappedRows("0123456789\n", 10), 1);
  EXPECT_EQ(WrappedRows("0123456789a\n", 10), 2);
  EXPECT_EQ(WrappedRows(Paint("0123456789", Color::kRed, true), 10), 1);
}

}  // namespace
}  // namespace wsync::cli
