#include "server/core/globs.h"

#include <gtest/gtest.h>
#include <re2/re2.h>

namespace wsync {
namespace {

struct GlobCase {
  const char* glob;
  const char* text;
  bool matches;
};

class Globs : public ::testing::TestWithParam<GlobCase> {};

TEST_P(Globs, MatchAsAShellDoesAndAsTheirRegularExpression) {
  const auto& [glob, text, matches] = GetParam();
  EXPECT_EQ(GlobMatch(glob, text), matches) << glob << " " << text;
  EXPECT_EQ(RE2::FullMatch(text, GlobAsRegex(glob)), matches) << GlobAsRegex(glob) << " " << text;
}

INSTANTIATE_TEST_SUITE_P(Glob, Globs,
                         ::testing::ValuesIn<GlobCase>({
                             {"model.layers.*.weight", "model.layers.0.mlp.up.weight", true},
                             {"*", "", true},
                             {"a?c", "abc", true},
                             {"layers.[0-3].*", "layers.2.x", true},
                             {"[!0-3]", "4", true},
                             {"[]x]", "]", true},
                             {"[!]^-]", "a", true},
                             {"[!]^-]", "^", false},
                             {"a**b", "ab", true},
                             {"*ab*ab", "aabxabab", true},
                             {"a+(b)|{c}^$\\", "a+(b)|{c}^$\\", true},
                             {"a[b", "a[b", true},
                             {"a?c", "ac", false},
                             {"layers.[0-3].*", "layers.4.x", false},
                             {"[!0-3]", "2", false},
                             {"model.*", "xmodel.a", false},
                             {"a.b", "axb", false},
                             {"", "a", false},
                             {"*.weight", "a.weight_scale", false},
                         }));

TEST(Glob, ManyStarsStayCheap) {
  const std::string text(500, 'a');
  std::string glob;
  for (int i = 0; i < 100; ++i) glob += "a*";
  EXPECT_FALSE(GlobMatch(glob + "b", text));  // exponential for a matcher that tries every star
  EXPECT_TRUE(GlobMatch(glob, text));
}

TEST(Glob, UnclosedSetsAreFound) {
  EXPECT_EQ(UnclosedSet("a[bc"), 1u);
  EXPECT_EQ(UnclosedSet("[x]*[]"), 4u);
  EXPECT_EQ(UnclosedSet("[x][!y]"), std::string_view::npos);
  EXPECT_TRUE(IsGlob("a?") && IsGlob("[a]") && IsGlob("*") && !IsGlob("model.layers.0"));
}

}  // namespace
}  // namespace wsync
