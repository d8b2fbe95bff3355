#include "server/core/hash.h"

#include <gtest/gtest.h>

namespace wsync {
namespace {

TEST(Hash, MatchesThePublishedXxh3OfNoInput) { EXPECT_EQ(Hasher().Finish().Hex(), "99aa06d3014798d86001c324468d497f"); }

TEST(Hash, HexKeepsLeadingZeros) {
  EXPECT_EQ((Hash128{0xab, 0x1}.Hex()), "00000000000000ab0000000000000001");
  EXPECT_EQ((Hash128{0xab, 0x1}.ShortHex()), "000000000000");
}

TEST(Hash, FieldListsDoNotCollideByConcatenation) {
  EXPECT_NE(Hasher().Add("ab").Add("c").Finish(), Hasher().Add("a").Add("bc").Finish());
  EXPECT_NE(Hasher().Add("").Add("a").Finish(), Hasher().Add("a").Add("").Finish());
}

TEST(Hash, DependsOnEveryFieldAndTheirOrder) {
  EXPECT_NE(Hasher().Add(1).Add(2).Finish(), Hasher().Add(2).Add(1).Finish());
  EXPECT_NE(Hasher().Add(1).Finish(), Hasher().Add(1).Add(0).Finish());
}

TEST(Hash, FinishMayBeCalledInBetween) {
  Hasher hasher;
  hasher.Add("a");
  const Hash128 first = hasher.Finish();
  EXPECT_EQ(hasher.Finish(), first);
  EXPECT_EQ(hasher.Add("b").Finish(), Hasher().Add("a").Add("b").Finish());
}

TEST(Hash, TakesNoBytesFromANullPointer) {
  EXPECT_EQ(Hasher().Add(std::string_view()).Finish(), Hasher().Add("").Finish());
}

TEST(Hash, OnlyTheDefaultIsZero) {
  EXPECT_TRUE(Hash128{}.IsZero());
  EXPECT_FALSE((Hash128{0, 1}.IsZero()));
}

}  // namespace
}  // namespace wsync
