// Memory of layers asked for when the transfer gets there, and let go of.
#include "server/rollout/layer_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <optional>

#include "absl/strings/str_cat.h"
#include "tests/rollout/layer_window_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(LayerWindowTest, WithAWindowOfOneNoTwoLayersExistAtOnceAndEveryByteIsRight) {
  MakeReady(1);
  for (const uint64_t version : {7, 8}) {
    ready_.clear();
    const sink::Received received = Start(version, Takes(version)).get();
    ASSERT_TRUE(received.status.ok()) << received.status;
    EXPECT_EQ(received.digest, ContentOf(version));
    EXPECT_TRUE(received.wrote);
    EXPECT_TRUE(StaysHold(version));
    EXPECT_THAT(ready_, ElementsAre("model.layers.0", "model.layers.1", "model.layers.2", "model.layers.3",
                                    "model.layers.4", ""));
  }
  EXPECT_EQ(lender_.most_layers(), 1u);
  EXPECT_EQ(lender_.most_bytes(), LayerSchedule(*plan_).largest_bytes());
  EXPECT_EQ(lender_.order().size(), 10u);
  EXPECT_EQ(lender_.lent(), 0u);
}

TEST_F(LayerWindowTest, WithAWindowOfTwoTheNextLayerIsAskedForWhileOneIsWorkedOn) {
  MakeReady(2);
  std::optional<std::string> before;  // complete, and not taken yet
  LayerCalls calls = Takes(7);
  calls.ready = [&](const LayerReady& ready) {
    if (ready.name.empty()) return receiver_->Answer({ready.ticket, LayerTaken{}});
    EXPECT_TRUE(lender_.Holds(ready.name, 7));
    if (before) receiver_->Answer({lender_.Free(*before), LayerTaken{}});
    before = ready.name;
    if (ready.name == "model.layers.4") receiver_->Answer({lender_.Free(ready.name), LayerTaken{}});
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(lender_.most_layers(), 2u);
}

TEST_F(LayerWindowTest, LayersThatAreUnderWayTogetherNeedAWindowForAllOfThem) {
  std::vector<Tensor> tensors;
  for (const char* kind : {"up", "down"}) {
    for (int layer = 0; layer < 2; ++layer) {
      tensors.push_back({absl::StrCat("model.layers.", layer, ".", kind, "_proj.weight"), Dtype::kBF16, {256, 256}});
    }
  }
  plan_ = PlanOf(tensors);
  Lender lender(&script_, plan_);
  Use();
  const auto refused = Attach(Spec(1));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("model.layers.0, model.layers.1"));
  ASSERT_TRUE(Attach(Spec(2)).ok());
  LayerCalls calls;
  calls.wanted = [&](const LayerWanted& wanted) { Provide(wanted, lender.Lend(wanted)); };
  calls.ready = [&](const LayerReady& ready) {
    EXPECT_TRUE(lender.Holds(ready.name, 7)) << ready.name;
    receiver_->Answer({lender.Free(ready.name), LayerTaken{}});
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(lender.most_layers(), 2u);
}

TEST_F(LayerWindowTest, AnEngineThatGivesNoMemoryIsNamedWithTheLayerAndTheNextVersionIsGood) {
  MakeReady(1, absl::Milliseconds(200));
  LayerCalls calls = Takes(7);
  calls.wanted = [this](const LayerWanted& wanted) {
    if (wanted.layer != "model.layers.2") Provide(wanted, lender_.Lend(wanted));
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(received.status.message()),
              AllOf(HasSubstr("engine-7"), HasSubstr("gave no memory for layer model.layers.2"), HasSubstr("200ms")));
  EXPECT_TRUE(received.wrote);
  ExpectNextVersionIsGood(8);
}

TEST_F(LayerWindowTest, AnEngineThatTakesNoLayerIsNamedWithTheLayerAndItsWindow) {
  MakeReady(2, absl::Milliseconds(200));
  LayerCalls calls = Takes(7);
  calls.ready = [](const LayerReady&) {};
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(received.status.message()),
              AllOf(HasSubstr("engine-7"), HasSubstr("has taken layer model.layers.0"), HasSubstr("window of 2")));
  EXPECT_EQ(lender_.most_layers(), 2u);
  ExpectNextVersionIsGood(8);
}

TEST_F(LayerWindowTest, AVersionIsWholeOnlyWhenTheEngineHasTakenItsLastLayer) {
  MakeReady(1, absl::Milliseconds(200));
  LayerCalls calls = Takes(7);
  const auto takes = calls.ready;
  calls.ready = [takes](const LayerReady& ready) {
    if (ready.name != "model.layers.4") takes(ready);
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(received.status.message()), HasSubstr("has taken layer model.layers.4, complete as it is"));
}

TEST_F(LayerWindowTest, TheTensorsOfNoLayerAreTakenTooThoughTheirMemoryStays) {
  MakeReady(1, absl::Milliseconds(200));
  LayerCalls calls = Takes(7);
  const auto takes = calls.ready;
  calls.ready = [takes](const LayerReady& ready) {
    if (!ready.name.empty()) takes(ready);
  };
  const sink::Received late = Start(7, calls).get();
  EXPECT_EQ(late.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(late.status.message()), HasSubstr("has taken the tensors of no layer, complete as it is"));

  calls = Takes(8);
  calls.ready = [this, takes = calls.ready](const LayerReady& ready) {
    ready.name.empty() ? receiver_->Answer({ready.ticket, LayerRefused{"tying failed"}}) : takes(ready);
  };
  const sink::Received refused = Start(8, calls).get();
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("gave up at the tensors of no layer: tying failed"));
  ExpectNextVersionIsGood(9);
}

TEST_F(LayerWindowTest, AnEngineThatGivesUpFailsTheVersionWithItsReason) {
  MakeReady(1);
  LayerCalls calls = Takes(7);
  calls.wanted = [this](const LayerWanted& wanted) {
    if (wanted.layer != "model.layers.1") return Provide(wanted, lender_.Lend(wanted));
    receiver_->Answer({wanted.ticket, LayerRefused{"CUDA out of memory"}});
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(received.status.message()),
              AllOf(HasSubstr("engine-7"), HasSubstr("model.layers.1"), HasSubstr("CUDA out of memory")));
  EXPECT_TRUE(received.wrote);
  ExpectNextVersionIsGood(8);
}

TEST_F(LayerWindowTest, WhatIsLentIsCheckedAsAtAnAttachAndNothingIsWrittenOutside) {
  struct Wrong {
    std::function<void(LayerMemory&)> change;
    const char* says;
  };
  const std::vector<Wrong> wrongs = {
      {[](LayerMemory& m) { m.destinations[0].dtype = Dtype::kF32; }, "the engine holds F32"},
      {[](LayerMemory& m) { m.destinations[1].shape[0] += 1; }, "the engine expects"},
      {[](LayerMemory& m) { m.destinations[1].offset_bytes += int64_t{1} << 40; }, "do not fit the"},
      {[](LayerMemory& m) { m.destinations[0].handle = 1; }, "handle 1 is unknown"},
      {[](LayerMemory& m) { m.destinations[1].offset_bytes = m.destinations[0].offset_bytes; }, "overlaps that of"},
      {[](LayerMemory& m) { m.destinations.pop_back(); }, "no destination takes it"},
      {[](LayerMemory& m) { m.destinations[0].output = "lm_head.weight"; }, "it is no output of model.layers.3"},
      {[](LayerMemory& m) {
         m.handles = {SharedMemoryHandle{"/nowhere", 100}};
       },
       "no memory /nowhere"},
      // The tensors of no layer lie there: this one would land on them.
      {[](LayerMemory& m) {
         m.handles = {SharedMemoryHandle{"/stays", 1 << 20}};
       },
       "overlaps that of"},
  };
  MakeReady(1);
  uint64_t version = 10;
  for (const Wrong& wrong : wrongs) {
    const sink::Received received = Start(version, LendsWrongly(version, wrong.change)).get();
    EXPECT_FALSE(received.status.ok()) << wrong.says;
    EXPECT_THAT(std::string(received.status.message()),
                AllOf(HasSubstr("the memory for layer model.layers.3"), HasSubstr(wrong.says)));
    lender_.FreeAll();
    ++version;
  }
  ExpectNextVersionIsGood(version);
}

TEST_F(LayerWindowTest, MemoryOfALayerThatTheEngineStillWorksOnIsNotLentAgain) {
  MakeReady(2);
  std::optional<LayerMemory> first;
  LayerCalls calls;
  calls.ready = [](const LayerReady&) {};
  calls.wanted = [&](const LayerWanted& wanted) {
    LayerMemory memory = lender_.Lend(wanted);
    if (first) memory.handles = first->handles;  // layers 0 and 1 are equal in size
    first = memory;
    Provide(wanted, memory);
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(received.status.message()),
              AllOf(HasSubstr("the memory for layer model.layers.1"), HasSubstr("overlaps that of 'model.layers.0")));
}

TEST_F(LayerWindowTest, MemoryThatWasTakenBackWhileALayerWasAskedForMayBeLentForThatLayer) {
  MakeReady(2);
  std::optional<LayerMemory> first;
  uint64_t complete = 0;
  LayerCalls calls;
  calls.ready = [&](const LayerReady& ready) {
    if (ready.name != "model.layers.0") receiver_->Answer({ready.ticket, LayerTaken{}});
  };
  calls.wanted = [&](const LayerWanted& wanted) {
    LayerMemory memory = lender_.Lend(wanted);
    if (!first) {
      first = memory;
    } else if (wanted.layer == "model.layers.1") {
      receiver_->Answer({complete, LayerTaken{}});
      memory.handles = first->handles;
    }
    complete = wanted.ticket;
    Provide(wanted, memory);
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_TRUE(received.status.ok()) << received.status;
}

TEST_F(LayerWindowTest, ALayerThatNobodyWantsIsDroppedWhereThatIsAllowed) {
  Use();
  AttachSpec spec = Spec(1);
  spec.allow_partial = true;
  ASSERT_TRUE(Attach(spec).ok());
  LayerCalls calls = Takes(7);
  const auto provide = calls.wanted;
  const auto takes = calls.ready;
  calls.wanted = [&](const LayerWanted& wanted) {
    if (wanted.layer != "model.layers.3") return provide(wanted);
    Provide(wanted, {});
  };
  calls.ready = [&](const LayerReady& ready) {
    ready.name == "model.layers.3" ? receiver_->Answer({ready.ticket, LayerTaken{}}) : takes(ready);
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(received.digest, ContentOf(7));
}

TEST_F(LayerWindowTest, ACancelEndsTheWaitForTheEngineAndAnswersThatComeLateChangeNothing) {
  MakeReady(1);
  std::promise<LayerWanted> asked;
  LayerCalls calls = Takes(7);
  calls.wanted = [&](const LayerWanted& wanted) { asked.set_value(wanted); };
  auto cancelled = Start(7, calls);
  const LayerWanted late = asked.get_future().get();
  receiver_->Cancel(absl::AbortedError("epoch 9 has begun"));
  EXPECT_EQ(cancelled.get().status.message(), "epoch 9 has begun");

  calls = Takes(8);
  const auto provide = calls.wanted;
  calls.wanted = [&](const LayerWanted& wanted) {
    EXPECT_NE(wanted.ticket, late.ticket);
    Provide(late, LayerMemory{.handles = {SharedMemoryHandle{"/nowhere", 1}}});
    receiver_->Answer({late.ticket, LayerTaken{}});
    receiver_->Answer({late.ticket, LayerRefused{"too late"}});
    provide(wanted);
  };
  const sink::Received received = Start(8, calls).get();
  EXPECT_TRUE(received.status.ok()) << received.status;
}

TEST_F(LayerWindowTest, AnEngineThatGoesInTheMiddleIsLetGoOfAndAnotherMayAttach) {
  MakeReady(1);
  std::promise<void> asked;
  LayerCalls calls = Takes(7);
  calls.wanted = [&](const LayerWanted& wanted) {
    if (wanted.layer != "model.layers.3") return Provide(wanted, lender_.Lend(wanted));
    asked.set_value();
  };
  auto broken = Start(7, calls);
  asked.get_future().get();
  receiver_->Cancel(absl::UnavailableError("engine engine-7 is gone"));  // as the controller does
  receiver_->Detach();
  EXPECT_EQ(broken.get().status.message(), "engine engine-7 is gone");
  ASSERT_TRUE(Attach(Spec(1)).ok());
  ExpectNextVersionIsGood(8);
}

TEST_F(LayerWindowTest, ALayerCannotBeTakenBeforeItIsComplete) {
  MakeReady(1);
  LayerCalls calls = Takes(7);
  calls.wanted = [this](const LayerWanted& wanted) {
    Provide(wanted, lender_.Lend(wanted));
    receiver_->Answer({wanted.ticket, LayerTaken{}});
  };
  const sink::Received received = Start(7, calls).get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(received.status.message()), HasSubstr("model.layers.0, which is not complete"));
}

TEST_F(LayerWindowTest, ADamagedBucketReachesNoLayerAndTheBytesBeforeItMakeTheReplicaTorn) {
  MakeReady(1);
  script_.Corrupt(0);
  const sink::Received first = Start(7, Takes(7)).get();
  EXPECT_EQ(first.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(first.bucket, 0);
  EXPECT_FALSE(first.wrote);
  EXPECT_TRUE(lender_.order().empty());
  script_.Corrupt(3);
  const sink::Received later = Start(8, Takes(8)).get();
  EXPECT_EQ(later.bucket, 3);
  EXPECT_TRUE(later.wrote);
  ExpectNextVersionIsGood(9);
}

TEST_F(LayerWindowTest, AnAttachRefusesWhatAWindowCannotHave) {
  Use();
  AttachSpec spec = Spec(1);
  int64_t bytes = 0;
  spec.destinations = WholeDestinations(*plan_, &bytes);
  const auto layers = Attach(spec);
  EXPECT_EQ(layers.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(layers.status().message()),
              AllOf(HasSubstr("'model.layers.0.mlp.up_proj.weight': it belongs to a layer")));
  spec = Spec(1);
  spec.destinations.pop_back();
  EXPECT_THAT(std::string(Attach(spec).status().message()), HasSubstr("'lm_head.weight': no destination takes it"));
  Use(kPatience, SinkMode::kStaged);
  const auto staged = Attach(Spec(1));
  EXPECT_EQ(staged.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(staged.status().message()), HasSubstr("in_place"));
}

TEST_F(LayerWindowTest, WhatTheEngineTookCannotBeLookedAtAgainAndThatIsSaid) {
  MakeReady(1);
  ASSERT_TRUE(Start(7, Takes(7)).get().status.ok());
  std::promise<absl::StatusOr<Hash128>> answer;
  receiver_->Verify([&](absl::StatusOr<Hash128> digest) { answer.set_value(std::move(digest)); });
  const auto verified = answer.get_future().get();
  EXPECT_EQ(verified.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(verified.status().message()), HasSubstr("went back to it when the layer was complete"));
}

}  // namespace
}  // namespace wsync
