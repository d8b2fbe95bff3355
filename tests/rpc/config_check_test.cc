// What keys say about each other.
#include <gtest/gtest.h>

#include <string>

#include "tests/rpc/config_loading.h"

namespace wsync {
namespace {

TEST(ConfigCheck, HeartbeatTimeoutLeavesRoomForOneLateReport) {
  EXPECT_EQ(TrainerProblems("coordinator:\n  heartbeat_ms: 2s\n"),
            "c.yaml:2: coordinator.heartbeat_timeout_ms (3s) must be at least twice coordinator.heartbeat_ms (2s), or "
            "one late report loses a member");
  EXPECT_EQ(TrainerProblems("coordinator:\n  heartbeat_ms: 1500ms\n"), "");
}

TEST(ConfigCheck, QuorumAndPolicyAndMinReplicasFitTogether) {
  EXPECT_EQ(
      TrainerProblems("coordinator:\n  policy: quorum\n  quorum: 2\n  min_replicas: 3\n"),
      "c.yaml:3: coordinator.quorum (2) must be at least coordinator.min_replicas (3): fewer replicas never commit "
      "a version");
  EXPECT_EQ(TrainerProblems("coordinator:\n  quorum: 2\n"),
            "c.yaml:2: coordinator.quorum (2) has no effect under coordinator.policy all; set coordinator.policy to "
            "quorum");
  EXPECT_EQ(TrainerProblems("coordinator:\n  policy: quorum\n  quorum: 3\n  min_replicas: 3\n"), "");
}

TEST(ConfigCheck, TlsIsAllOrNothing) {
  EXPECT_EQ(TrainerProblems("tls:\n  ca_file: /ca.pem\n  cert_file: /c.pem\n"),
            "c.yaml:2: tls.ca_file, tls.cert_file and tls.key_file go together; set all three, or none for no TLS");
  EXPECT_EQ(
      RolloutProblems("tls:\n  allowed_peers: [a]\n"),
      "c.yaml:2: tls.allowed_peers has no effect without TLS; set tls.ca_file, tls.cert_file and tls.key_file too");
  EXPECT_EQ(RolloutProblems("tls:\n  ca_file: a\n  cert_file: b\n  key_file: c\n  allowed_peers: [d]\n"), "");
}

TEST(ConfigCheck, RankIsBelowReplicaSize) {
  EXPECT_EQ(ProblemsOf<v1::RolloutConfig>({.environment = {{"WSYNC_RANK", "2"}}, .flags = {{"replica_size", "2"}}}),
            "environment WSYNC_RANK: rank (2) must be less than replica_size (2): ranks count from 0");
}

TEST(ConfigCheck, AddressesHaveTheRightKind) {
  EXPECT_EQ(TrainerProblems("local_socket: 127.0.0.1:80\n"),
            "c.yaml:1: local_socket: \"127.0.0.1:80\" is not a Unix socket; expected such as "
            "unix:///run/wsync/agent.sock");
  EXPECT_EQ(TrainerProblems("local_socket: /run/w.sock\n"),
            "c.yaml:1: local_socket: \"/run/w.sock\" has no scheme; write unix:///run/w.sock");
  EXPECT_EQ(TrainerProblems("coordinator:\n  listen: unix:///x\n"),
            "c.yaml:2: coordinator.listen: \"unix:///x\" is a Unix socket; expected host:port such as 127.0.0.1:7470");
  EXPECT_EQ(TrainerProblems("coordinator:\n  listen: 127.0.0.1:0\n"), "");
  EXPECT_EQ(RolloutProblems("coordinator: 127.0.0.1:0\n"),
            "c.yaml:1: coordinator: port 0 cannot be connected to; expected the port the trainer agent listens on");
  EXPECT_EQ(RolloutProblems("coordinator: trainer\n"),
            "c.yaml:1: coordinator: \"trainer\" has no port; expected host:port such as 127.0.0.1:7470");
}

TEST(ConfigCheck, NamesArePrintable) {
  EXPECT_EQ(RolloutProblems("replica: \"a\\nb\"\n"),
            "c.yaml:1: replica: \"a\\nb\" is not a name; expected at most 128 bytes without control characters");
}

TEST(ConfigCheck, RecipeRulesAreValidated) {
  const std::string problems = TrainerProblems("recipe:\n  include: [\"a[\"]\n");
  EXPECT_EQ(problems.rfind("c.yaml:2: recipe: ", 0), 0u) << problems;
}

TEST(ConfigCheck, WhatIsAlreadyReportedIsNotReportedAgain) {
  EXPECT_EQ(TrainerProblems("coordinator:\n  heartbeat_timeout_ms: x\n  heartbeat_ms: 1min\n"),
            "c.yaml:2: coordinator.heartbeat_timeout_ms: \"x\" is not a duration; expected 60ms to 10min, such as 3s");
}

TEST(ConfigCheck, MessagesFilledByHandAreCheckedToo) {
  v1::RolloutConfig config;
  ASSERT_TRUE(Load({}, &config).ok());
  EXPECT_TRUE(CheckConfig(config).ok());
  config.set_rank(1);
  config.set_coordinator("h:0");
  EXPECT_EQ(CheckConfig(config).message(),
            "rank (1) must be less than replica_size (1): ranks count from 0\n"
            "coordinator: port 0 cannot be connected to; expected the port the trainer agent listens on");
}

}  // namespace
}  // namespace wsync
