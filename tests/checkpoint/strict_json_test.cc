// JSON as Python writes it comes back as it was; what is no JSON is refused with its place, never with its bytes.
#include "client/checkpoint/strict_json.h"

#include <gmock/gmock.h>

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

OrderedJson ParseOrDie(const std::string& text) {
  auto document = ParseOrderedJson(text, "it");
  EXPECT_TRUE(document.ok()) << document.status();
  return document.value_or(OrderedJson());
}

std::string ErrorOf(const std::string& text) {
  const absl::Status status = ParseOrderedJson(text, "config 'x'").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(status.message());
}

std::string Same(const std::string& value) {
  const std::string dumped = DumpJson(ParseOrDie("{\"v\": " + value + "}"));
  return dumped.substr(9, dumped.size() - 11);
}

TEST(StrictJson, NumbersKeepTheirTextWherePythonWroteThem) {
  for (const char* number : {"0",
                             "-1",
                             "7",
                             "18446744073709551615",
                             "-9223372036854775808",
                             "10000000000000000000",
                             "100000000000000000000000",
                             "-99999999999999999999",
                             "1.0",
                             "0.0",
                             "-0.0",
                             "1e-05",
                             "1e-06",
                             "0.0001",
                             "1e+16",
                             "2.5e+20",
                             "1.7976931348623157e+308",
                             "5e-324",
                             "Infinity",
                             "-Infinity",
                             "NaN",
                             "1e999",
                             "-1e999",
                             "1e-999"}) {
    EXPECT_EQ(Same(number), number);
  }
  EXPECT_EQ(Same("1E5"), "100000.0") << "the same value in the usual spelling";
  EXPECT_EQ(Same("[[0.0, Infinity], {\"a\": [-Infinity, NaN]}]"),
            "[\n    [\n      0.0,\n      Infinity\n    ],\n    {\n      \"a\": [\n        -Infinity,\n        NaN\n"
            "      ]\n    }\n  ]");
}

TEST(StrictJson, WhatAreNumbersInJsonAreNumbersToReadersOfTheTree) {
  const OrderedJson document = ParseOrDie(R"({"i": 3, "n": -3, "f": 2.5, "t": true, "z": null, "s": "Infinity"})");
  EXPECT_EQ(document["i"], 3);
  EXPECT_EQ(document["n"], -3);
  EXPECT_EQ(document["f"], 2.5);
  EXPECT_EQ(document["t"], true);
  EXPECT_TRUE(document["z"].is_null());
  EXPECT_EQ(document["s"], "Infinity");
  EXPECT_FALSE(ParseOrDie("[Infinity]")[0].is_number());
}

TEST(StrictJson, TextsThatLookLikeNumbersStayTexts) {
  for (const char* text : {R"("Infinity")", R"("-Infinity")", R"("NaN")", R"("[Infinity, 1]")", R"("\"Infinity\"")"}) {
    EXPECT_EQ(Same(text), text);
  }
}

TEST(StrictJson, DocumentsAreWrittenAsTheLibraryDoesWithKeysInOrder) {
  const std::string text = R"({"z":1,"a":{},"m":[],"n":[[],{"k":"ü\u0001\n"}],"":false})";
  EXPECT_EQ(DumpJson(ParseOrDie(text)), OrderedJson::parse(text).dump(2));
  EXPECT_EQ(DumpJson(ParseOrDie("\xEF\xBB\xBF 5 ")), "5") << "a byte order mark is passed over";
  EXPECT_EQ(DumpJson(ParseOrDie(R"("\ud83d\ude00\u00e9\/")")), "\"😀é/\"");
}

TEST(StrictJson, WhatIsNoJsonIsRefusedWithItsPlace) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{a:1}",
                           "[1 2]",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "1e",
                           "--1",
                           "- 1",
                           "nan",
                           "inf",
                           "Infinit",
                           "+Infinity",
                           "- Infinity",
                           "True",
                           "None",
                           "'a'",
                           "\"a",
                           "\"\\x41\"",
                           "\"\\u12g4\"",
                           "\"\t\"",
                           "[1] x",
                           "{\"a\" 1}",
                           "{Infinity: 1}",
                           "{NaN: 1}",
                           "/* c */ 1",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "\"\xff\"",
                           "\"\xc0\xaf\"",
                           "\"\xed\xa0\x80\""}) {
    EXPECT_THAT(ErrorOf(text), AllOf(HasSubstr("config 'x' is not valid JSON at line 1, column "))) << text;
  }
  EXPECT_THAT(ErrorOf("{\n \"a\": 1\n \"b\": 2}"), HasSubstr("line 3, column 2: expected ',' or '}'"));
}

TEST(StrictJson, AKeyGivenTwiceIsNamed) {
  EXPECT_THAT(ErrorOf(R"({"a":1,"b":{"a":1},"a":2})"), HasSubstr("has the key 'a' twice"));
  std::string many = "{";
  for (int i = 0; i < 100; ++i) many += "\"k" + std::to_string(i) + "\":0,";
  EXPECT_THAT(ErrorOf(many + "\"k42\":0}"), HasSubstr("has the key 'k42' twice"));
}

TEST(StrictJson, NoByteOfTheTextStandsInAMessageAsItIs) {
  EXPECT_THAT(ErrorOf("{\"\\u001b[2J\":1,\"\\u001b[2J\":1}"), AllOf(HasSubstr("'\\x1b[2J'"), Not(HasSubstr("\x1b"))));
  EXPECT_THAT(ErrorOf("{\"a\": \x1b[2J\xff}"), AllOf(Not(HasSubstr("\x1b")), Not(HasSubstr("\xff"))));
}

TEST(StrictJson, NestingIsBounded) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(ParseOrderedJson(nested(256), "it").ok());
  EXPECT_THAT(ErrorOf(nested(257)), HasSubstr("nested more than 256 deep"));
  EXPECT_THAT(ErrorOf(std::string(10'000'000, '[')), HasSubstr("nested more than 256 deep"));
}

}  // namespace
}  // namespace wsync
