#include "server/rpc/config_units.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <string>

namespace wsync {
namespace {

TEST(ConfigUnits, SizesTakeBinaryUnitsAndPlainBytes) {
  EXPECT_EQ(ParseSize("12").value, 12);
  EXPECT_EQ(ParseSize("64KiB").value, 65536);
  EXPECT_EQ(ParseSize("256MiB").value, 268435456);
  EXPECT_EQ(ParseSize("8GiB").value, 8589934592);
  EXPECT_EQ(ParseSize("10TiB").value, 10995116277760);
  EXPECT_EQ(ParseSize(" 64 KiB ").value, 65536);
  EXPECT_EQ(ParseSize("-1KiB").value, -1024);
}

TEST(ConfigUnits, DurationsTakeUnitsAndPlainMilliseconds) {
  EXPECT_EQ(ParseDuration("500").value, 500);
  EXPECT_EQ(ParseDuration("500ms").value, 500);
  EXPECT_EQ(ParseDuration("3s").value, 3000);
  EXPECT_EQ(ParseDuration("2min").value, 120000);
}

TEST(ConfigUnits, OtherNotationsAreMalformed) {
  for (const char* text :
       {"", " ", "-", "KiB", "12 apples", "12MB", "12mib", "1e9", "1.5GiB", "0x10", "+3", "1 2", "3 s s"}) {
    EXPECT_EQ(ParseSize(text).fault, UnitFault::kMalformed) << text;
    EXPECT_EQ(ParseDuration(text).fault, UnitFault::kMalformed) << text;
    EXPECT_EQ(ParseInteger(text).fault, UnitFault::kMalformed) << text;
  }
  EXPECT_EQ(ParseInteger("3s").fault, UnitFault::kMalformed);
  EXPECT_EQ(ParseSize("3s").fault, UnitFault::kMalformed);
  EXPECT_EQ(ParseDuration("3KiB").fault, UnitFault::kMalformed);
}

TEST(ConfigUnits, NumbersBeyondInt64AreTooLarge) {
  EXPECT_EQ(ParseInteger("9223372036854775807").value, INT64_MAX);
  EXPECT_EQ(ParseInteger("9223372036854775808").fault, UnitFault::kTooLarge);
  EXPECT_EQ(ParseSize("9223372036854775807KiB").fault, UnitFault::kTooLarge);
  EXPECT_EQ(ParseDuration("-9223372036854775807min").fault, UnitFault::kTooLarge);
}

TEST(ConfigUnits, ValuesAreShownInTheLargestUnitThatDivides) {
  EXPECT_EQ(SizeText(0), "0");
  EXPECT_EQ(SizeText(65536), "64KiB");
  EXPECT_EQ(SizeText(65537), "65537");
  EXPECT_EQ(SizeText(8589934592), "8GiB");
  EXPECT_EQ(DurationText(0), "0s");
  EXPECT_EQ(DurationText(1500), "1500ms");
  EXPECT_EQ(DurationText(3000), "3s");
  EXPECT_EQ(DurationText(60000), "1min");
}

RC_GTEST_PROP(ConfigUnits, WhatIsShownParsesBack, (int64_t value)) {
  RC_ASSERT(ParseSize(SizeText(value)).value == value);
  RC_ASSERT(ParseDuration(DurationText(value)).value == value);
}

RC_GTEST_PROP(ConfigUnits, MultiplesOfUnitsParseBack, (int32_t count)) {
  const int64_t bytes = int64_t{count} << 30;
  RC_ASSERT(ParseSize(SizeText(bytes)).value == bytes);
  RC_ASSERT(!ParseDuration(std::to_string(count) + "min").fault.has_value());
}

}  // namespace
}  // namespace wsync
