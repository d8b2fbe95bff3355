#include "server/rollout/member_stream.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/rollout/scripted_peers.h"

namespace wsync {
namespace {

v1::MemberMessage Join() {
  v1::MemberMessage message;
  message.mutable_join();
  return message;
}

// The agent hears of the end of its stream later than gRPC, and sends on meanwhile. That was a write into a call that
// was gone: of a sink that said that its version had failed, when the trainer agent had died.
TEST(MemberStream, WhatIsSentAfterTheReleaseGoesNowhere) {
  char dir[] = "/tmp/wsync-stream-XXXXXX";
  ASSERT_NE(mkdtemp(dir), nullptr);
  const std::string path = absl::StrCat(dir, "/coordinator.sock");
  std::optional<ScriptedCoordinator> coordinator(absl::StrCat("unix://", path));
  const auto channel = grpc::CreateChannel(absl::StrCat("unix://", path), grpc::InsecureChannelCredentials());
  const MemberStream::Handlers deaf{[](const v1::CoordinatorMessage&) {}, [] {}, [](const grpc::Status&) {}};
  MemberStream stream(channel, deaf);
  stream.Send(Join());
  coordinator->AwaitJoin();
  stream.Release();
  v1::MemberMessage late;
  late.mutable_failed();
  stream.Send(late);
  stream.Close();
  // Behind it on the same connection: whatever was sent has come by then.
  MemberStream next(channel, deaf);
  next.Send(Join());
  coordinator->AwaitJoin();
  EXPECT_TRUE(coordinator->rounds_log().empty());
  coordinator.reset();  // ends both
  unlink(path.c_str());
  rmdir(dir);
}

}  // namespace
}  // namespace wsync
