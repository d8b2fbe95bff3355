// A backend in memory whose every completion the test holds in its hand. It moves no bytes: it records what was asked
// for, in which order and after what, and notices when memory is encoded into while it is still being sent.
// Thread-safe.
#ifndef WSYNC_TESTS_TRAINER_FAKE_BACKEND_H_
#define WSYNC_TESTS_TRAINER_FAKE_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/backend/backend.h"
#include "server/core/sync.h"
#include "tests/backend/fake_client_events.h"

namespace wsync {

class FakeCompletion final : public Completion {
 public:
  absl::Status Wait(absl::Time deadline) override;
  std::optional<absl::Status> Poll() override;
  void Finish(const absl::Status& status);  // the first one counts

 private:
  Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
};

class FakeBackend final : public Backend {
 public:
  struct Operation {
    enum Kind { kEncode, kSend } kind = kEncode;
    int64_t bucket = 0;   // kEncode
    std::string session;  // kSend
    std::byte* data = nullptr;
    int64_t bytes = 0;
    CompletionPtr after;
    std::shared_ptr<FakeCompletion> done;
  };

  FakeBackend();
  ~FakeBackend() override;

  // ---- the test's hand
  void HoldEncodes(bool hold);
  void HoldSends(bool hold);
  void HoldConnects(bool hold, bool deaf = false);       // deaf: a cancel does not end them either
  void FailEncode(int64_t bucket, absl::Status status);  // OK: no more
  void FailAllocations(bool fail);
  std::vector<Operation> operations(Operation::Kind kind);  // in the order they were asked for
  int64_t encodes() { return static_cast<int64_t>(operations(Operation::kEncode).size()); }
  int64_t open_sessions();
  int64_t violations();  // encodes into memory that a pending send reads
  // Memory that clients can lend: what shm_open is for the real backend.
  std::byte* Lend(const std::string& name, int64_t bytes);
  // An event that the training process lends: the test says when its stream gets there.
  std::shared_ptr<FakeClientEvent> LendEvent(const std::string& handle);
  int64_t opened_events();
  void ChangeWeights(const std::string& name);  // what a training step does to lent memory

  // The content digest of weights at these addresses, as this backend makes it.
  static Hash128 ContentOf(const Plan& plan, const std::vector<const std::byte*>& tensors);

  // ---- Backend
  std::string name() const override { return "fake"; }
  Memory& memory() override;
  absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan> plan,
                                                          std::vector<const std::byte*> tensors) override;
  absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan>, ScatterTable,
                                                    std::vector<std::byte*>) override;
  absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec& spec) override;
  std::string NewSessionToken() override;
  std::string NewRankToken(const std::string& session) override;

 private:
  class FakeMemory;
  class FakeQuantizer;
  class FakeTransport;
  struct Shared;
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<FakeMemory> memory_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_TRAINER_FAKE_BACKEND_H_
