// Memory of layers asked for when the transfer gets there, and let go of: a receiver over a backend that the test
// controls, and an engine that lends.
#include "server/rollout/layer_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <optional>

#include "absl/strings/str_cat.h"
#include "server/rollout/receiver.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

// Layers of three tensors, smaller than a bucket and larger, with tensors of no layer around them.
std::vector<Tensor> Catalog5() {
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", Dtype::kBF16, {300, 96}}};
  for (int layer = 0; layer < 5; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const int64_t rows = layer < 3 ? 128 : 600;
    tensors.push_back({prefix + "input_layernorm.weight", Dtype::kBF16, {96}});
    tensors.push_back({prefix + "mlp.up_proj.weight", Dtype::kBF16, {rows, 96}});
    tensors.push_back({prefix + "mlp.down_proj.weight", Dtype::kBF16, {96, rows}});
  }
  tensors.push_back({"lm_head.weight", Dtype::kBF16, {300, 96}});
  return tensors;
}

// An engine that lends memory of its own for every layer; what it does with one can be changed by a test.
class Lender {
 public:
  Lender(Script* script, std::shared_ptr<const Plan> plan) : script_(script), plan_(std::move(plan)) {}

  LayerMemory Lend(const LayerWanted& wanted) {
    LayerMemory memory;
    const std::string name = absl::StrCat("/layer-", wanted.ticket);
    int64_t bytes = 0;
    for (const int64_t i : wanted.outputs) {
      const Output& output = plan_->outputs()[i];
      const MatrixView view = ViewOf(Tensor{output.name, output.dtype, output.shape});
      const int64_t pitch = view.cols * DtypeBytes(output.dtype);
      memory.destinations.push_back(
          {output.name, output.dtype, output.shape, 0, view.rows, 0, view.cols, 0, bytes, pitch});
      bytes += view.rows * pitch;
    }
    memory.handles = {SharedMemoryHandle{name, bytes}};
    script_->AddEngineMemory(name, bytes);
    lent_[wanted.layer] = {wanted.ticket, memory, bytes};
    order_.push_back(wanted.layer);
    Count();
    return memory;
  }
  // The memory holds what `version` has for the layer.
  bool Holds(const std::string& layer, uint64_t version) const {
    const Lent& lent = lent_.at(layer);
    int64_t all = 0;
    const std::vector<Destination> whole = WholeDestinations(*plan_, &all);
    const std::vector<std::byte> source = ExpectedMemory(*plan_, version);
    std::vector<std::byte> expected(static_cast<size_t>(lent.bytes));
    for (const Destination& d : lent.memory.destinations) {
      const auto in_all = std::find_if(whole.begin(), whole.end(), [&](const auto& w) { return w.output == d.output; });
      std::copy_n(source.begin() + in_all->offset_bytes, (d.row_end - d.row_begin) * d.row_pitch_bytes,
                  expected.begin() + d.offset_bytes);
    }
    return script_->EngineMemoryIs(NameOf(layer), expected);
  }
  // Frees the memory: whoever still writes there is found by AddressSanitizer.
  uint64_t Free(const std::string& layer) {
    const uint64_t ticket = lent_.at(layer).ticket;
    script_->RemoveEngineMemory(NameOf(layer));
    lent_.erase(layer);
    return ticket;
  }
  void FreeAll() {
    while (!lent_.empty()) Free(lent_.begin()->first);
  }
  size_t most_layers() const { return most_layers_; }
  int64_t most_bytes() const { return most_bytes_; }
  size_t lent() const { return lent_.size(); }
  const std::vector<std::string>& order() const { return order_; }

 private:
  struct Lent {
    uint64_t ticket;
    LayerMemory memory;
    int64_t bytes;
  };
  std::string NameOf(const std::string& layer) const { return absl::StrCat("/layer-", lent_.at(layer).ticket); }
  void Count() {
    int64_t bytes = 0;
    for (const auto& [layer, lent] : lent_) bytes += lent.bytes;
    most_layers_ = std::max(most_layers_, lent_.size());
    most_bytes_ = std::max(most_bytes_, bytes);
  }

  Script* const script_;
  const std::shared_ptr<const Plan> plan_;
  std::map<std::string, Lent> lent_;
  std::vector<std::string> order_;
  size_t most_layers_ = 0;
  int64_t most_bytes_ = 0;
};

class LayerWindowTest : public ::testing::Test {
 protected:
  ~LayerWindowTest() override { receiver_.reset(); }

  void Use(absl::Duration limit = kPatience, SinkMode mode = SinkMode::kInPlace) {
    receiver_.emplace(backend_.get(), ReceiverOptions{.mode = mode, .ring_slots = 2, .layer_timeout = limit});
    std::promise<PlanResult> made;
    receiver_->SetCatalog({plan_->catalog().tensors(), plan_->rules(), plan_->bucket_bytes(),
                           plan_->catalog().fingerprint(), plan_->hash()},
                          [&](PlanResult result) { made.set_value(std::move(result)); });
    ASSERT_TRUE(made.get_future().get().status.ok());
  }
  AttachSpec Spec(int64_t window) {
    AttachSpec spec{.engine = "engine-7", .pid = 1, .layer_window = window};
    int64_t bytes = 0;
    for (Destination& d : WholeDestinations(*plan_, &bytes)) {
      if (LayerOf(d.output).empty()) spec.destinations.push_back(d);
    }
    script_.AddEngineMemory("/stays", bytes);
    spec.handles = {SharedMemoryHandle{"/stays", bytes}};
    return spec;
  }
  absl::StatusOr<AttachInfo> Attach(AttachSpec spec) {
    std::promise<absl::StatusOr<AttachInfo>> answer;
    receiver_->Attach(std::move(spec), [&](absl::StatusOr<AttachInfo> info) { answer.set_value(std::move(info)); });
    return answer.get_future().get();
  }
  void MakeReady(int64_t window, absl::Duration limit = kPatience) {
    ASSERT_NO_FATAL_FAILURE(Use(limit));
    const auto attached = Attach(Spec(window));
    ASSERT_TRUE(attached.ok()) << attached.status();
  }
  std::future<sink::Received> Start(uint64_t version, LayerCalls calls) {
    script_.SetVersion(version);
    std::promise<sink::Connected> connected;
    receiver_->Connect({absl::StrCat("session-", version), 1, 2, "nowhere"},
                       [&](sink::Connected result) { connected.set_value(result); });
    EXPECT_TRUE(connected.get_future().get().status.ok());
    auto done = std::make_shared<std::promise<sink::Received>>();
    receiver_->Receive([done](sink::Received received) { done->set_value(std::move(received)); }, std::move(calls));
    receiver_->EnginePaused();
    return done->get_future();
  }
  // An engine that does what it should: lends, looks at a layer, frees it and takes it at once.
  LayerCalls Takes(uint64_t version) {
    return {.ready =
                [this, version](const LayerReady& ready) {
                  ready_.push_back(ready.name);
                  if (!ready.name.empty()) {
                    EXPECT_TRUE(lender_.Holds(ready.name, version)) << ready.name;
                    EXPECT_EQ(lender_.Free(ready.name), ready.ticket);
                  }
                  receiver_->Answer({ready.ticket, LayerTaken{}});
                },
            .wanted = [this](const LayerWanted& wanted) { Provide(wanted, lender_.Lend(wanted)); }};
  }
  // As it does, but lends what `change` makes of the memory for layer 3.
  LayerCalls LendsWrongly(uint64_t version, std::function<void(LayerMemory&)> change) {
    LayerCalls calls = Takes(version);
    calls.wanted = [this, change](const LayerWanted& wanted) {
      LayerMemory memory = lender_.Lend(wanted);
      if (wanted.layer == "model.layers.3") change(memory);
      Provide(wanted, std::move(memory));
    };
    return calls;
  }
  void Provide(const LayerWanted& wanted, LayerMemory memory) {
    receiver_->Answer({wanted.ticket, LayerProvided{std::move(memory)}});
  }
  void ExpectNextVersionIsGood(uint64_t version) {
    lender_.FreeAll();
    const sink::Received received = Start(version, Takes(version)).get();
    EXPECT_TRUE(received.status.ok()) << received.status;
    EXPECT_EQ(received.digest, ContentOf(version));
  }
  Hash128 ContentOf(uint64_t version) { return plan_->ContentDigest(SourceDigests(*plan_, version)); }
  bool StaysHold(uint64_t version) {
    int64_t bytes = 0;
    std::vector<std::byte> expected = ExpectedMemory(*plan_, version);
    for (const Destination& d : WholeDestinations(*plan_, &bytes)) {
      if (LayerOf(d.output).empty()) continue;
      std::fill_n(expected.begin() + d.offset_bytes, (d.row_end - d.row_begin) * d.row_pitch_bytes, std::byte{0});
    }
    return script_.EngineMemoryIs("/stays", expected);
  }

  Script script_;
  std::unique_ptr<Backend> backend_ = NewFakeBackend(&script_);
  std::shared_ptr<const Plan> plan_ = PlanOf(Catalog5());
  Lender lender_{&script_, plan_};
  std::vector<std::string> ready_;
  std::optional<Receiver> receiver_;
};

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
