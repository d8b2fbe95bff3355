#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>

#include "server/rpc/convert.h"

namespace wsync {
namespace {

size_t PercentEncodedBytes(const std::string& text) {
  size_t bytes = 0;
  for (const char c : text) bytes += c >= ' ' && c <= '~' && c != '%' ? 1 : 3;
  return bytes;
}

TEST(GrpcStatus, EveryCanonicalCodeComesBack) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
}

TEST(GrpcStatus, CodesOfAnotherWorldAreUnknown) {
  EXPECT_EQ(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(17), "x")), absl::UnknownError("x"));
  EXPECT_EQ(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(-1), "x")), absl::UnknownError("x"));
}

TEST(GrpcStatus, AServiceThatIsNotThereIsProbablyTheOtherDaemon) {
  const absl::Status status = FromGrpc(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, ""));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("the other daemon's socket"), absl::string_view::npos) << status;
}

TEST(GrpcStatus, LongMessagesAreCutAndSayBy) {
  const std::string fits(7 << 10, 'a');
  EXPECT_EQ(ToGrpc(absl::InternalError(fits)).error_message(), fits);
  EXPECT_EQ(ToGrpc(absl::InternalError(fits + "bcd")).error_message(), fits + "... (3 bytes more)");
}

TEST(GrpcStatus, TheCutCountsBytesAsTheyTravelAndKeepsCharactersWhole) {
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += "é\n";
  const std::string message = ToGrpc(absl::InternalError(lines)).error_message();
  EXPECT_LE(PercentEncodedBytes(message), (7u << 10) + 64);
  EXPECT_EQ(WireText(message), message);
  EXPECT_NE(message.find(" bytes more)"), std::string::npos);
}

TEST(WireText, WhatIsNotUtf8BecomesQuestionMarks) {
  EXPECT_EQ(WireText("plain é € 😀"), "plain é € 😀");
  EXPECT_EQ(WireText("\xC3"), "?");                 // cut short
  EXPECT_EQ(WireText("a\xFF\x80z"), "a??z");        // never valid
  EXPECT_EQ(WireText("\xC0\xAF"), "??");            // overlong
  EXPECT_EQ(WireText("\xED\xA0\x80"), "???");       // surrogate
  EXPECT_EQ(WireText("\xF4\x90\x80\x80"), "????");  // beyond Unicode
}

RC_GTEST_PROP(WireText, IsAlwaysTakenByProtobuf, (const std::string& bytes)) {
  v1::StatusEvent event, parsed;
  event.set_text(WireText(bytes));
  RC_ASSERT(parsed.ParseFromString(event.SerializeAsString()));
  RC_ASSERT(parsed.text() == event.text());
}

TEST(Quoted, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(Quoted("a\"b\n"), "\"a\\\"b\\n\"");
  EXPECT_EQ(Quoted(std::string(101, 'a')), "\"" + std::string(100, 'a') + "...\"");
  EXPECT_EQ(Quoted(std::string(99, 'a') + "éz"), "\"" + std::string(99, 'a') + "...\"");
}

}  // namespace
}  // namespace wsync
