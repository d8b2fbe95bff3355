#include "server/rpc/address.h"

#include <gtest/gtest.h>

#include <string>

namespace wsync {
namespace {

std::string ErrorOf(const std::string& text) {
  const auto address = ParseAddress(text);
  return address.ok() ? "" : std::string(address.status().message());
}

TEST(Address, TcpAddressesAreHostAndPort) {
  const auto v4 = ParseAddress("127.0.0.1:7470");
  ASSERT_TRUE(v4.ok());
  EXPECT_FALSE(v4->is_unix);
  EXPECT_EQ(v4->host, "127.0.0.1");
  EXPECT_EQ(v4->port, 7470);
  EXPECT_EQ(ToString(*v4), "127.0.0.1:7470");
  const auto v6 = ParseAddress("[::1]:0");
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->host, "::1");
  EXPECT_EQ(ToString(*v6), "[::1]:0");
  EXPECT_EQ(ParseAddress("trainer-0.cluster.local:65535")->port, 65535);
}

TEST(Address, UnixAddressesAreAbsolutePaths) {
  const auto address = ParseAddress("unix:///run/wsync/trainer.sock");
  ASSERT_TRUE(address.ok());
  EXPECT_TRUE(address->is_unix);
  EXPECT_EQ(address->path, "/run/wsync/trainer.sock");
  EXPECT_EQ(ToString(*address), "unix:///run/wsync/trainer.sock");
  EXPECT_EQ(ParseAddress("unix:/run/x.sock")->path, "/run/x.sock");
}

TEST(Address, ErrorsSayWhatAnAddressLooksLike) {
  EXPECT_EQ(ErrorOf("localhost"), "\"localhost\" has no port; expected host:port such as 127.0.0.1:7470");
  EXPECT_EQ(ErrorOf(":7470"), "\":7470\" has no valid host; expected such as 127.0.0.1:7470 or [::1]:7470");
  EXPECT_EQ(ErrorOf("::1:7470"), "\"::1:7470\" has no valid host; expected such as 127.0.0.1:7470 or [::1]:7470");
  EXPECT_EQ(ErrorOf("http://h:80"), "\"http://h:80\" has no valid host; expected such as 127.0.0.1:7470 or [::1]:7470");
  for (const char* port : {"", "70000", "-1", "+1", "http", "99999999999"}) {
    EXPECT_EQ(ErrorOf(std::string("h:") + port),
              std::string("\"h:") + port + "\": port \"" + port + "\" is not 0 to 65535");
  }
  EXPECT_EQ(ErrorOf("unix://relative.sock"),
            "\"unix://relative.sock\" has no absolute path; expected such as unix:///run/wsync/trainer.sock");
}

TEST(Address, UnixPathsThatDoNotFitSockaddrAreRefused) {
  EXPECT_EQ(ErrorOf("unix://" + std::string(107, '/')), "");
  const std::string text = "unix:///" + std::string(107, 'x');
  EXPECT_EQ(ErrorOf(text), "\"" + text +
                               "\": a Unix socket's path holds at most 107 bytes, this one has 108; choose a shorter "
                               "directory");
}

}  // namespace
}  // namespace wsync
