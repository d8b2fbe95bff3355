#include "tests/rollout/fake_backend.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

// Runs `next` with the result of `after`, at once if that is there.
void After(const CompletionPtr& after, std::function<void(absl::Status)> next) {
  if (after == nullptr) return next(absl::OkStatus());
  static_cast<FakeCompletion&>(*after).Then(std::move(next));
}

class FakeBuffer final : public Buffer {
 public:
  explicit FakeBuffer(int64_t bytes) : owned_(static_cast<size_t>(bytes), std::byte{0xA5}) {
    data_ = owned_.data();
    bytes_ = bytes;
  }
  FakeBuffer(std::byte* data, int64_t bytes) {
    data_ = data;
    bytes_ = bytes;
  }

 private:
  std::vector<std::byte> owned_;
};

}  // namespace

class FakeMemory final : public Memory {
 public:
  explicit FakeMemory(Script* script) : script_(script) {}
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes, std::string_view purpose) override {
    MutexLock lock(&script_->mu_);
    script_->allocated_ = bytes;
    if (script_->fail_allocation_) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::make_unique<FakeBuffer>(bytes);
  }
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateShared(int64_t, std::string_view, MemoryHandle*) override {
    return absl::UnimplementedError("a sink shares no memory");
  }
  absl::StatusOr<std::unique_ptr<Buffer>> Open(const MemoryHandle& handle, Access) override {
    const auto* shared = std::get_if<SharedMemoryHandle>(&handle);
    if (shared == nullptr) return absl::InvalidArgumentError("not shared memory");
    MutexLock lock(&script_->mu_);
    const auto it = script_->engine_memory_.find(shared->name);
    if (it == script_->engine_memory_.end()) return absl::NotFoundError(absl::StrCat("no memory ", shared->name));
    return std::make_unique<FakeBuffer>(it->second.data(), static_cast<int64_t>(it->second.size()));
  }
  absl::Status CheckEvent(const EventHandle& handle) const override { return FakeClientEvents::Check(handle); }
  absl::StatusOr<std::unique_ptr<StreamEvent>> OpenEvent(const EventHandle& handle) override {
    return script_->events.Open(handle);
  }

 private:
  Script* const script_;
};

class FakeLoader final : public Loader {
 public:
  FakeLoader(Script* script, std::shared_ptr<const Plan> plan, ScatterTable table, std::vector<std::byte*> handles)
      : script_(script),
        plan_(std::move(plan)),
        table_(std::move(table)),
        handles_(std::move(handles)),
        digests_(plan_->pieces().size()) {}

  CompletionPtr Check(int64_t bucket, const std::byte* wire, CompletionPtr after) override {
    return Start(after, [this, bucket, wire](FakeCompletion* done) { done->Finish(CheckNow(bucket, wire)); });
  }
  CompletionPtr Apply(int64_t bucket, const std::byte* wire, CompletionPtr after) override {
    return Start(after, [this, bucket, wire](FakeCompletion* done) {
      {
        MutexLock lock(&script_->mu_);
        if (script_->hold_apply_) {
          script_->held_applies_.push_back([this, bucket, wire, done] { done->Finish(ApplyNow(bucket, wire)); });
          return;
        }
      }
      done->Finish(ApplyNow(bucket, wire));
    });
  }
  absl::Status Retarget(ScatterTable table, std::vector<std::byte*> handles) override {
    MutexLock lock(&script_->mu_);
    table_ = std::move(table);
    if (table_.bucket_begin.empty()) table_.bucket_begin.assign(plan_->buckets().size() + 1, 0);
    handles_ = std::move(handles);
    return absl::OkStatus();
  }
  CompletionPtr ApplyAll(const std::byte* image, CompletionPtr after) override {
    CompletionPtr last = std::move(after);
    for (size_t k = 0; k < plan_->buckets().size(); ++k) {
      last = Apply(static_cast<int64_t>(k), image + plan_->buckets()[k].image_offset, last);
    }
    return last;
  }
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override {
    absl::Status status;
    for (const auto& work : std::exchange(started_, {})) status.Update(work->Wait(deadline));
    wrote_ = writing_.exchange(false);
    if (!status.ok()) return status;
    MutexLock lock(&mu_);
    found_ = digests_;
    return found_;
  }
  bool wrote() const override { return wrote_; }

 private:
  CompletionPtr Start(const CompletionPtr& after, std::function<void(FakeCompletion*)> work) {
    auto done = std::make_shared<FakeCompletion>();
    started_.push_back(done);
    After(after, [done, work = std::move(work)](const absl::Status& status) {
      status.ok() ? work(done.get()) : done->Finish(status);
    });
    return done;
  }
  absl::Status CheckNow(int64_t bucket, const std::byte* wire) {
    const Bucket& b = plan_->buckets()[bucket];
    uint64_t version = 0;
    {
      MutexLock lock(&script_->mu_);
      version = script_->version_;
    }
    const std::vector<std::byte> sent = SourceBucket(b, version);
    if (!std::equal(sent.begin(), sent.end(), wire)) {
      return absl::DataLossError(absl::StrCat("bucket ", bucket, " is not what was sent"));
    }
    MutexLock lock(&mu_);
    for (int64_t i = b.piece_begin; i < b.piece_end; ++i) digests_[i] = PieceDigest(plan_->pieces()[i], wire);
    return absl::OkStatus();
  }
  absl::Status ApplyNow(int64_t bucket, const std::byte* wire) {
    writing_ = true;
    MutexLock lock(&script_->mu_);
    if (script_->fail_apply_ == bucket) {
      script_->fail_apply_ = -1;
      return absl::InternalError(absl::StrCat("the copy of bucket ", bucket, " failed"));
    }
    for (int64_t i = table_.bucket_begin[bucket]; i < table_.bucket_begin[bucket + 1]; ++i) {
      CopyRows(table_.copies[i], wire, handles_[table_.copies[i].handle]);
    }
    ++script_->applied_;
    return absl::OkStatus();
  }

  Script* const script_;
  const std::shared_ptr<const Plan> plan_;
  ScatterTable table_;
  std::vector<std::byte*> handles_;
  std::vector<std::shared_ptr<FakeCompletion>> started_;
  std::atomic<bool> writing_ = false;
  bool wrote_ = false;
  Mutex mu_;
  std::vector<uint64_t> digests_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> found_;  // what the last Finish gave
};

class FakeTransport final : public Transport {
 public:
  explicit FakeTransport(Script* script) : script_(script), session_(std::make_shared<Script::Session>()) {}
  ~FakeTransport() override { Cancel(absl::CancelledError("the transport went away")); }

  absl::Status Connect(absl::Time deadline) override {
    MutexLock lock(&script_->mu_);
    script_->session_ = session_;
    script_->delivered_ = 0;
    ++script_->sessions_;
    while (script_->hold_connect_ && (script_->deaf_ || session_->cancelled.ok())) {
      if (!script_->changed_.WaitUntil(&script_->mu_, deadline))
        return absl::DeadlineExceededError("rank 0 is missing");
    }
    if (!session_->cancelled.ok()) return session_->cancelled;
    return std::exchange(script_->fail_connect_, absl::OkStatus());
  }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    auto done = std::make_shared<FakeCompletion>();
    int64_t bucket = 0;
    int64_t offset = 0;
    {
      MutexLock lock(&script_->mu_);
      bucket = session_->broadcasts++;
      offset = std::exchange(session_->next_offset, session_->next_offset + bytes);
    }
    After(after, [this, done, data, bytes, bucket, offset](absl::Status status) {
      {
        MutexLock lock(&script_->mu_);
        if (status.ok()) status = session_->cancelled;
        if (status.ok()) session_->waiting[bucket] = {data, bytes, offset, done};
      }
      if (!status.ok()) return done->Finish(status);
      script_->Deliver();
    });
    return done;
  }
  void Cancel(const absl::Status& why) override {
    std::map<int64_t, Script::Pending> waiting;
    {
      MutexLock lock(&script_->mu_);
      if (session_->cancelled.ok()) session_->cancelled = why;
      waiting.swap(session_->waiting);
      script_->changed_.SignalAll();
    }
    for (auto& [bucket, pending] : waiting) pending.done->Finish(why);
  }
  int64_t moved_bytes() const override {
    MutexLock lock(&script_->mu_);
    return session_->moved_bytes;
  }

 private:
  Script* const script_;
  const std::shared_ptr<Script::Session> session_;
};

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(Script* script) : script_(script), memory_(script) {}
  std::string name() const override { return "fake"; }
  Memory& memory() override { return memory_; }
  absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan>,
                                                          std::vector<const std::byte*>) override {
    return absl::UnimplementedError("a sink quantizes nothing");
  }
  absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                    std::vector<std::byte*> handles) override {
    return std::make_unique<FakeLoader>(script_, std::move(plan), std::move(table), std::move(handles));
  }
  absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec&) override {
    return std::make_unique<FakeTransport>(script_);
  }
  std::string NewSessionToken() override { return "token"; }

 private:
  Script* const script_;
  FakeMemory memory_;
};

std::unique_ptr<Backend> NewFakeBackend(Script* script) { return std::make_unique<FakeBackend>(script); }

}  // namespace wsync
