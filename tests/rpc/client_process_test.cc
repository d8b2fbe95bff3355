#include "server/rpc/client_process.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace wsync {
namespace {

TEST(ClientProcess, OneThatNeverWasIsRefused) {
  for (const int64_t pid : {int64_t{0}, int64_t{-1}, int64_t{1} << 40}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ClientProcess::Open(pid).status())) << pid;
  }
}

TEST(ClientProcess, ZombieCountsAsDead) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte;
    close(ready[1]);
    (void)!read(ready[0], &byte, 1);  // until the parent closes its end
    _exit(0);
  }
  close(ready[0]);
  const auto process = ClientProcess::Open(child);
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_TRUE((*process)->Alive());
  close(ready[1]);
  siginfo_t ended;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE((*process)->Alive());
  EXPECT_EQ(kill(child, 0), 0) << "its number is still taken";
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(absl::IsInvalidArgument(ClientProcess::Open(child).status()));
}

}  // namespace
}  // namespace wsync
