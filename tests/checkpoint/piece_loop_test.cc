#include "client/checkpoint/piece_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

TEST(PieceLoop, RunsEveryPieceOnce) {
  std::vector<std::atomic<int>> runs(10'000);
  const auto work = [&](int64_t piece, int worker) {
    EXPECT_TRUE(0 <= worker && worker < 4);
    runs[piece].fetch_add(1);
    return absl::OkStatus();
  };
  EXPECT_TRUE(RunPieces(4, static_cast<int64_t>(runs.size()), work, nullptr).ok());
  for (const auto& count : runs) ASSERT_EQ(count.load(), 1);
}

TEST(PieceLoop, ReportsTheFirstFailureByNumberWhateverTheThreads) {
  for (int round = 0; round < 200; ++round) {
    const auto work = [](int64_t piece, int) {
      return piece == 37 || piece == 38 || piece >= 41 ? absl::InternalError(absl::StrCat("piece ", piece))
                                                       : absl::OkStatus();
    };
    EXPECT_EQ(RunPieces(4, 100, work, nullptr).message(), "piece 37");
  }
}

TEST(PieceLoop, NoPiecesAreNoWork) {
  const auto work = [](int64_t, int) { return absl::InternalError("called"); };
  EXPECT_TRUE(RunPieces(4, 0, work, nullptr).ok());
}

}  // namespace
}  // namespace wsync
