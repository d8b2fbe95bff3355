// A million tensors take seconds at every step. The limit is some ten times what a step takes, and a thousandth of what
// one takes that looks along all names for each of them.
#include <gmock/gmock.h>
#include <time.h>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "client/checkpoint/natural_order.h"
#include "server/core/plan.h"
#include "server/core/recipe_notes.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int64_t kTensors = 1'000'000;
constexpr absl::Duration kLimit = absl::Seconds(30);

std::string NameOf(int64_t i) {
  return absl::StrCat("model.layers.", i / 10'000, ".mlp.experts.", i % 10'000, ".up.w");
}

// The header, which must stay below 100 MB, and a byte for each tensor.
void WriteMillion(const std::string& path) {
  std::string header = "{";
  for (int64_t i = 0; i < kTensors; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "", "\"", NameOf(i), "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[",
                    i, ",", i + 1, "]}");
  }
  header += "}";
  ASSERT_LT(header.size(), static_cast<size_t>(kMaxSafetensorsHeaderBytes));
  WriteText(path, RawSafetensors(header, kTensors));
}

// Of processor time, which does not pass while others have the processor.
class Stopwatch {
 public:
  absl::Duration Lap() {
    const absl::Duration lap = Now() - begin_;
    begin_ = Now();
    return lap;
  }

 private:
  static absl::Duration Now() {
    timespec now = {};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return absl::DurationFromTimespec(now);
  }
  absl::Duration begin_ = Now();
};

TEST(MillionTensors, AreOpenedPlannedAndWrittenInSeconds) {
  const TemporaryDirectory directory;
  WriteMillion(directory / kSingleFileName);
  Stopwatch watch;
  const auto checkpoint = Checkpoint::Open(directory.path());
  EXPECT_LT(watch.Lap(), kLimit);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ((*checkpoint)->tensors().size(), static_cast<size_t>(kTensors));
  EXPECT_EQ((*checkpoint)->tensors()[20'003].tensor.name, NameOf(20'003)) << "in natural order";

  RecipeRules rules;
  rules.exclude = {"*.layers.0.*", "*.nothing.*"};
  for (int64_t i = 0; i < 50'000; ++i) {
    rules.modules_to_not_convert.push_back(absl::StrCat("model.layers.1.mlp.experts.", i));
  }
  auto catalog = Catalog::Create((*checkpoint)->TensorList());
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  const auto plan = Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), rules, kDefaultBucketBytes);
  EXPECT_LT(watch.Lap(), kLimit);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(RecipeNotes((*plan)->catalog(), rules, (*plan)->recipes()), Contains(HasSubstr("matches no tensor")));
  EXPECT_LT(watch.Lap(), kLimit);

  // More than one header may hold: the writer cuts shards by it.
  std::vector<Tensor> longer;
  for (const TensorView& view : (*checkpoint)->tensors()) {
    longer.push_back({absl::StrCat("language_model.", view.tensor.name), Dtype::kU8, {0}});
  }
  auto writer = CheckpointWriter::Create(directory / "out", longer, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_GT((*writer)->shard_names().size(), 1u);
  const absl::Status finished = (*writer)->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
  const auto written = Checkpoint::Open(directory / "out");
  EXPECT_LT(watch.Lap(), 2 * kLimit);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->tensors().size(), static_cast<size_t>(kTensors));
}

TEST(MillionTensors, ADuplicateAmongThemIsFound) {
  std::string header = "{";
  for (int64_t i = 0; i < kTensors; ++i)
    absl::StrAppend(&header, "\"", i, "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},");
  absl::StrAppend(&header, "\"777777\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
  Stopwatch watch;
  const auto entries = ParseSafetensorsHeader(header, 0, "it");
  EXPECT_LT(watch.Lap(), kLimit);
  EXPECT_THAT(std::string(entries.status().message()), testing::HasSubstr("the key '777777' twice"));
}

}  // namespace
}  // namespace wsync
