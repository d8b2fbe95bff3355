#include "tests/trainer/fake_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/digest.h"
#include "server/core/clock.h"

namespace wsync {

absl::Status FakeCompletion::Wait(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (!result_.has_value() && MonotonicNow() < deadline) changed_.WaitUntil(&mu_, deadline);
  return result_.has_value() ? *result_ : absl::DeadlineExceededError("still running");
}

std::optional<absl::Status> FakeCompletion::Poll() {
  MutexLock lock(&mu_);
  return result_;
}

void FakeCompletion::Finish(const absl::Status& status) {
  MutexLock lock(&mu_);
  if (!result_.has_value()) result_ = status;
  changed_.SignalAll();
}

struct FakeBackend::Shared {
  Mutex mu;
  CondVar changed;
  bool hold_encodes ABSL_GUARDED_BY(mu) = false;
  bool hold_sends ABSL_GUARDED_BY(mu) = false;
  bool hold_connects ABSL_GUARDED_BY(mu) = false;
  bool deaf ABSL_GUARDED_BY(mu) = false;
  bool fail_allocations ABSL_GUARDED_BY(mu) = false;
  std::map<int64_t, absl::Status> encode_errors ABSL_GUARDED_BY(mu);
  std::vector<Operation> operations ABSL_GUARDED_BY(mu);
  int64_t open_sessions ABSL_GUARDED_BY(mu) = 0;
  int64_t violations ABSL_GUARDED_BY(mu) = 0;
  int64_t tokens ABSL_GUARDED_BY(mu) = 0;
  std::map<std::string, std::vector<std::byte>> lent ABSL_GUARDED_BY(mu);
  FakeClientEvents events;

  // Finishes what is no longer held back, in order, until nothing changes.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    for (bool moved = true; moved;) {
      moved = false;
      for (Operation& operation : operations) {
        if (operation.done->Poll().has_value()) continue;
        const auto after = operation.after == nullptr ? absl::OkStatus() : operation.after->Poll();
        if (!after.has_value()) continue;
        if (after->ok() && (operation.kind == Operation::kEncode ? hold_encodes : hold_sends)) continue;
        absl::Status result = *after;
        if (result.ok() && operation.kind == Operation::kEncode) {
          const auto error = encode_errors.find(operation.bucket);
          if (error != encode_errors.end()) result = error->second;
        }
        operation.done->Finish(result);
        moved = true;
      }
    }
    changed.SignalAll();
  }
  void FailPending(Operation::Kind kind, const std::string& session, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    for (Operation& operation : operations) {
      if (operation.kind == kind && operation.session == session) operation.done->Finish(why);
    }
    Pump();
  }
  // A send that was asked for, is not done, and would not be done before something that comes after `after`.
  bool BeingSent(const std::byte* data, int64_t bytes, const CompletionPtr& after) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return std::any_of(
        operations.begin(), operations.end(), [&](const Operation& other) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
          return other.kind == Operation::kSend && !other.done->Poll().has_value() && !Precedes(other.done, after) &&
                 other.data < data + bytes && data < other.data + other.bytes;
        });
  }
  bool Precedes(const CompletionPtr& first, CompletionPtr after) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    while (after != nullptr && after != first) {
      const auto it = std::find_if(operations.begin(), operations.end(),
                                   [&](const Operation& operation) { return operation.done == after; });
      after = it->after;
    }
    return after != nullptr;
  }
};

class FakeBackend::FakeMemory final : public Memory {
 public:
  explicit FakeMemory(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes, std::string_view purpose) override {
    MutexLock lock(&shared_->mu);
    if (shared_->fail_allocations) {
      return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes for ", std::string(purpose)));
    }
    auto buffer = std::make_unique<Owned>();
    buffer->Resize(bytes);
    return buffer;
  }
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateShared(int64_t bytes, std::string_view purpose,
                                                         MemoryHandle*) override {
    return Allocate(bytes, purpose);
  }
  absl::StatusOr<std::unique_ptr<Buffer>> Open(const MemoryHandle& handle, Access) override {
    const auto* named = std::get_if<SharedMemoryHandle>(&handle);
    if (named == nullptr) return absl::InvalidArgumentError("the fake lends memory by name only");
    MutexLock lock(&shared_->mu);
    const auto it = shared_->lent.find(named->name);
    if (it == shared_->lent.end()) return absl::NotFoundError(absl::StrCat("no memory '", named->name, "'"));
    return std::make_unique<View>(it->second.data(), static_cast<int64_t>(it->second.size()));
  }
  absl::Status CheckEvent(const EventHandle& handle) const override { return FakeClientEvents::Check(handle); }
  absl::StatusOr<std::unique_ptr<StreamEvent>> OpenEvent(const EventHandle& handle) override {
    return shared_->events.Open(handle);
  }

 private:
  struct Owned final : Buffer {
    void Resize(int64_t bytes) {
      storage.resize(bytes + kPieceAlign);
      const auto address = reinterpret_cast<uintptr_t>(storage.data());
      data_ = storage.data() + (RoundUp(address, kPieceAlign) - address);
      bytes_ = bytes;
    }
    std::vector<std::byte> storage;
  };
  struct View final : Buffer {
    View(std::byte* data, int64_t bytes) {
      data_ = data;
      bytes_ = bytes;
    }
  };
  std::shared_ptr<Shared> shared_;
};

namespace {

// Of a piece's source rows: other weights, other content digest.
uint64_t DigestOf(const Plan& plan, int64_t index, const std::vector<const std::byte*>& tensors) {
  const Piece& piece = plan.pieces()[index];
  const Tensor& tensor = plan.catalog().tensors()[piece.tensor];
  const int64_t row_bytes = ViewOf(tensor).cols * DtypeBytes(tensor.dtype);
  const std::byte* data = tensors[piece.tensor] + piece.row_begin * row_bytes;
  return DigestRows(data, piece.row_begin, piece.rows, row_bytes, row_bytes);
}

}  // namespace

Hash128 FakeBackend::ContentOf(const Plan& plan, const std::vector<const std::byte*>& tensors) {
  std::vector<uint64_t> digests(plan.pieces().size());
  for (size_t i = 0; i < digests.size(); ++i) digests[i] = DigestOf(plan, static_cast<int64_t>(i), tensors);
  return plan.ContentDigest(digests);
}

class FakeBackend::FakeQuantizer final : public Quantizer {
 public:
  FakeQuantizer(std::shared_ptr<Shared> shared, std::shared_ptr<const Plan> plan, std::vector<const std::byte*> tensors)
      : shared_(std::move(shared)),
        plan_(std::move(plan)),
        tensors_(std::move(tensors)),
        digests_(plan_->pieces().size()) {}
  ~FakeQuantizer() override {
    MutexLock lock(&shared_->mu);
    for (auto& mine : mine_) mine->Finish(absl::CancelledError("the quantizer is gone"));
  }

  CompletionPtr Encode(int64_t bucket, std::byte* wire, CompletionPtr after) override {
    const Bucket& b = plan_->buckets()[bucket];
    MutexLock lock(&shared_->mu);  // also orders reading the weights behind ChangeWeights
    for (int64_t i = b.piece_begin; i < b.piece_end; ++i) digests_[i] = DigestOf(*plan_, i, tensors_);
    const std::byte first = tensors_[plan_->pieces()[b.piece_begin].tensor][0];
    if (shared_->BeingSent(wire, b.wire_bytes, after)) {
      ++shared_->violations;
    } else if (after == nullptr) {
      std::memset(wire, static_cast<int>(first), b.wire_bytes);
    }
    auto done = std::make_shared<FakeCompletion>();
    if (!cancelled_.ok()) done->Finish(cancelled_);
    mine_.push_back(done);
    shared_->operations.push_back({Operation::kEncode, bucket, "", wire, b.wire_bytes, std::move(after), done});
    shared_->Pump();
    return done;
  }
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override {
    std::vector<std::shared_ptr<FakeCompletion>> mine;
    {
      MutexLock lock(&shared_->mu);
      mine = mine_;
    }
    absl::Status status;
    for (auto& completion : mine) {
      const absl::Status one = completion->Wait(deadline);
      if (!completion->Poll().has_value()) return one;
      if (status.ok()) status = one;
    }
    MutexLock lock(&shared_->mu);
    mine_.clear();
    cancelled_ = absl::OkStatus();
    if (!status.ok()) return status;
    return digests_;
  }
  void Cancel(const absl::Status& why) override {
    MutexLock lock(&shared_->mu);
    cancelled_ = why;
    for (auto& completion : mine_) completion->Finish(why);
    shared_->Pump();
  }

 private:
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<const Plan> plan_;
  std::vector<const std::byte*> tensors_;
  std::vector<uint64_t> digests_;
  std::vector<std::shared_ptr<FakeCompletion>> mine_;  // guarded by shared_->mu
  absl::Status cancelled_;                             // likewise
};

class FakeBackend::FakeTransport final : public Transport {
 public:
  FakeTransport(std::shared_ptr<Shared> shared, std::string token)
      : shared_(std::move(shared)), token_(std::move(token)) {
    MutexLock lock(&shared_->mu);
    ++shared_->open_sessions;
  }
  ~FakeTransport() override {
    MutexLock lock(&shared_->mu);
    shared_->FailPending(Operation::kSend, token_, absl::CancelledError("the session is gone"));
    --shared_->open_sessions;
    shared_->changed.SignalAll();
  }
  absl::Status Connect(absl::Time deadline) override {
    MutexLock lock(&shared_->mu);
    while (shared_->hold_connects && (shared_->deaf || (cancelled_.ok() && MonotonicNow() < deadline))) {
      shared_->changed.WaitUntil(&shared_->mu, deadline);
    }
    if (!cancelled_.ok()) return cancelled_;
    return shared_->hold_connects ? absl::DeadlineExceededError("rank 1 did not come") : absl::OkStatus();
  }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    MutexLock lock(&shared_->mu);
    auto done = std::make_shared<FakeCompletion>();
    if (!cancelled_.ok()) done->Finish(cancelled_);
    shared_->operations.push_back({Operation::kSend, 0, token_, data, bytes, std::move(after), done});
    shared_->Pump();
    return done;
  }
  void Cancel(const absl::Status& why) override {
    MutexLock lock(&shared_->mu);
    cancelled_ = why;
    shared_->FailPending(Operation::kSend, token_, why);
  }
  int64_t moved_bytes() const override {
    MutexLock lock(&shared_->mu);
    int64_t moved = 0;
    for (const Operation& operation : shared_->operations) {
      if (operation.session == token_ && operation.done->Poll() == absl::OkStatus()) moved += operation.bytes;
    }
    return moved;
  }

 private:
  std::shared_ptr<Shared> shared_;
  const std::string token_;
  absl::Status cancelled_;  // guarded by shared_->mu
};

FakeBackend::FakeBackend() : shared_(std::make_shared<Shared>()), memory_(std::make_unique<FakeMemory>(shared_)) {}
FakeBackend::~FakeBackend() = default;

void FakeBackend::HoldEncodes(bool hold) {
  MutexLock lock(&shared_->mu);
  shared_->hold_encodes = hold;
  shared_->Pump();
}

void FakeBackend::HoldSends(bool hold) {
  MutexLock lock(&shared_->mu);
  shared_->hold_sends = hold;
  shared_->Pump();
}

void FakeBackend::HoldConnects(bool hold, bool deaf) {
  MutexLock lock(&shared_->mu);
  shared_->hold_connects = hold;
  shared_->deaf = deaf;
  shared_->Pump();
}

void FakeBackend::FailEncode(int64_t bucket, absl::Status status) {
  MutexLock lock(&shared_->mu);
  shared_->encode_errors.erase(bucket);
  if (!status.ok()) shared_->encode_errors[bucket] = std::move(status);
}

void FakeBackend::FailAllocations(bool fail) {
  MutexLock lock(&shared_->mu);
  shared_->fail_allocations = fail;
}

std::vector<FakeBackend::Operation> FakeBackend::operations(Operation::Kind kind) {
  MutexLock lock(&shared_->mu);
  std::vector<Operation> result;
  for (const Operation& operation : shared_->operations) {
    if (operation.kind == kind) result.push_back(operation);
  }
  return result;
}

int64_t FakeBackend::open_sessions() {
  MutexLock lock(&shared_->mu);
  return shared_->open_sessions;
}

int64_t FakeBackend::violations() {
  MutexLock lock(&shared_->mu);
  return shared_->violations;
}

std::byte* FakeBackend::Lend(const std::string& name, int64_t bytes) {
  MutexLock lock(&shared_->mu);
  std::vector<std::byte>& memory = shared_->lent[name];
  memory.resize(bytes);
  return memory.data();
}

void FakeBackend::ChangeWeights(const std::string& name) {
  MutexLock lock(&shared_->mu);
  for (std::byte& byte : shared_->lent[name]) byte ^= std::byte{0x5A};
}

std::shared_ptr<FakeClientEvent> FakeBackend::LendEvent(const std::string& handle) {
  return shared_->events.Lend(handle);
}

int64_t FakeBackend::opened_events() { return shared_->events.opened(); }

Memory& FakeBackend::memory() { return *memory_; }

absl::StatusOr<std::unique_ptr<Quantizer>> FakeBackend::NewQuantizer(std::shared_ptr<const Plan> plan,
                                                                     std::vector<const std::byte*> tensors) {
  return std::make_unique<FakeQuantizer>(shared_, std::move(plan), std::move(tensors));
}

absl::StatusOr<std::unique_ptr<Loader>> FakeBackend::NewLoader(std::shared_ptr<const Plan>, ScatterTable,
                                                               std::vector<std::byte*>) {
  return absl::InternalError("a source loads nothing");
}

absl::StatusOr<std::unique_ptr<Transport>> FakeBackend::NewTransport(const SessionSpec& spec) {
  return std::make_unique<FakeTransport>(shared_, spec.token);
}

std::string FakeBackend::NewSessionToken() {
  MutexLock lock(&shared_->mu);
  return absl::StrCat("session-", ++shared_->tokens);
}

std::string FakeBackend::NewRankToken(const std::string& session) {
  MutexLock lock(&shared_->mu);
  return absl::StrCat(session, "/", ++shared_->tokens);
}

}  // namespace wsync
