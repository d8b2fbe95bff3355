// Whatever a file or a peer holds, what is shown of it is one line of valid UTF-8 that steers nothing.
#include "server/core/printable.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace wsync {
namespace {

TEST(Printable, ControlsBecomeWordsForThem) {
  EXPECT_EQ(Printable("a\nb\tc\rd"), "a\\nb\\tc\\rd");
  EXPECT_EQ(Printable(std::string("\0\x1b[2J\x07\x7f", 7)), "\\x00\\x1b[2J\\x07\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\x9b2J");                       // C1: CSI in one character
  EXPECT_EQ(Printable("\xc2\x85"), "\\x85");  // next line
  EXPECT_EQ(Printable("\u2028\u2029"), "\\u2028\\u2029");
}

TEST(Printable, WhatTurnsTheDirectionOrHidesIsShown) {
  EXPECT_EQ(Printable("user\u202Egpj.exe"), "user\\u202egpj.exe");
  EXPECT_EQ(Printable("\u2066a\u2069\u200f\u061c\ufeff\u200b"), "\\u2066a\\u2069\\u200f\\u061c\\ufeff\\u200b");
  EXPECT_EQ(Printable("\U000E0041"), "\\ue0041");
}

TEST(Printable, NamesInAnyScriptStayReadable) {
  for (const char* name :
       {"modèle.couche", "模型.层.0.权重", "модель", "モデル", "👩‍🔬.weight", "नमस्ते", "a-b_c.0 (x)\\"}) {
    EXPECT_EQ(Printable(name), name);
  }
}

TEST(Printable, BytesThatAreNoUtf8AreShownOneByOne) {
  EXPECT_EQ(Printable("a\xff"
                      "b"),
            "a\\xffb");
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");           // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Printable("\xe6\xa8"), "\\xe6\\xa8");  // cut
}

TEST(Printable, IsBoundedAndCutBetweenCharacters) {
  EXPECT_EQ(Printable("abcdef", 3), "abc...");
  EXPECT_EQ(Printable("abc", 3), "abc");
  EXPECT_EQ(Printable("模型模型", 4), "模型...");
  EXPECT_LE(Printable(std::string(100'000, '\x1b'), 1000).size(), 1007u);
}

TEST(Printable, LinesAreKeptWhereTheyAreAskedForAndNeverLookLikeANewMessage) {
  EXPECT_EQ(PrintableLines("a\nwsync: all is well\x1b[m"), "a\n  wsync: all is well\\x1b[m");
}

TEST(Printable, ScreensKeepTheirColoursAndNothingElse) {
  EXPECT_EQ(PrintableScreen("\033[32mok\033[0m\n"), "\033[32mok\033[0m\n");
  EXPECT_EQ(PrintableScreen("\033[2J\033]0;title\a\033[31\033[H"), "\\x1b[2J\\x1b]0;title\\x07\\x1b[31\\x1b[H");
}

TEST(Printable, JsonStaysTheSameDocument) {
  EXPECT_EQ(PrintableJson("{\n \"a\x7f\xc2\x9b\": \"\u202Eü\"}"), "{\n \"a\\u007f\\u009b\": \"\\u202eü\"}");
  EXPECT_EQ(PrintableJson("\"\U000E0041\""), "\"\\udb40\\udc41\"");
}

TEST(Printable, AnyBytesGiveUtf8WithoutControls) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 40, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const std::string shown = Printable(text);
    for (std::string_view rest = shown; !rest.empty();) {
      const size_t length = Utf8Length(rest);
      ASSERT_GT(length, 0u);
      const char32_t c = CodePoint(rest.substr(0, length));
      ASSERT_TRUE(c >= 0x20 && (c < 0x7F || c > 0x9F)) << static_cast<uint32_t>(c);
      rest.remove_prefix(length);
    }
    EXPECT_EQ(Printable(shown, 4000), shown) << "shown twice, it is the same";
  }
}

TEST(VisibleWidth, CountsColumns) {
  EXPECT_EQ(VisibleWidth("abc"), 3u);
  EXPECT_EQ(VisibleWidth("ünï"), 3u);
  EXPECT_EQ(VisibleWidth("模型"), 4u);
  EXPECT_EQ(VisibleWidth("e\u0301"), 1u);
  EXPECT_EQ(VisibleWidth("😀"), 2u);
  EXPECT_EQ(VisibleWidth("\033[31mab\033[0m"), 2u);
}

}  // namespace
}  // namespace wsync
