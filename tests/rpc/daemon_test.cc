#include "server/rpc/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/clock.h"
#include "server/rpc/server.h"
#include "tests/rpc/child_process.h"
#include "tests/rpc/rpc_testing.h"
#include "tests/rpc/temp_dir.h"

namespace wsync {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class DaemonTest : public testing::Test {
 protected:
  std::string Socket() const { return "unix://" + dir_.Path("s"); }
  std::vector<std::string> Command(std::vector<std::string> flags) const {
    flags.insert(flags.begin(), WSYNC_TEST_DAEMON);
    return flags;
  }
  std::vector<std::string> Serving(const std::string& job) const {
    return Command({"--job", job, "--local_socket", Socket()});
  }

  TempDir dir_;
};

TEST_F(DaemonTest, SigtermStopsItGracefullyWithExitCodeZero) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ChildProcess daemon(Serving("grpo"));
    ASSERT_TRUE(daemon.WaitForOutput("listening on " + Socket())) << daemon.output();
    v1::JobStatus reply;
    EXPECT_TRUE(CallGetStatus(NewChannel(Socket(), nullptr), &reply).ok());
    EXPECT_EQ(reply.job(), "grpo");
    daemon.Signal(signal);
    EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.output();
    EXPECT_THAT(daemon.output(), AllOf(HasSubstr(signal == SIGTERM ? "signal=SIGTERM" : "signal=SIGINT"),
                                       HasSubstr("stopping within 10s"), HasSubstr("test  stopped")));
  }
}

TEST_F(DaemonTest, ASecondSignalEndsItAtOnceThoughItHangs) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ChildProcess daemon(Serving("hang"));
    ASSERT_TRUE(daemon.WaitForOutput("listening on")) << daemon.output();
    daemon.Signal(SIGTERM);
    ASSERT_TRUE(daemon.WaitForOutput("stopping within")) << daemon.output();
    absl::SleepFor(absl::Milliseconds(300));  // what comes at once is the same signal
    daemon.Signal(signal);
    EXPECT_EQ(daemon.WaitForExit(), 128 + signal) << daemon.output();
    EXPECT_THAT(daemon.output(), HasSubstr(absl::StrCat("ended at once, with exit code ", 128 + signal)));
  }
}

TEST_F(DaemonTest, SighupOpensTheLogFileAnewAndEndsNothing) {
  auto command = Serving("grpo");
  command.insert(command.end(), {"--log.file", dir_.Path("log")});
  ChildProcess daemon(command);
  v1::JobStatus reply;
  ASSERT_TRUE(CallGetStatus(NewChannel(Socket(), nullptr), &reply).ok());
  std::filesystem::rename(dir_.Path("log"), dir_.Path("log.1"));
  daemon.Signal(SIGHUP);
  const absl::Time deadline = MonotonicNow() + kChildWait;
  while (dir_.Read("log").find("SIGHUP: opened the log file anew") == std::string::npos) {
    ASSERT_LT(MonotonicNow(), deadline);
  }
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.output();
  EXPECT_THAT(dir_.Read("log"), HasSubstr("stopped"));
  EXPECT_THAT(dir_.Read("log.1"), Not(HasSubstr("stopped")));
}

TEST_F(DaemonTest, SignalsThatAreNoEndAreNone) {
  ChildProcess daemon(Serving("grpo"));
  ASSERT_TRUE(daemon.WaitForOutput("listening on")) << daemon.output();
  for (const int signal : {SIGHUP, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2, SIGXFSZ}) daemon.Signal(signal);
  ASSERT_TRUE(daemon.WaitForOutput("SIGHUP: there is no log.file to open anew")) << daemon.output();
  v1::JobStatus reply;
  EXPECT_TRUE(CallGetStatus(NewChannel(Socket(), nullptr), &reply).ok());
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.output();
}

// For who wants to see where it hangs.
TEST_F(DaemonTest, SigquitEndsItByTheSignal) {
  ChildProcess daemon(Serving("hang"));
  ASSERT_TRUE(daemon.WaitForOutput("listening on")) << daemon.output();
  daemon.Signal(SIGQUIT);
  EXPECT_EQ(daemon.WaitForExit(), -SIGQUIT) << daemon.output();
}

// As timeout(1) sends it, to a process and to its group.
TEST_F(DaemonTest, TwoSignalsAtOnceAreOne) {
  for (int i = 0; i < 10; ++i) {
    ChildProcess daemon(Serving("grpo"));
    ASSERT_TRUE(daemon.WaitForOutput("listening on")) << daemon.output();
    daemon.Signal(SIGTERM);
    daemon.Signal(SIGINT);
    EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.output();
  }
}

TEST_F(DaemonTest, OneThatIsBrokenExitsForItsSupervisorThoughAThreadIsWedged) {
  for (const char* job : {"broken", "wedged"}) {
    ChildProcess daemon(Serving(job));
    ASSERT_TRUE(daemon.WaitForOutput("stopping within 0")) << daemon.output();
    const absl::Time begin = MonotonicNow();
    EXPECT_EQ(daemon.WaitForExit(), kExitForRestart) << daemon.output();
    EXPECT_LT(MonotonicNow() - begin, absl::Seconds(4));
    EXPECT_THAT(daemon.output(), HasSubstr("a communicator could not be ended"));
  }
}

TEST_F(DaemonTest, AKilledDaemonsSocketIsTakenOverByTheNext) {
  {
    ChildProcess killed(Serving("first"));
    ASSERT_TRUE(killed.WaitForOutput("listening on")) << killed.output();
    killed.Signal(SIGKILL);
    ASSERT_EQ(killed.WaitForExit(), -SIGKILL);
  }
  ChildProcess next(Serving("second"));
  EXPECT_TRUE(next.WaitForOutput("listening on")) << next.output();
}

TEST_F(DaemonTest, ASecondDaemonOnTheSameSocketFailsAndTheFirstServesOn) {
  ChildProcess first(Serving("first"));
  ASSERT_TRUE(first.WaitForOutput("listening on")) << first.output();
  ChildProcess second(Serving("second"));
  EXPECT_EQ(second.WaitForExit(), 1);
  EXPECT_THAT(second.output(), AllOf(HasSubstr("error test  cannot start"), HasSubstr("somebody answers on it")));
  v1::JobStatus reply;
  EXPECT_TRUE(CallGetStatus(NewChannel(Socket(), nullptr), &reply).ok());
  EXPECT_EQ(reply.job(), "first");
}

TEST_F(DaemonTest, AStoppedPeerIsNoticedWithinSeconds) {
  ChildProcess daemon(Serving("grpo"));
  ASSERT_TRUE(daemon.WaitForOutput("listening on")) << daemon.output();
  const auto stub = v1::Coordinator::NewStub(NewChannel(Socket(), nullptr));
  grpc::ClientContext context;
  context.set_deadline(InSeconds(60));
  const auto reader = stub->WatchStatus(&context, v1::WatchStatusRequest());
  v1::JobStatus status;
  ASSERT_TRUE(reader->Read(&status));
  daemon.Signal(SIGSTOP);
  const absl::Time begin = MonotonicNow();
  EXPECT_FALSE(reader->Read(&status));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(10));  // 4 s and what a busy machine takes
}

TEST_F(DaemonTest, AFailedStartExitsWithOneAndTellsStderrEvenWhenItLogsToAFile) {
  ChildProcess daemon(Command({"--job", "fail-to-start", "--log.file", dir_.Path("log"), "--log.format", "json"}));
  EXPECT_EQ(daemon.WaitForExit(), 1);
  EXPECT_EQ(daemon.output(), "wsync-test: cannot start: the job's name says so\n");
  const auto line = nlohmann::json::parse(dir_.Read("log"));
  EXPECT_EQ(line["level"], "error");
  EXPECT_EQ(line["component"], "test");
  EXPECT_EQ(line["error"], "cannot start: the job's name says so");
}

TEST_F(DaemonTest, BadFlagsExitWithTwo) {
  ChildProcess unknown(Command({"--transfr.bucket_bytes=1MiB"}));
  EXPECT_EQ(unknown.WaitForExit(), 2);
  EXPECT_EQ(unknown.output(),
            "wsync-test: unexpected argument \"--transfr.bucket_bytes=1MiB\"; did you mean --transfer.bucket_bytes?\n");
  ChildProcess stray(Command({"stray"}));
  EXPECT_EQ(stray.WaitForExit(), 2);
  EXPECT_EQ(stray.output(), "wsync-test: unexpected argument \"stray\"; --help lists all flags\n");
  ChildProcess twice(Command({"--job", "a", "--job", "b"}));
  EXPECT_EQ(twice.WaitForExit(), 2);
  EXPECT_THAT(twice.output(), HasSubstr("--job"));
  ChildProcess without_value(Command({"--job"}));
  EXPECT_EQ(without_value.WaitForExit(), 2);
  EXPECT_THAT(without_value.output(), HasSubstr("--job"));
  ChildProcess bad_value(Command({"--transfer.ring_slots=-1"}));
  EXPECT_EQ(bad_value.WaitForExit(), 2);
  EXPECT_EQ(bad_value.output(),
            "wsync-test: bad configuration:\n  flag --transfer.ring_slots: \"-1\" is out of range; expected 2 to 64\n");
}

TEST_F(DaemonTest, ABadConfigurationExitsWithTwoAndNamesEveryProblem) {
  const std::string file = dir_.Write("c.yaml", "jbo: a\nlog:\n  level: loud\n");
  ChildProcess daemon(Command({"--config", file}));
  EXPECT_EQ(daemon.WaitForExit(), 2);
  EXPECT_EQ(daemon.output(), "wsync-test: bad configuration:\n  " + file +
                                 ":1: unknown key \"jbo\"; did you mean \"job\"?\n  " + file +
                                 ":3: log.level: \"loud\" is unknown; expected one of: trace, debug, info, warn, "
                                 "error\n");
}

// A file's bytes are not typed at the terminal of who starts a daemon with it.
TEST_F(DaemonTest, WhatAConfigurationHoldsIsShownEscaped) {
  ChildProcess daemon(Command({"--config", dir_.Write("c.yaml", "\"j\\e[2J\\u202Ebo\": a\n")}));
  EXPECT_EQ(daemon.WaitForExit(), 2);
  EXPECT_THAT(daemon.output(), HasSubstr("unknown key"));
  for (const char* raw : {"\x1b", "\u202E"}) EXPECT_EQ(daemon.output().find(raw), std::string::npos);
}

TEST_F(DaemonTest, AnUnwritableLogFileExitsWithTwo) {
  ChildProcess daemon(Command({"--log.file", dir_.Path("none/log")}));
  EXPECT_EQ(daemon.WaitForExit(), 2);
  EXPECT_THAT(daemon.output(), HasSubstr("cannot open log file " + dir_.Path("none/log")));
}

TEST_F(DaemonTest, CheckConfigPrintsEveryValueWithItsOriginAndStartsNothing) {
  const std::string file = dir_.Write("c.yaml", "job: fail-to-start\n");
  ChildProcess daemon(Command(
      {"--config", file, "--recipe.include", "a", "--recipe.include=b", "--recipe.fp8=false", "--check-config"}));
  EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.output();
  const auto line = [&](const std::string& value, const std::string& origin) {
    const size_t at = daemon.output().find(value);
    const size_t end = daemon.output().find('\n', at);
    return at != std::string::npos && daemon.output().substr(at, end - at).find("  # " + origin) != std::string::npos;
  };
  EXPECT_TRUE(line("job: fail-to-start ", "file " + file + ":1")) << daemon.output();
  EXPECT_TRUE(line("recipe.include: [a, b] ", "flag --recipe.include")) << daemon.output();
  EXPECT_TRUE(line("recipe.fp8: false ", "flag --recipe.fp8")) << daemon.output();
  EXPECT_TRUE(line("transfer.bucket_bytes: 256MiB ", "default")) << daemon.output();
}

TEST_F(DaemonTest, CheckConfigReadsTheFilesOfTls) {
  const std::string file = dir_.Write("ca.pem", "BEGIN CERTIFICATE");
  ChildProcess daemon(Command(
      {"--tls.ca_file", file, "--tls.cert_file", file, "--tls.key_file", dir_.Path("key.pem"), "--check-config"}));
  EXPECT_EQ(daemon.WaitForExit(), 2) << daemon.output();
  EXPECT_EQ(daemon.output(),
            "wsync-test: cannot read tls.key_file " + dir_.Path("key.pem") + ": no such file or directory\n");
}

TEST_F(DaemonTest, HelpGroupsEverySettingAndShowsExamples) {
  ChildProcess daemon(Command({"--help"}));
  EXPECT_EQ(daemon.WaitForExit(), 0);
  EXPECT_THAT(daemon.output(),
              AllOf(HasSubstr("Settings: transfer"), HasSubstr("--transfer.bucket_bytes"), HasSubstr("64KiB to 8GiB"),
                    HasSubstr("--check-config"), HasSubstr("Examples:"), HasSubstr("wsync-test --job grpo")));
}

TEST_F(DaemonTest, VersionIsPrinted) {
  ChildProcess daemon(Command({"--version"}));
  EXPECT_EQ(daemon.WaitForExit(), 0);
  EXPECT_EQ(daemon.output(), "wsync-test " WSYNC_VERSION "\n");
}

}  // namespace
}  // namespace wsync
