// A training process or an inference engine as a process of its own, told by lines on stdin what to do and what to
// suffer, telling in lines on stdout what happened to it.
//
//   fault_client trainer SOCKET          register | publish VERSION SEED
//                                        from `released` on the weights are others
//                                        registered COMMITTED | accepted | released
//                                        done CODE MS EPOCH REPLICA=OUTCOME,... MESSAGE  (EPOCH: of `accepted`, or 0)
//   fault_client engine SOCKET NAME      attach | content | flip BIT
//                                        attached | applied VERSION | torn VERSION | cancelled VERSION | lost MESSAGE
//                                        content VERSION paused|running torn|whole CONTENT | silently-torn VERSION
//   both                                 at STEP FAULT ARGUMENT: at that step, once. FAULT as in fault_kind.h
//                                        armed
//
// Steps of a trainer: register registered accepted progress released committed. Of an engine: attach attached prepare
// pause (asked to) paused (said so) applied.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/cli/engine_memory.h"
#include "client/cli/shared_model.h"
#include "server/core/clock.h"
#include "server/core/sync.h"
#include "tests/faults/fault_kind.h"
#include "tests/faults/fault_model.h"

namespace wsync::faults {
namespace {

void Say(const std::string& line) {
  const std::string whole = absl::StrCat(absl::StrReplaceAll(line, {{"\n", " "}}), "\n");
  (void)!write(STDOUT_FILENO, whole.data(), whole.size());
}

// What was told with `at`. Thread-safe.
class Plot {
 public:
  void Set(const std::string& step, Fault fault, int argument) {
    MutexLock lock(&mu_);
    armed_[step] = {fault, argument};
    Say("armed");
  }
  void Reach(const std::string& step) {
    Armed armed;
    {
      MutexLock lock(&mu_);
      const auto it = armed_.find(step);
      if (it == armed_.end()) return;
      armed = it->second;
      armed_.erase(it);
    }
    Say(absl::StrCat("fault ", step));
    if (armed.fault == Fault::kKill) raise(SIGKILL);
    if (armed.fault == Fault::kStop) raise(SIGSTOP);
    if (armed.fault == Fault::kExit) _exit(armed.argument);
    if (armed.fault == Fault::kDelay) usleep(static_cast<useconds_t>(armed.argument) * 1000);
    while (armed.fault == Fault::kHang) pause();
  }

 private:
  struct Armed {
    Fault fault = Fault::kNone;
    int argument = 0;
  };
  Mutex mu_;
  std::map<std::string, Armed> armed_ ABSL_GUARDED_BY(mu_);
};

// ---- trainer

class Trainer {
 public:
  Trainer(std::string socket, Plot* plot) : socket_(std::move(socket)), plot_(plot) {}

  absl::Status Register() {
    auto client = TrainerClient::Connect(socket_, absl::Seconds(20));
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    auto model = cli::SharedModel::Create(SmallModel(), "the model of a fault test");
    if (!model.ok()) return model.status();
    model_ = std::make_unique<cli::SharedModel>(*std::move(model));
    plot_->Reach("register");
    const absl::Time deadline = MonotonicNow() + absl::Seconds(10);
    auto reply = model_->Register(*client_, {}, false);
    while (absl::IsUnavailable(reply.status()) && MonotonicNow() < deadline) {  // as any training job would
      usleep(50'000);
      reply = model_->Register(*client_, {}, false);
    }
    if (!reply.ok()) return reply.status();
    plot_->Reach("registered");
    Say(absl::StrCat("registered ", reply->committed().version()));
    return absl::OkStatus();
  }

  void Fill(uint64_t seed) {
    const SourceTensor& last = model_->tensors().back();
    FillWeights(model_->Data(0), static_cast<int64_t>(last.offset_bytes) + BytesOf(last.tensor), seed);
  }

  void Publish(uint64_t version, uint64_t seed) {
    Fill(seed);
    PublishObserver observer;
    uint64_t epoch = 0;
    observer.accepted = [this, &epoch](const v1::Accepted& accepted) {
      epoch = accepted.epoch();
      Say("accepted");
      plot_->Reach("accepted");
    };
    observer.progress = [this](const v1::PublishProgress&) { plot_->Reach("progress"); };
    observer.released = [this, seed](const v1::Released&) {
      Fill(~seed);  // it trains on: whoever reads the weights now sends what no version has
      Say("released");
      plot_->Reach("released");
    };
    const absl::Time begun = MonotonicNow();
    const auto report = client_->Publish(version, observer);
    const auto ms = absl::ToInt64Milliseconds(MonotonicNow() - begun);
    plot_->Reach("committed");
    std::string message(report.status().message());
    std::vector<std::string> outcomes;
    if (report.ok()) {
      for (const v1::ReplicaOutcome& replica : report->replicas()) {
        outcomes.push_back(absl::StrCat(replica.replica(), "=", static_cast<int>(replica.outcome())));
        if (replica.outcome() == v1::OUTCOME_APPLIED) continue;
        absl::StrAppend(&message, replica.replica(), ": ", replica.reason(), "; ");
      }
    }
    const std::string told = outcomes.empty() ? "-" : absl::StrJoin(outcomes, ",");
    Say(absl::StrCat("done ", static_cast<int>(report.status().code()), " ", ms, " ", epoch, " ", told, " ", message));
  }

  int Run() {
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      std::string command, step;
      uint64_t version = 0, seed = 0;
      int fault = 0, argument = 0;
      words >> command;
      if (command == "at" && words >> step >> fault >> argument) plot_->Set(step, static_cast<Fault>(fault), argument);
      if (command == "publish" && words >> version >> seed) Publish(version, seed);
      if (command != "register") continue;
      if (const absl::Status status = Register(); !status.ok()) Say(absl::StrCat("failed ", status.message()));
    }
    return 0;
  }

 private:
  const std::string socket_;
  Plot* const plot_;
  std::unique_ptr<TrainerClient> client_;
  std::unique_ptr<cli::SharedModel> model_;
};

// ---- engine

// Serves what it was given: between versions it looks again and again whether its weights are still what they were.
class Engine {
 public:
  Engine(std::string socket, std::string name, Plot* plot)
      : socket_(std::move(socket)), name_(std::move(name)), plot_(plot) {}

  int Run() {
    std::thread([this] {
      while (true) {
        usleep(20'000);
        Look();
      }
    }).detach();
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      std::string command, step;
      int fault = 0, argument = 0;
      uint64_t bit = 0;
      words >> command;
      if (command == "at" && words >> step >> fault >> argument) plot_->Set(step, static_cast<Fault>(fault), argument);
      if (command == "content") TellContent();
      if (command == "flip" && words >> bit) Flip(bit);
      if (command == "attach") std::thread([this] { KeepAttached(); }).detach();
    }
    _exit(0);
  }

 private:
  void KeepAttached() {
    while (true) {
      Say(absl::StrCat("lost ", std::string(Follow().message())));
      usleep(100'000);
    }
  }

  absl::Status Follow() {
    auto engine = EngineClient::Connect(socket_, absl::Milliseconds(500));
    if (!engine.ok()) return engine.status();
    const auto outputs = (*engine)->GetOutputs(absl::Seconds(2));
    if (!outputs.ok()) return outputs.status();
    auto memory = cli::EngineMemory::Create(*outputs);
    if (!memory.ok()) return memory.status();
    {
      MutexLock lock(&mu_);
      version_ = 0;
      torn_ = paused_ = false;
      memory_ = *std::move(memory);
    }
    plot_->Reach("attach");
    const auto attached =
        (*engine)->Attach(name_, {memory_->handle()}, memory_->Destinations(), false, absl::Seconds(10));
    if (!attached.ok()) return attached.status();
    Say("attached");
    plot_->Reach("attached");
    while (true) {
      const auto event = (*engine)->Next();
      if (!event.ok()) return event.status();
      if (absl::Status status = Handle(**engine, *event); !status.ok()) return status;
    }
  }

  absl::Status Handle(EngineClient& engine, const v1::UpdateEvent& event) {
    if (event.has_prepare()) {
      plot_->Reach("prepare");
      return event.prepare().in_place() ? Pause(engine, event.prepare().version()) : absl::OkStatus();
    }
    if (event.has_apply()) return Pause(engine, event.apply().version());
    if (event.has_applied())
      plot_->Reach("applied");  // before anybody can see it: what is told next is for the next one
    {
      MutexLock lock(&mu_);
      if (event.has_applied()) {
        version_ = event.applied().version();
        content_ = ContentName(memory_->Data(0), memory_->bytes());
        torn_ = paused_ = false;
        Say(absl::StrCat("applied ", version_));
      } else if (event.has_torn()) {
        torn_ = true;
        Say(absl::StrCat("torn ", event.torn().version()));
      } else if (event.has_cancelled()) {
        paused_ = torn_;
        Say(absl::StrCat("cancelled ", event.cancelled().version()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Pause(EngineClient& engine, uint64_t version) {
    plot_->Reach("pause");
    {
      MutexLock lock(&mu_);
      paused_ = true;
    }
    absl::Status status = engine.Paused(version);
    plot_->Reach("paused");
    return status;
  }

  void Look() {
    MutexLock lock(&mu_);
    if (memory_ == nullptr || paused_ || torn_ || version_ == 0) return;
    if (ContentName(memory_->Data(0), memory_->bytes()) != content_) Say(absl::StrCat("silently-torn ", version_));
  }

  // What a stray write does. The engine does not look for it itself any more.
  void Flip(uint64_t bit) {
    MutexLock lock(&mu_);
    auto* const data = const_cast<std::byte*>(memory_->Data(0));
    bit %= static_cast<uint64_t>(memory_->bytes()) * 8;
    data[bit / 8] ^= std::byte{1} << (bit % 8);
    content_ = ContentName(memory_->Data(0), memory_->bytes());
    Say("flipped");
  }

  void TellContent() {
    MutexLock lock(&mu_);
    Say(absl::StrCat("content ", version_, paused_ ? " paused" : " running", torn_ ? " torn " : " whole ",
                     memory_ == nullptr ? "none" : ContentName(memory_->Data(0), memory_->bytes())));
  }

  const std::string socket_;
  const std::string name_;
  Plot* const plot_;
  Mutex mu_;
  std::unique_ptr<cli::EngineMemory> memory_;  // replaced under mu_ by the thread that alone uses it without
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;
  std::string content_ ABSL_GUARDED_BY(mu_);
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  bool torn_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace
}  // namespace wsync::faults

int main(int argc, char** argv) {
  wsync::faults::Plot plot;
  const std::string role = argc > 2 ? argv[1] : "";
  if (role == "trainer") return wsync::faults::Trainer(argv[2], &plot).Run();
  if (role == "engine" && argc > 3) return wsync::faults::Engine(argv[2], argv[3], &plot).Run();
  std::fprintf(stderr, "usage: fault_client trainer SOCKET | fault_client engine SOCKET NAME\n");
  return 2;
}
