// A receiver over a backend that the test controls, and an engine that lends memory for its layers.
#ifndef WSYNC_TESTS_ROLLOUT_LAYER_WINDOW_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_LAYER_WINDOW_TESTING_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/layer_schedule.h"
#include "server/core/layers.h"
#include "server/rollout/layer_window.h"
#include "server/rollout/receiver.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/source_testing.h"
#include "tests/rollout/testing.h"

namespace wsync {

// Layers of three tensors, smaller than a bucket and larger, with tensors of no layer around them.
inline std::vector<Tensor> Catalog5() {
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

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_LAYER_WINDOW_TESTING_H_
