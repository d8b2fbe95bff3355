#include "tests/rollout/fake_backend.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

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

uint64_t PieceDigest(const Piece& piece, const std::byte* wire) {
  const auto add = [](uint64_t sum, std::byte byte) { return sum * 3 + static_cast<uint64_t>(byte); };
  const uint64_t data =
      std::accumulate(wire + piece.data_offset, wire + piece.data_offset + piece.data_bytes, uint64_t{1}, add);
  return std::accumulate(wire + piece.scale_offset, wire + piece.scale_offset + piece.scale_bytes, data, add);
}

std::vector<std::byte> SourceBucket(const Bucket& bucket, uint64_t version) {
  std::vector<std::byte> bytes(static_cast<size_t>(bucket.wire_bytes));
  for (int64_t i = 0; i < bucket.wire_bytes; ++i) bytes[i] = SourceByte(version, bucket.image_offset + i);
  return bytes;
}

void CopyRows(const ScatterCopy& copy, const std::byte* wire, std::byte* base) {
  for (int64_t row = 0; row < copy.rows; ++row) {
    std::memcpy(base + copy.dest_offset + row * copy.dest_pitch, wire + copy.source_offset + row * copy.source_pitch,
                static_cast<size_t>(copy.row_bytes));
  }
}

}  // namespace

// ---- completions

absl::Status FakeCompletion::Wait(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (!result_) {
    if (!changed_.WaitUntil(&mu_, deadline) && !result_) return absl::DeadlineExceededError("still running");
  }
  return *result_;
}

std::optional<absl::Status> FakeCompletion::Poll() {
  MutexLock lock(&mu_);
  return result_;
}

void FakeCompletion::Finish(const absl::Status& status) {
  std::vector<std::function<void(absl::Status)>> next;
  {
    MutexLock lock(&mu_);
    if (result_) return;
    result_ = status;
    next.swap(next_);
    changed_.SignalAll();
  }
  for (auto& f : next) f(status);
}

void FakeCompletion::Then(std::function<void(absl::Status)> next) {
  std::optional<absl::Status> result;
  {
    MutexLock lock(&mu_);
    result = result_;
    if (!result) next_.push_back(next);
  }
  if (result) next(*result);
}

// ---- the parts

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
    while (script_->hold_connect_ && session_->cancelled.ok()) {
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

// ---- the script

void Script::SetVersion(uint64_t version) {
  MutexLock lock(&mu_);
  version_ = version;
  delivered_ = 0;
  if (session_ != nullptr) session_->next_offset = session_->broadcasts = 0;
}

void Script::DeliverUpTo(int64_t buckets) {
  {
    MutexLock lock(&mu_);
    deliver_up_to_ = buckets;
  }
  Deliver();
}

void Script::Corrupt(int64_t bucket) {
  MutexLock lock(&mu_);
  corrupt_ = bucket;
}

void Script::FailConnect(const absl::Status& why) {
  MutexLock lock(&mu_);
  fail_connect_ = why;
}

void Script::HoldConnect(bool hold) {
  MutexLock lock(&mu_);
  hold_connect_ = hold;
  changed_.SignalAll();
}

void Script::HoldApply(bool hold) {
  std::vector<std::function<void()>> held;
  {
    MutexLock lock(&mu_);
    hold_apply_ = hold;
    if (!hold) held.swap(held_applies_);
  }
  for (auto& apply : held) apply();
}

void Script::FailApply(int64_t bucket) {
  MutexLock lock(&mu_);
  fail_apply_ = bucket;
}

void Script::FailAllocation(bool fail) {
  MutexLock lock(&mu_);
  fail_allocation_ = fail;
}

void Script::AddEngineMemory(const std::string& name, int64_t bytes) {
  MutexLock lock(&mu_);
  engine_memory_.emplace(name, static_cast<size_t>(bytes));
}

bool Script::EngineMemoryIs(const std::string& name, const std::vector<std::byte>& expected) const {
  MutexLock lock(&mu_);
  return engine_memory_.at(name) == expected;
}

void Script::RemoveEngineMemory(const std::string& name) {
  MutexLock lock(&mu_);
  engine_memory_.erase(name);
}

void Script::ClearEngineMemory(const std::string& name) {
  MutexLock lock(&mu_);
  std::vector<std::byte>& memory = engine_memory_.at(name);
  std::fill(memory.begin(), memory.end(), std::byte{0});
}

int64_t Script::sessions() const {
  MutexLock lock(&mu_);
  return sessions_;
}

int64_t Script::received() const {
  MutexLock lock(&mu_);
  return delivered_;
}

int64_t Script::applied() const {
  MutexLock lock(&mu_);
  return applied_;
}

int64_t Script::held_applies() const {
  MutexLock lock(&mu_);
  return static_cast<int64_t>(held_applies_.size());
}

int64_t Script::allocated_bytes() const {
  MutexLock lock(&mu_);
  return allocated_;
}

void Script::Deliver() {
  while (true) {
    Pending pending;
    {
      MutexLock lock(&mu_);
      if (session_ == nullptr || session_->waiting.empty()) return;
      const auto first = session_->waiting.begin();
      if (first->first >= deliver_up_to_) return;
      pending = first->second;
      for (int64_t i = 0; i < pending.bytes; ++i) pending.data[i] = SourceByte(version_, pending.image_offset + i);
      if (first->first == corrupt_) {
        pending.data[0] ^= std::byte{1};
        corrupt_ = -1;
      }
      session_->moved_bytes += pending.bytes;
      ++delivered_;
      session_->waiting.erase(first);
    }
    pending.done->Finish(absl::OkStatus());
  }
}

// ---- plans

std::vector<uint64_t> SourceDigests(const Plan& plan, uint64_t version) {
  std::vector<uint64_t> digests;
  for (const Bucket& bucket : plan.buckets()) {
    const std::vector<std::byte> bytes = SourceBucket(bucket, version);
    for (const Piece& piece : plan.PiecesOf(bucket)) digests.push_back(PieceDigest(piece, bytes.data()));
  }
  return digests;
}

std::vector<Tensor> SmallCatalog(int weights) {
  std::vector<Tensor> tensors = {{"model.norm.weight", Dtype::kBF16, {256}}};
  for (int i = 0; i < weights; ++i) {
    tensors.push_back({absl::StrCat("model.layers.", i, ".mlp.up_proj.weight"), Dtype::kBF16, {256, 256}});
  }
  return tensors;
}

std::shared_ptr<const Plan> PlanOf(std::vector<Tensor> tensors) {
  auto catalog = Catalog::Create(std::move(tensors));
  auto plan = Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), RecipeRules{}, kMinBucketBytes);
  return *std::move(plan);
}

std::vector<Destination> WholeDestinations(const Plan& plan, int64_t* bytes) {
  std::vector<Destination> destinations;
  *bytes = 0;
  for (const Output& output : plan.outputs()) {
    const MatrixView view = ViewOf(Tensor{output.name, output.dtype, output.shape});
    const int64_t pitch = view.cols * DtypeBytes(output.dtype);
    destinations.push_back({output.name, output.dtype, output.shape, 0, view.rows, 0, view.cols, 0, *bytes, pitch});
    *bytes += view.rows * pitch;
  }
  return destinations;
}

std::vector<std::byte> ExpectedMemory(const Plan& plan, uint64_t version) {
  int64_t bytes = 0;
  const std::vector<Destination> destinations = WholeDestinations(plan, &bytes);
  const auto table = BuildScatterTable(plan, destinations, {bytes}, false);
  std::vector<std::byte> memory(static_cast<size_t>(bytes));
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const std::vector<std::byte> wire = SourceBucket(plan.buckets()[k], version);
    for (int64_t i = table->bucket_begin[k]; i < table->bucket_begin[k + 1]; ++i) {
      CopyRows(table->copies[i], wire.data(), memory.data());
    }
  }
  return memory;
}

}  // namespace wsync
