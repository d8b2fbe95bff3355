#include "server/core/module_list.h"

#include <gmock/gmock.h>

#include <chrono>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTensor[] = "model.layers.1.self_attn.q_proj.weight";

bool Matches(const std::string& entry, std::string_view tensor = kTensor) {
  const auto list = ModuleList::Create({"unrelated.module.of.many.parts", entry});
  EXPECT_TRUE(list.ok()) << list.status();
  return list.ok() && list->Matches(tensor);
}

TEST(ModuleList, NamesMatchRunsOfWholeComponents) {
  for (const char* entry : {"model", "model.layers.1", "layers.1.", "self_attn", "q_proj", "self_attn.q_proj",
                            "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight"}) {
    EXPECT_TRUE(Matches(entry)) << entry;
  }
  for (const char* entry : {"mode", "layers.11", "attn", "q_proj.bias", "model.layers.1.self_attn.q_proj.weight.x"}) {
    EXPECT_FALSE(Matches(entry)) << entry;
  }
}

TEST(ModuleList, GlobsMatchRunsOfWholeComponentsToo) {
  for (const char* entry : {"model.layers.*.self_attn", "*self_attn*", "layers.[0-3]", "*.q_proj", "q_pro?",
                            "model.layers.*.self_attn.q_proj.weight", "*"}) {
    EXPECT_TRUE(Matches(entry)) << entry;
  }
  for (const char* entry : {"model.layers.*.mlp.router", "layers.[2-9]", "?_proj.bias", "el.layers.*"}) {
    EXPECT_FALSE(Matches(entry)) << entry;
  }
}

TEST(ModuleList, PatternsMatchModulesAsPythonsMatchDoes) {
  for (const char* entry : {"re:.*self_attn.*", "re:model\\.layers\\.1\\.", "re:.*\\.(q|k)_proj$", "re:(?i)MODEL",
                            "re:.*self_attn$", "re:model|x"}) {
    EXPECT_TRUE(Matches(entry)) << entry;
  }
  // Anchored at the begin, and of the module: it has no ".weight".
  for (const char* entry : {"re:layers", "re:.*\\.weight$", "re:.*mlp.*", "re:.*q_pro$"}) {
    EXPECT_FALSE(Matches(entry)) << entry;
  }
}

TEST(ModuleList, EveryPatternStandsByItself) {
  const auto list = ModuleList::Create({"re:a|b", "re:c$", "x*"});
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_TRUE(list->Matches("b.weight") && list->Matches("c.weight") && list->Matches("d.xy.weight"));
  EXPECT_FALSE(list->Matches("d.weight") || list->Matches("cc.weight"));
}

TEST(ModuleList, WhatCannotBeReadAsPythonReadsItIsRefusedByName) {
  for (const char* entry :
       {"re:(?!mlp)", "re:(a)\\1", "re:(", "re:a)|(b", "re:a{,3}", "re:[[:alpha:]]", "re:\\Z", "re:(a{1000}){1000}"}) {
    const absl::Status status = ModuleList::Create({"lm_head", entry}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << entry;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(entry), HasSubstr("exclude"))) << entry;
  }
  EXPECT_THAT(std::string(ModuleList::Create({"."}).status().message()), HasSubstr("empty entry"));
  EXPECT_THAT(std::string(ModuleList::Create(std::vector<std::string>(9, "re:(abcdefgh){400}")).status().message()),
              HasSubstr("too large"));
}

TEST(ModuleList, HostilePatternsTakeLinearTime) {
  const auto list = ModuleList::Create({"re:(a*)*(a*)*(a|aa)+b", "re:(.*a){30}c"});
  ASSERT_TRUE(list.ok()) << list.status();
  const std::string name = std::string(400, 'a') + ".weight";
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(list->Matches(name));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));  // ages for a backtracking matcher
}

TEST(ModuleList, NamesOfNothingAreToldApart) {
  const auto catalog = Catalog::Create({{kTensor, Dtype::kBF16, {2, 2}}});
  const auto list = ModuleList::Create({"self_attn", "language_model.layers.1", "mlp", "re:.*gate", "x.*"});
  ASSERT_TRUE(list.ok() && catalog.ok()) << list.status();
  EXPECT_THAT(list->NamingNothing(*catalog), ElementsAre("language_model.layers.1", "mlp"));
}

}  // namespace
}  // namespace wsync
