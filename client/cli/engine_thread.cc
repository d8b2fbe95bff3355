#include "client/cli/engine_thread.h"

#include <pthread.h>

#include <utility>

#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr absl::Duration kRetry = absl::Milliseconds(100);  // an agent that restarts is back within a second
constexpr absl::Duration kPlanTimeout = absl::Seconds(2);   // then look at Stop again, and ask once more
constexpr absl::Duration kConnectTimeout = absl::Milliseconds(500);

}  // namespace

EngineThread::EngineThread(std::string name, std::string socket)
    : name_(std::move(name)), socket_(std::move(socket)), thread_([this] { Run(); }) {}

EngineThread::~EngineThread() { Stop(); }

void EngineThread::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    if (attached_ != nullptr) attached_->Cancel();
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

uint64_t EngineThread::version() const {
  MutexLock lock(&mu_);
  return version_;
}

bool EngineThread::WaitForVersion(uint64_t version, absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  MutexLock lock(&mu_);
  while (version_ != version) {
    if (!changed_.WaitUntil(&mu_, deadline)) return version_ == version;
  }
  return true;
}

std::vector<double> EngineThread::pauses_ms() const {
  MutexLock lock(&mu_);
  return pauses_ms_;
}

std::string EngineThread::last_error() const {
  MutexLock lock(&mu_);
  return last_error_;
}

void EngineThread::Run() {
  pthread_setname_np(pthread_self(), "engine");
  while (true) {
    const absl::Status ended = FollowOnce();
    MutexLock lock(&mu_);
    attached_ = nullptr;
    if (stopping_) return;
    last_error_ = std::string(ended.message());
    const absl::Time retry = MonotonicNow() + kRetry;
    while (!stopping_ && changed_.WaitUntil(&mu_, retry)) {
    }
    if (stopping_) return;
  }
}

absl::Status EngineThread::FollowOnce() {
  auto engine = EngineClient::Connect(socket_, kConnectTimeout);
  if (!engine.ok()) return engine.status();
  const auto outputs = (*engine)->GetOutputs(kPlanTimeout);
  if (!outputs.ok()) return outputs.status();
  auto memory = EngineMemory::Create(*outputs);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  const auto attached =
      (*engine)->Attach(name_, {memory_->handle()}, memory_->Destinations(), false, absl::Seconds(10));
  if (!attached.ok()) return attached.status();
  {
    MutexLock lock(&mu_);
    if (stopping_) return absl::CancelledError("stopping");
    attached_ = engine->get();
    version_ = 0;
  }
  const absl::Status ended = Follow(**engine);
  MutexLock lock(&mu_);
  attached_ = nullptr;
  return ended;
}

absl::Status EngineThread::Follow(EngineClient& engine) {
  while (true) {
    const auto event = engine.Next();
    if (!event.ok()) return event.status();
    if (const auto version = AsksToPause(*event)) {
      if (absl::Status answered = engine.Paused(*version); !answered.ok()) return answered;
    }
    if (!event->has_applied()) continue;
    MutexLock lock(&mu_);
    version_ = event->applied().version();
    changed_.SignalAll();
    pauses_ms_.push_back(event->applied().timings().pause_ms());
  }
}

}  // namespace wsync::cli
