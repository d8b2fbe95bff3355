#include "server/rpc/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/rpc/temp_dir.h"

namespace wsync {
namespace {

using testing::MatchesRegex;

constexpr char kTime[] = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z";

class LogTest : public testing::Test {
 protected:
  ~LogTest() override { EXPECT_TRUE(InitLog({}).ok()); }  // lets go of the file

  void Init(const std::string& format, const std::string& level = "info") {
    ASSERT_TRUE(InitLog({.component = "trainer", .level = level, .format = format, .file = dir_.Path("log")}).ok());
  }
  std::vector<std::string> Lines() const {
    std::vector<std::string> lines;
    std::istringstream stream(dir_.Read("log"));
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
  }

  TempDir dir_;
};

TEST_F(LogTest, TextLinesHaveTimeLevelComponentMessageAndFields) {
  Init("text");
  LogInfo("version committed", {{"version", "7"}, {"replicas", "2/2"}});
  LogError("failed");
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], MatchesRegex(std::string(kTime) + " info  trainer  version committed  version=7 replicas=2/2"));
  EXPECT_THAT(lines[1], MatchesRegex(std::string(kTime) + " error trainer  failed"));
}

TEST_F(LogTest, TextValuesThatWouldBeAmbiguousAreQuotedAndControlsEscaped) {
  Init("text");
  LogInfo("two\nlines\x1b[31m", {{"empty", ""},
                                 {"space", "a b"},
                                 {"quote", "say \"hi\"\\"},
                                 {"newline", "a\nb"},
                                 {"bell", "\a"},
                                 {"equals", "a=b"}});
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("two\\nlines\\x1b[31m  empty=\"\" space=\"a b\" quote=\"say \\\"hi\\\"\\\\\" newline=a\\nb "
                          "bell=\\x07 equals=\"a=b\""),
            std::string::npos)
      << lines[0];
}

TEST_F(LogTest, JsonLinesParseWhateverTheTextHolds) {
  Init("json");
  const std::string nasty = "quote\" back\\slash\nnew\tline \x01 é 😀 {\"a\":1} %s {} \x7f";
  LogWarn(nasty, {{"key", nasty}, {"broken", "a\xFFz"}});
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  const auto line = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(line["message"], nasty);
  EXPECT_EQ(line["key"], nasty);
  EXPECT_EQ(line["broken"], "a\xEF\xBF\xBDz");
  EXPECT_EQ(line["level"], "warn");
  EXPECT_EQ(line["component"], "trainer");
  EXPECT_THAT(line["time"].get<std::string>(), MatchesRegex(kTime));
}

TEST_F(LogTest, WhatAPeerSaysNeitherSteersATerminalNorFillsADisk) {
  const std::string hostile =
      "\xc2\x9b"
      "2J\x1b]0;x\a\u202E\xff" +
      std::string(1 << 20, 'x');
  for (const char* format : {"text", "json"}) {
    dir_.Write("log", "");
    Init(format);
    LogInfo("模型 " + hostile, {{"reason", hostile}});
    const auto lines = Lines();
    ASSERT_EQ(lines.size(), 1u);
    for (const char* raw : {"\xc2\x9b", "\x1b", "\a", "\u202E", "\xff"})
      EXPECT_EQ(lines[0].find(raw), std::string::npos);
    EXPECT_NE(lines[0].find("模型"), std::string::npos);
    EXPECT_LT(lines[0].size(), 20'000u) << format;
  }
}

TEST_F(LogTest, FieldsNeverHideTheLinesOwnKeys) {
  Init("json");
  LogInfo("real", {{"message", "fake"}, {"level", "fake"}, {"x", "1"}, {"x", "2"}});
  const auto line = nlohmann::json::parse(Lines().at(0));
  EXPECT_EQ(line["message"], "real");
  EXPECT_EQ(line["message_"], "fake");
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["x"], "1");
  EXPECT_EQ(line["x_"], "2");
}

TEST_F(LogTest, LinesBelowTheLevelAreNotWritten) {
  Init("text", "warn");
  LogDebug("no");
  LogInfo("no");
  LogWarn("yes");
  LogError("yes");
  EXPECT_EQ(Lines().size(), 2u);
}

TEST_F(LogTest, FilesAreAppendedTo) {
  dir_.Write("log", "earlier\n");
  Init("text");
  LogInfo("later");
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], "earlier");
}

TEST_F(LogTest, LinesOfManyThreadsStayWhole) {
  Init("json");
  constexpr int kThreads = 4, kLines = 40;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < kLines; ++i) LogInfo("line", {{"thread", std::to_string(t)}, {"i", std::to_string(i)}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto lines = Lines();
  EXPECT_EQ(lines.size(), size_t{kThreads} * kLines);
  for (const std::string& line : lines) EXPECT_TRUE(nlohmann::json::accept(line)) << line;
}

TEST_F(LogTest, AFloodIsCutToSomeLinesOfEachCause) {
  Init("text");
  for (int i = 0; i < 20'000; ++i) {
    LogWarn(absl::StrCat("a rollout agent was refused ", i), {{"peer", "ipv4:127.0.0.1:1"}});
    LogWarnFrom("ssl.cc:1504", absl::StrCat("handshake failed ", std::string(i % 60, 'x')), {});
  }
  LogInfo("still heard");
  const auto lines = Lines();
  EXPECT_LE(lines.size(), 500u);
  EXPECT_THAT(lines.back(), MatchesRegex(".*still heard"));
}

TEST_F(LogTest, AFileThatWasMovedAwayIsOpenedAnew) {
  Init("text");
  LogInfo("before");
  std::filesystem::rename(dir_.Path("log"), dir_.Path("log.1"));
  ASSERT_TRUE(ReopenLog().ok());
  LogInfo("after");
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], MatchesRegex(".*info  trainer  after"));
}

TEST_F(LogTest, BadOptionsAndUnwritableFilesAreErrors) {
  EXPECT_EQ(InitLog({.level = "loud"}).message(),
            "log.level: \"loud\" is unknown; expected one of: trace, debug, info, warn, error");
  EXPECT_EQ(InitLog({.format = "xml"}).message(), "log.format: \"xml\" is unknown; expected one of: text, json");
  const absl::Status missing = InitLog({.file = dir_.Path("none/log")});
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), "cannot open log file " + dir_.Path("none/log") +
                                   ": no such file or directory; set log.file to a path that can be written, or leave "
                                   "it empty for stderr");
}

}  // namespace
}  // namespace wsync
