#include "server/trainer/registrar.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/failpoint.h"
#include "server/core/recipe_notes.h"
#include "server/rpc/log.h"

namespace wsync {
namespace {

absl::Status ShuttingDown() {
  return absl::UnavailableError("the trainer agent is shutting down: register again once it is back");
}

}  // namespace

Registrar::Registrar(Options options, Memory* memory, Publisher* publisher, PublishTracker* tracker, ControlLoop* loop)
    : options_(std::move(options)),
      memory_(memory),
      publisher_(publisher),
      tracker_(tracker),
      loop_(loop),
      thread_([this] { Run(); }) {}

Registrar::~Registrar() { Stop(); }

void Registrar::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (!thread_.joinable()) return;
  thread_.join();
  loop_->RunAndWait([this] {
    CatalogGone("the trainer agent is shutting down");
    LetGo("the trainer agent is shutting down", Settle::kDrop);
  });
  SettleNow();
}

void Registrar::Register(RegistrationRequest request, std::function<void(absl::StatusOr<Registered>)> done) {
  auto shared = std::make_shared<RegistrationRequest>(std::move(request));
  if (!Push([this, shared, done] { done(Adopt(std::move(*shared))); })) done(ShuttingDown());
}

void Registrar::Preview(RegistrationRequest request,
                        std::function<void(const absl::StatusOr<std::shared_ptr<const Plan>>&)> done) {
  auto shared = std::make_shared<RegistrationRequest>(std::move(request));
  const bool queued = Push([this, shared, done] { done(PlanOf(*shared, options_.rules, options_.bucket_bytes)); });
  if (!queued) done(ShuttingDown());
}

void Registrar::Unregister(std::string id, std::function<void(absl::StatusOr<bool>)> done) {
  if (!Push([this, id = std::move(id), done] { done(GiveUp(id)); })) done(ShuttingDown());
}

void Registrar::Run() {
  pthread_setname_np(pthread_self(), "wsync-register");
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      while (queue_.empty() && !stopping_) changed_.Wait(&mu_);
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

bool Registrar::Push(std::function<void()> task) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  queue_.push_back(std::move(task));
  changed_.SignalAll();
  return true;
}

// ---- the registrar's thread

absl::StatusOr<Registered> Registrar::Adopt(RegistrationRequest request) {
  if (absl::Status status = WSYNC_FAILPOINT("trainer.register"); !status.ok()) return status;
  if (absl::Status status = MayReplace(request); !status.ok()) return status;
  auto created = Registration::Create(std::move(request), options_.rules, options_.bucket_bytes, *memory_);
  if (!created.ok()) return created.status();
  std::shared_ptr<const Registration> registration = *std::move(created);
  if (absl::Status status = options_.check_rules(registration->plan()->rules()); !status.ok()) return status;
  const ControlLoop::Task install = options_.prepare_catalog(registration->plan().get());
  const Plan& plan = *registration->plan();
  for (const std::string& warning : RecipeNotes(plan.catalog(), plan.rules(), plan.recipes())) {
    LogWarn(absl::StrCat("recipe: ", warning));
  }

  loop_->RunAndWait([this, &registration] { MakeWay(*registration); });
  SettleNow();
  if (absl::Status status = publisher_->Adopt(registration); !status.ok()) {
    loop_->RunAndWait([this] {
      CatalogGone("the trainer's registration failed");
      LetGo("the last registration failed", Settle::kDrop);
    });
    SettleNow();
    return status;
  }
  ServedVersion committed;
  loop_->RunAndWait([this, &registration, &install, &committed] {
    Announce(registration, install);
    committed = loop_->Snapshot().committed;
  });
  (void)WSYNC_FAILPOINT("trainer.registered");
  const PlanInfo info = registration->Info();
  LogInfo("weights registered", {{"pid", absl::StrCat(registration->owner().pid())},
                                 {"tensors", absl::StrCat(info.tensors)},
                                 {"quantized", absl::StrCat(info.quantized_tensors)},
                                 {"wire_bytes", absl::StrCat(info.wire_bytes)},
                                 {"buckets", absl::StrCat(info.buckets)},
                                 {"plan", info.plan_hash.ShortHex()}});
  return Registered{registration->id(), info, committed};
}

absl::Status Registrar::MayReplace(const RegistrationRequest& request) {
  std::shared_ptr<const Registration> held;
  {
    MutexLock lock(&mu_);
    held = current_;
  }
  if (held == nullptr) return absl::OkStatus();
  const int64_t pid = held->owner().pid();
  if (!held->owner().Alive()) {
    LogInfo("a new process takes over from a dead one", {{"dead", absl::StrCat(pid)}});
    return absl::OkStatus();
  }
  if (request.replace) {
    LogWarn("a new process takes over from a live one", {{"was", absl::StrCat(pid)}});
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(
      absl::StrCat("process ", pid, " has registered its weights and still runs: stop it, let it unregister, or take ",
                   "over with replace (wsync publish --replace)"));
}

absl::StatusOr<bool> Registrar::GiveUp(const std::string& id) {
  absl::StatusOr<bool> aborted = ShuttingDown();
  loop_->RunAndWait([this, &id, &aborted] {
    if (absl::Status status = Check(id); !status.ok()) {
      aborted = status;
      return;
    }
    const bool reading = tracker_->Unreleased() != 0;
    gone_when_idle_ = tracker_->Running() && !reading;
    if (!gone_when_idle_) CatalogGone("the trainer unregistered");
    LetGo("the training process unregistered", gone_when_idle_ ? Settle::kRelease : Settle::kDrop);
    aborted = reading;
  });
  SettleNow();
  return aborted;
}

void Registrar::SettleNow() {
  Settle settle;
  std::string why;
  {
    MutexLock lock(&mu_);
    settle = std::exchange(settle_, Settle::kNothing);
    why = why_none_;
  }
  if (settle == Settle::kRelease) publisher_->Release();
  if (settle == Settle::kDrop) publisher_->Drop(absl::AbortedError(why));
}

// ---- the control thread

void Registrar::MakeWay(const Registration& next) {
  gone_when_idle_ = false;
  const bool other_plan = announced_.has_value() && *announced_ != next.plan()->hash();
  const bool reading = tracker_->Unreleased() != 0;
  const std::string why = absl::StrCat("process ", next.owner().pid(), " registered its weights instead");
  if (reading || other_plan) CatalogGone(why);
  LetGo(why, reading || other_plan ? Settle::kDrop : Settle::kRelease);
}

void Registrar::Announce(std::shared_ptr<const Registration> registration, const ControlLoop::Task& install) {
  const PlanInfo info = registration->Info();
  {
    MutexLock lock(&mu_);
    current_ = std::move(registration);
  }
  if (announced_ == info.plan_hash) return;  // the coordinator and its members have this very plan
  install();
  announced_ = info.plan_hash;
  loop_->Step(event::CatalogRegistered{info});
}

void Registrar::CatalogGone(const std::string& reason) {
  if (!announced_.has_value()) return;
  announced_.reset();
  options_.prepare_catalog(nullptr)();
  loop_->Step(event::CatalogGone{reason});
}

void Registrar::LetGo(std::string why, Settle settle) {
  std::shared_ptr<const Registration> unmapped_elsewhere;
  MutexLock lock(&mu_);
  unmapped_elsewhere = std::exchange(current_, nullptr);
  why_none_ = std::move(why);
  settle_ = std::max(settle_, settle);
  if (stopping_) return;
  // Unmapping and waiting for encodes happen on the registrar's thread.
  queue_.push_back([this, unmapped_elsewhere = std::move(unmapped_elsewhere)] { SettleNow(); });
  changed_.SignalAll();
}

void Registrar::OwnerDied() {
  std::string owner;
  {
    MutexLock lock(&mu_);
    owner = absl::StrCat("process ", current_->owner().pid(), ", which registered the weights, has ended");
  }
  // What it published and was not read to the end is called off. The catalog stays: what sinks serve is as good as
  // before, and the next process that registers has most likely the same.
  if (const uint64_t version = tracker_->Unreleased(); version != 0) loop_->Step(event::CallersGone{version, owner});
  LogWarn(absl::StrCat(owner, "; its catalog holds until another process registers"));
  LetGo(owner, Settle::kRelease);
}

absl::Status Registrar::Check(const std::string& id) {
  bool dead = false;
  {
    MutexLock lock(&mu_);
    if (current_ != nullptr && current_->id() != id) {
      return absl::FailedPreconditionError(absl::StrCat("'", id, "' is not the current registration: process ",
                                                        current_->owner().pid(), " took over; register again"));
    }
    dead = current_ != nullptr && !current_->owner().Alive();
  }
  if (dead) OwnerDied();
  MutexLock lock(&mu_);
  if (current_ != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("'", id, "' is not a registration any more: ", why_none_, "; register again"));
}

absl::Time Registrar::Watch(absl::Time now) {
  if (gone_when_idle_ && !tracker_->Running()) {
    gone_when_idle_ = false;
    CatalogGone("the trainer unregistered");
    LetGo("the training process unregistered", Settle::kDrop);
  }
  bool dead = false;
  {
    MutexLock lock(&mu_);
    if (current_ == nullptr) return absl::InfiniteFuture();
    dead = !current_->owner().Alive();
  }
  if (dead) OwnerDied();
  return now + kClientProcessPoll;
}

bool Registrar::registered() const {
  MutexLock lock(&mu_);
  return current_ != nullptr;
}

std::string Registrar::Owner() const {
  MutexLock lock(&mu_);
  return current_ == nullptr ? why_none_ : absl::StrCat("process ", current_->owner().pid());
}

}  // namespace wsync
