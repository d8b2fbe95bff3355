// Every way a safetensors file can be wrong is refused before any tensor is used, with a message of its own.
#include <gmock/gmock.h>

#include "client/checkpoint/safetensors.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Malformed {
  const char* name;
  std::string bytes;
  std::vector<std::string> expected;  // parts of the message
};

std::string One(const std::string& entry, size_t buffer_bytes) {
  return RawSafetensors("{\"w\":" + entry + "}", buffer_bytes);
}

std::string Two(const std::string& a, const std::string& b, size_t buffer_bytes) {
  const auto entry = [](const std::string& offsets) {
    return "{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + offsets + "}";
  };
  return RawSafetensors("{\"a\":" + entry(a) + ",\"b\":" + entry(b) + "}", buffer_bytes);
}

std::string WithLength(uint64_t length, const std::string& rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i));
  return file + rest;
}

std::vector<Malformed> Cases() {
  const std::string good = R"({"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]})";
  return {
      {"Empty", "", {"truncated", "0 bytes"}},
      {"ShorterThanItsLengthField", "1234567", {"truncated", "7 bytes"}},
      {"HeaderLongerThanFile", WithLength(500, "{}"), {"truncated", "500", "only 10"}},
      {"HeaderLengthAboveLimit", WithLength(100'000'001, "{}"), {"100000001", "at most 100000000"}},
      {"HeaderLengthHuge", WithLength(UINT64_MAX, "{}"), {"18446744073709551615"}},
      {"EmptyHeader", WithLength(0, ""), {"does not start with '{'"}},
      {"HeaderNotAnObject", RawSafetensors("[1,2]", 0), {"does not start with '{'"}},
      {"HeaderNotJson", RawSafetensors("{\"w\": ", 0), {"not valid JSON", "column"}},
      {"TextAfterHeader", RawSafetensors("{} x", 0), {"not valid JSON"}},
      {"DuplicateTensor", RawSafetensors("{\"w\":" + good + ",\"w\":" + good + "}", 12), {"key 'w' twice"}},
      {"DuplicateField",
       One(R"({"dtype":"BF16","dtype":"F16","shape":[2,3],"data_offsets":[0,12]})", 12),
       {"key 'dtype' twice"}},
      {"MetadataNotText", RawSafetensors(R"({"__metadata__":{"format":1}})", 0), {"__metadata__"}},
      {"EntryNotAnObject", One("7", 0), {"tensor 'w'", "number"}},
      {"DtypeMissing", One(R"({"shape":[2,3],"data_offsets":[0,12]})", 12), {"tensor 'w'", "dtype"}},
      {"DtypeUnsupported",
       One(R"({"dtype":"F4","shape":[2,3],"data_offsets":[0,3]})", 3),
       {"tensor 'w'", "'F4'", "smaller than a byte", "packed as U8", "BF16"}},
      {"DtypeOfSixBits",
       One(R"({"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]})", 3),
       {"'F6_E3M2'", "packed as U8"}},
      {"DtypeUnknown",
       One(R"({"dtype":"F7","shape":[2,3],"data_offsets":[0,6]})", 6),
       {"tensor 'w'", "'F7'", "BF16", "F8_E4M3", "F8_E8M0", "C64", "convert"}},
      {"NestedTooDeep", One(std::string(100'000, '['), 0), {"is described by a list"}},
      {"SkippedFieldNestedTooDeep", One("{\"x\":" + std::string(100'000, '['), 0), {"more than 256 deep"}},
      {"NameNotUtf8", RawSafetensors("{\"\xff\":" + good + "}", 12), {"not UTF-8", "column 3"}},
      {"CountTooLong",
       One(R"({"dtype":"BF16","shape":[99999999999999999999],"data_offsets":[0,0]})", 0),
       {"'w'", "[99999999999999999999]", "2^63"}},
      {"CountInfinite", One(R"({"dtype":"BF16","shape":[Infinity],"data_offsets":[0,0]})", 0), {"'w'", "[Infinity]"}},
      {"ShapeMissing", One(R"({"dtype":"BF16","data_offsets":[0,12]})", 12), {"tensor 'w'", "shape"}},
      {"ShapeNegative", One(R"({"dtype":"BF16","shape":[-2,3],"data_offsets":[0,12]})", 12), {"'w'", "[-2,3]"}},
      {"ShapeFractional", One(R"({"dtype":"BF16","shape":[2.5],"data_offsets":[0,5]})", 5), {"'w'", "[2.5]"}},
      {"ShapeAbove63Bits",
       One(R"({"dtype":"BF16","shape":[9223372036854775808],"data_offsets":[0,0]})", 0),
       {"'w'", "2^63"}},
      {"ShapeOverflows",
       One(R"({"dtype":"BF16","shape":[4294967296,4294967296,2],"data_offsets":[0,0]})", 0),
       {"'w'", "too large"}},
      {"OffsetsMissing", One(R"({"dtype":"BF16","shape":[2,3]})", 12), {"'w'", "data_offsets"}},
      {"OffsetsNegative", One(R"({"dtype":"BF16","shape":[2,3],"data_offsets":[-12,0]})", 12), {"'w'", "data_offsets"}},
      {"OffsetsReversed", One(R"({"dtype":"BF16","shape":[2,3],"data_offsets":[12,0]})", 12), {"'w'", "data_offsets"}},
      {"OffsetsThree", One(R"({"dtype":"BF16","shape":[2,3],"data_offsets":[0,6,12]})", 12), {"'w'", "data_offsets"}},
      {"OutsideBuffer", One(good, 11), {"'w'", "outside the file", "byte 12", "11 bytes"}},
      {"SizeDisagrees",
       One(R"({"dtype":"BF16","shape":[2,3],"data_offsets":[0,10]})", 10),
       {"'w'", "10 bytes of data", "BF16 [2, 3] needs 12"}},
      {"Overlap", Two("[0,4]", "[3,7]", 7), {"tensor 'b' overlaps tensor 'a'"}},
      {"SameRange", Two("[0,4]", "[0,4]", 4), {"tensor 'b' overlaps tensor 'a'"}},
      {"Hole", Two("[0,4]", "[5,9]", 9), {"tensor 'b' begins at byte 5", "ends at 4", "no holes"}},
      {"HoleAtFront", One(R"({"dtype":"U8","shape":[4],"data_offsets":[2,6]})", 6), {"begins at byte 2"}},
      {"TrailingBytes", One(good, 13), {"13 bytes of data", "tensors end at 12"}},
  };
}

class MalformedFile : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedFile, IsRefusedByName) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  WriteText(path, GetParam().bytes);
  const auto file = SafetensorsFile::Open(path);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(file.status().message());
  EXPECT_THAT(message, HasSubstr(path));
  for (const std::string& part : GetParam().expected) EXPECT_THAT(message, HasSubstr(part));
}

INSTANTIATE_TEST_SUITE_P(Safetensors, MalformedFile, testing::ValuesIn(Cases()),
                         [](const auto& test) { return std::string(test.param.name); });

// What stands in a file is shown escaped, and not at any length.
TEST(Safetensors, NamesInMessagesCannotSteerATerminalNorFillIt) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  WriteText(path, RawSafetensors(R"({"\u001b[2J)" + std::string(1 << 20, 'x') + R"(":{"dtype":"\u009bF7"}})", 0));
  const std::string message(SafetensorsFile::Open(path).status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("\\x1b[2Jxxx"), HasSubstr("\\x9bF7"), testing::Not(HasSubstr("\x1b"))));
  EXPECT_LT(message.size(), 2000u);
}

// A file cut at every length: always refused, never a crash (run under AddressSanitizer too).
TEST(Safetensors, EveryTruncationIsRefused) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / "whole.safetensors", {Bf16Tensor("a", {3, 5}), Bf16Tensor("b", {7})});
  const std::string whole = ReadText(directory / "whole.safetensors");
  const std::string path = directory / "cut.safetensors";
  for (size_t length = 0; length < whole.size(); ++length) {
    WriteText(path, whole.substr(0, length));
    EXPECT_FALSE(SafetensorsFile::Open(path).ok()) << length;
  }
}

TEST(Safetensors, MissingFileIsNotFound) {
  const auto file = SafetensorsFile::Open("/nonexistent/model.safetensors");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()),
              AllOf(HasSubstr("/nonexistent/model.safetensors"), HasSubstr("check")));
}

TEST(Safetensors, DirectoryIsRefused) {
  const TemporaryDirectory directory;
  EXPECT_THAT(std::string(SafetensorsFile::Open(directory.path()).status().message()), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace wsync
