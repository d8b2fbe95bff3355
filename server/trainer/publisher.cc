#include "server/trainer/publisher.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"

namespace wsync {

Publisher::Publisher(PublisherOptions options, Backend* backend, std::function<void(Event)> report)
    : options_(options),
      backend_(backend),
      report_(std::move(report)),
      encoder_(backend, options.mode, options.ring_slots),
      // In full mode a version whose session is called off is encoded to its end, for the next one.
      at_work_("encode",
               options.mode == SourceMode::kRing ? WatchedJob::Ends::kOnceCancelled : WatchedJob::Ends::kOnceDropped),
      sender_(options.mode == SourceMode::kRing
                  ? nullptr
                  : std::make_unique<Sender>(backend, &session_progress_,
                                             [this](const SendTask& task, const absl::Status& s) { Sent(task, s); })),
      thread_([this] { Run(); }) {}

Publisher::~Publisher() { Stop(); }

void Publisher::Stop() {
  CallOff(absl::UnavailableError("the trainer agent is shutting down"));
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  if (sender_ != nullptr) sender_->Stop();
}

// ---- calls from any thread

absl::Status Publisher::Adopt(std::shared_ptr<const Registration> registration) {
  return Execute([this, &registration] {
    if (!encoder_.Fits(*registration->plan())) {
      CloseSessions();
      retained_ = {};
    }
    client_events_.CloseAll();
    absl::Status status = encoder_.Adopt(std::move(registration));
    if (status.ok()) return status;
    CloseSessions();
    retained_ = {};
    encoder_.Drop();
    return status;
  });
}

void Publisher::Release() {
  (void)Execute([this] {
    client_events_.CloseAll();
    encoder_.Release();
    return absl::OkStatus();
  });
}

void Publisher::Drop(const absl::Status& why) {
  CallOff(why);
  (void)Execute([this] {
    CloseSessions();
    retained_ = {};
    client_events_.CloseAll();
    encoder_.Drop();
    return absl::OkStatus();
  });
}

void Publisher::Start(const action::StartSource& start, std::shared_ptr<StreamOrder> order) {
  auto job = std::make_shared<SourceJob>(start, std::move(order));
  (void)Push({job, [this, job] { Serve(job); }});
}

void Publisher::CheckContent(const action::CheckContent& check, std::shared_ptr<StreamOrder> order) {
  action::StartSource as_job;
  as_job.epoch = check.epoch;
  as_job.version = check.version;
  auto job = std::make_shared<SourceJob>(as_job, std::move(order));
  (void)Push({job, [this, job] { Check(job); }});
}

void Publisher::Cancel(const action::CancelSource& cancel) {
  const std::vector<std::shared_ptr<SourceJob>> jobs = LiveJobs();
  const auto wanted = [&](const SourceJob& job) {
    if (job.start().epoch == cancel.epoch) return true;
    // What encodes a version for earlier attempts encodes it in vain now.
    return cancel.drop_version && !job.is_check() &&
           std::any_of(jobs.begin(), jobs.end(), [&](const std::shared_ptr<SourceJob>& other) {
             return !other->is_check() && other->start().epoch == cancel.epoch &&
                    other->start().version == job.start().version;
           });
  };
  for (const auto& job : jobs) {
    if (!wanted(*job)) continue;
    job->Cancel(cancel.reason, cancel.drop_version, SourceJob::Report::kNo);
    if (cancel.drop_version && !job->is_check()) {
      (void)Push({nullptr, [this, version = job->start().version] { Forget(version); }});
    }
  }
}

void Publisher::CallOff(const absl::Status& why) {
  for (const auto& job : LiveJobs()) job->Cancel(why, /*drop=*/true, SourceJob::Report::kYes);
}

std::vector<std::shared_ptr<SourceJob>> Publisher::LiveJobs() const {
  std::vector<std::shared_ptr<SourceJob>> jobs;
  MutexLock lock(&mu_);
  if (current_ != nullptr) jobs.push_back(current_);
  if (checking_ != nullptr) jobs.push_back(checking_);
  for (const Command& command : queue_) {
    if (command.job != nullptr) jobs.push_back(command.job);
  }
  return jobs;
}

absl::Status Publisher::Look(absl::Time now) {
  absl::Status status;
  {
    MutexLock lock(&mu_);
    status = at_work_.Look(now);
  }
  if (sender_ != nullptr) status.Update(sender_->Look(now));
  return status;
}

std::optional<std::vector<PeerProgress>> Publisher::Peers(uint64_t epoch) const {
  // A data plane whose sinks call us sees who does.
  if (backend_->data_plane_service() == nullptr) return std::nullopt;
  return session_progress_.peers(epoch);
}

SourceProgress Publisher::Progress() const {
  SourceProgress progress;
  std::shared_ptr<EncodedBuckets> encodes;
  {
    MutexLock lock(&mu_);
    progress = progress_;
    encodes = encodes_;
  }
  if (encodes != nullptr) progress.encoded_bytes = encodes->EncodedBytes();
  progress.sent_bytes = session_progress_.moved_bytes();
  return progress;
}

// ---- the encode thread

void Publisher::Run() {
  pthread_setname_np(pthread_self(), "wsync-encode");
  while (true) {
    Command command;
    {
      MutexLock lock(&mu_);
      while (queue_.empty() && !stopping_) changed_.Wait(&mu_);
      if (queue_.empty()) break;
      command = std::move(queue_.front());
      queue_.pop_front();
      // A check runs beside the version that is being sent.
      if (command.job != nullptr) (command.job->is_check() ? checking_ : current_) = command.job;
      at_work_.Begin(command.job, encoder_.plan_or_null());
    }
    command.run();
    MutexLock lock(&mu_);
    at_work_.End();
  }
  ring_session_ = nullptr;
}

bool Publisher::Push(Command command) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  queue_.push_back(std::move(command));
  changed_.SignalAll();
  return true;
}

absl::Status Publisher::Execute(std::function<absl::Status()> task) {
  bool done = false;
  absl::Status result;
  const bool pushed = Push({nullptr, [this, &done, &result, &task] {
                              absl::Status status = task();
                              MutexLock lock(&mu_);
                              result = std::move(status);
                              done = true;
                              changed_.SignalAll();
                            }});
  if (!pushed) return absl::UnavailableError("the trainer agent is shutting down");
  MutexLock lock(&mu_);
  while (!done) changed_.Wait(&mu_);
  return result;
}

void Publisher::Serve(const std::shared_ptr<SourceJob>& job) {
  if (absl::Status why = job->cancelled(); !why.ok()) {
    if (!job->quiet()) Fail(*job, why, /*version_lost=*/true);
    return;
  }
  if (options_.mode == SourceMode::kFull) return ServeFromImage(job);
  ServeThroughRing(job);
}

void Publisher::Check(const std::shared_ptr<SourceJob>& job) {
  event::ContentChecked checked;
  checked.epoch = job->start().epoch;
  checked.version = job->start().version;
  checked.status = encoder_.can_encode() ? job->cancelled() : CannotEncode();
  if (checked.status.ok()) checked.status = OpenOrder(*job);
  if (checked.status.ok()) checked.status = AwaitStart(*job);
  if (checked.status.ok()) checked.status = encoder_.EncodeForDigest();
  if (checked.status.ok()) {
    const auto digest = FinishEncoding(*job, Limits().transfer);
    checked.status = digest.status();
    if (digest.ok()) checked.digest = *digest;
  }
  report_(checked);
}

CompletionPtr Publisher::EncodeBucket(int64_t bucket, CompletionPtr after) {
  (void)WSYNC_BUCKET_FAILPOINT("trainer.encode", bucket, static_cast<int64_t>(encoder_.plan().buckets().size()));
  CompletionPtr encode = encoder_.Encode(bucket, std::move(after));
  running_->Add(encode, encoder_.plan().buckets()[bucket].wire_bytes);
  return encode;
}

absl::Status Publisher::OpenOrder(const SourceJob& job) {
  StreamOrder* const order = job.order();
  return order == nullptr ? absl::OkStatus() : order->Open(&client_events_, backend_->memory());
}

absl::Status Publisher::AwaitStart(const SourceJob& job) const {
  StreamOrder* const order = job.order();
  if (order == nullptr) return absl::OkStatus();
  // An image is encoded to its end for the next session, a ring is not.
  const bool goes_on = options_.mode == SourceMode::kFull;
  return order->AwaitStart(options_.start_timeout,
                           [&job, goes_on] { return goes_on && !job.dropped() ? absl::OkStatus() : job.cancelled(); });
}

absl::StatusOr<Hash128> Publisher::FinishEncoding(const SourceJob& job, absl::Time deadline) {
  absl::StatusOr<Hash128> digest;
  {
    const std::stop_callback on_drop(job.encode_token(), [this, &job] { encoder_.Cancel(job.cancelled()); });
    digest = encoder_.Finish(deadline);
  }
  if (!job.dropped()) return digest;
  // The cancel may have come after the end: it must not hit the next version's encodes.
  (void)encoder_.Finish(deadline);
  return job.cancelled();
}

absl::Status Publisher::CannotEncode() const {
  return absl::FailedPreconditionError("no weights are registered any more: the training process must register again");
}

void Publisher::CloseSessions() {
  if (sender_ != nullptr) sender_->Close();
  ring_session_ = nullptr;
}

void Publisher::Forget(uint64_t version) {
  if (retained_.version == version) retained_ = {};
  if (ring_released_ == version) ring_released_ = 0;
}

void Publisher::BeginProgress(uint64_t version) {
  session_progress_.Reset();
  running_ = std::make_shared<EncodedBuckets>(encoder_.plan().buckets().size());
  MutexLock lock(&mu_);
  encodes_ = running_;
  progress_ = {};
  progress_.version = version;
  progress_.encoding = true;
  progress_.total_bytes = encoder_.plan().image_bytes();
}

void Publisher::EndProgress() {
  MutexLock lock(&mu_);
  progress_.encoding = false;
}

void Publisher::Fail(const SourceJob& job, const absl::Status& status, bool version_lost) {
  report_(event::SourceFailed{job.start().epoch, job.start().version, status, version_lost});
}

SessionLimits Publisher::Limits() const {
  const absl::Time now = MonotonicNow();
  const absl::Duration wire =
      absl::Seconds(static_cast<double>(encoder_.plan().image_bytes()) / options_.min_rate_bytes_per_second);
  return {now + options_.connect_timeout, now + options_.transfer_timeout + wire};
}

}  // namespace wsync
