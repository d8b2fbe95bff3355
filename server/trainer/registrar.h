// Who is registered: takes over, lets go, and watches that the owner of the memory lives.
//
// Changes of the registration run one after another on a thread of their own ("wsync-register"): planning a million
// tensors and waiting for encodes to stop take too long for the control thread. What the coordinator must know is
// stepped on the control thread, so that a publish sees either the old registration or the new one.
//
// A registration whose owner dies (or that is given up) while its weights are being read takes the version with it.
// Otherwise only the memory goes: the catalog and the encoded image stay, and serve sinks that come late.
#ifndef WSYNC_SERVER_TRAINER_REGISTRAR_H_
#define WSYNC_SERVER_TRAINER_REGISTRAR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/backend/memory.h"
#include "server/core/sync.h"
#include "server/trainer/control_loop.h"
#include "server/trainer/publish_tracker.h"
#include "server/trainer/publisher.h"
#include "server/trainer/registration.h"

namespace wsync {

struct Registered {
  std::string id;
  PlanInfo plan;
  ServedVersion committed;  // what the group has
};

class Registrar {
 public:
  struct Options {
    RecipeRules rules;
    int64_t bucket_bytes = kDefaultBucketBytes;
    // Not OK: no member would take these, which are `rules` and what the registration added.
    std::function<absl::Status(const RecipeRules& rules)> check_rules;
    // Prepares the catalog that members get (null: none) on the caller's thread. What it returns runs on the control
    // thread, right before the coordinator learns of it.
    std::function<ControlLoop::Task(const Plan* plan)> prepare_catalog;
  };

  Registrar(Options options, Memory* memory, Publisher* publisher, PublishTracker* tracker, ControlLoop* loop);
  ~Registrar();  // Stop

  // `done` is called once, from the registrar's thread. ALREADY_EXISTS while a live process holds and `replace` is not
  // set; otherwise as Registration::Create.
  void Register(RegistrationRequest request, std::function<void(absl::StatusOr<Registered>)> done);
  // What the plan would be; nothing changes. Called once, from the registrar's thread. INVALID_ARGUMENT as PlanOf.
  void Preview(RegistrationRequest request,
               std::function<void(const absl::StatusOr<std::shared_ptr<const Plan>>&)> done);
  // Tells whether a version in flight went with it. Errors as Check.
  void Unregister(std::string id, std::function<void(absl::StatusOr<bool>)> done);
  // Aborts what runs, refuses what comes, and ends the thread. The control loop must still run.
  void Stop();

  // Control thread only.
  // OK: current, and its owner lives. Else FAILED_PRECONDITION, with `id` in the text: nothing is registered, or
  // somebody else is.
  absl::Status Check(const std::string& id);
  absl::Time Watch(absl::Time now);  // a chore
  bool registered() const;
  std::string Owner() const;  // for status: "process 123", or why there is none

 private:
  enum class Settle : uint8_t { kNothing, kRelease, kDrop };  // what the publisher must still let go of

  void Run();
  bool Push(std::function<void()> task);
  absl::StatusOr<Registered> Adopt(RegistrationRequest request);
  absl::Status MayReplace(const RegistrationRequest& request);
  absl::StatusOr<bool> GiveUp(const std::string& id);
  void SettleNow();

  // Control thread only.
  void MakeWay(const Registration& next);
  void Announce(std::shared_ptr<const Registration> registration, const ControlLoop::Task& install);
  void CatalogGone(const std::string& reason);
  void OwnerDied();
  void LetGo(std::string why, Settle settle);

  const Options options_;
  Memory* const memory_;
  Publisher* const publisher_;
  PublishTracker* const tracker_;
  ControlLoop* const loop_;

  // Control thread only.
  std::optional<Hash128> announced_;  // plan the coordinator knows
  bool gone_when_idle_ = false;       // unregistered while a version that needs no source was under way

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const Registration> current_ ABSL_GUARDED_BY(mu_);
  std::string why_none_ ABSL_GUARDED_BY(mu_) = "nothing was registered since the agent started";
  Settle settle_ ABSL_GUARDED_BY(mu_) = Settle::kNothing;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_REGISTRAR_H_
