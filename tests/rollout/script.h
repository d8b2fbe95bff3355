// What a fake backend does, as the test controls it: which buckets arrive, which are corrupt, when a copy may go on.
// Thread-safe: the agent's threads and the test's share one Script.
#ifndef WSYNC_TESTS_ROLLOUT_SCRIPT_H_
#define WSYNC_TESTS_ROLLOUT_SCRIPT_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/backend/transport.h"
#include "server/core/sync.h"
#include "tests/backend/fake_client_events.h"

namespace wsync {

class FakeCompletion final : public Completion {
 public:
  absl::Status Wait(absl::Time deadline) override;
  std::optional<absl::Status> Poll() override;
  void Finish(const absl::Status& status);  // the first one counts
  void Then(std::function<void(absl::Status)> next);

 private:
  Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void(absl::Status)>> next_ ABSL_GUARDED_BY(mu_);
};

class FakeBackend;

class Script {
 public:
  static constexpr int64_t kAll = int64_t{1} << 40;

  FakeClientEvents events;  // that the engine lends

  void SetVersion(uint64_t version);               // what the source sends from now on, beginning with bucket 0
  void DeliverUpTo(int64_t buckets);               // of a session; later ones wait. kAll at first
  void Corrupt(int64_t bucket);                    // one byte of it, once
  void FailConnect(const absl::Status& why);       // once
  void HoldConnect(bool hold, bool deaf = false);  // deaf: a cancel does not end it either
  void HoldApply(bool hold);
  void FailApply(int64_t bucket);  // once
  void FailAllocation(bool fail);
  // Memory that an engine lends, by its shared-memory name. Looked at under the lock that copies into it hold: an agent
  // orders the two through gRPC, which ThreadSanitizer does not see.
  void AddEngineMemory(const std::string& name, int64_t bytes);
  bool EngineMemoryIs(const std::string& name, const std::vector<std::byte>& expected) const;
  void RemoveEngineMemory(const std::string& name);  // REQUIRES: no agent has it open
  void ClearEngineMemory(const std::string& name);

  int64_t received() const;         // buckets delivered of the version
  int64_t sessions() const;         // opened, ever
  int64_t applied() const;          // bucket copies done, ever
  int64_t held_applies() const;     // bucket copies that wait for HoldApply(false)
  int64_t allocated_bytes() const;  // receive memory, last asked for

 private:
  friend class FakeBackend;
  friend class FakeMemory;
  friend class FakeLoader;
  friend class FakeTransport;
  struct Pending {
    std::byte* data;
    int64_t bytes;
    int64_t image_offset;
    std::shared_ptr<FakeCompletion> done;
  };
  struct Session {                       // the running one
    std::map<int64_t, Pending> waiting;  // by bucket
    absl::Status cancelled;
    int64_t next_offset = 0;
    int64_t moved_bytes = 0;
    int64_t broadcasts = 0;
  };
  void Deliver();  // everything that may go

  mutable Mutex mu_;
  CondVar changed_;
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t deliver_up_to_ ABSL_GUARDED_BY(mu_) = kAll;
  int64_t corrupt_ ABSL_GUARDED_BY(mu_) = -1;
  int64_t fail_apply_ ABSL_GUARDED_BY(mu_) = -1;
  absl::Status fail_connect_ ABSL_GUARDED_BY(mu_);
  bool hold_connect_ ABSL_GUARDED_BY(mu_) = false;
  bool deaf_ ABSL_GUARDED_BY(mu_) = false;
  bool hold_apply_ ABSL_GUARDED_BY(mu_) = false;
  bool fail_allocation_ ABSL_GUARDED_BY(mu_) = false;
  int64_t applied_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t delivered_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t sessions_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t allocated_ ABSL_GUARDED_BY(mu_) = 0;
  std::shared_ptr<Session> session_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::vector<std::byte>> engine_memory_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void()>> held_applies_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_SCRIPT_H_
