// Publisher in full mode: encode into the image, release the trainer, and send behind the encoder.
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/trainer/publisher.h"

namespace wsync {

void Publisher::ServeFromImage(const std::shared_ptr<SourceJob>& job) {
  const action::StartSource& start = job->start();
  // Whatever the coordinator thinks: a version that is in the image is never encoded twice. Its weights may have been
  // released while the order to restart was under way.
  if (retained_.version == start.version) {
    if (!retained_.failure.ok()) return Fail(*job, retained_.failure, /*version_lost=*/true);
    (void)WSYNC_FAILPOINT("trainer.resend");
    return SendImage(job);
  }
  if (!start.encode) {
    return Fail(*job, absl::NotFoundError(absl::StrCat("version ", start.version, " is no longer held: publish again")),
                /*version_lost=*/true);
  }
  if (!encoder_.can_encode()) return Fail(*job, CannotEncode(), /*version_lost=*/true);
  if (absl::Status status = OpenOrder(*job); !status.ok()) return Fail(*job, status, /*version_lost=*/true);
  sender_->Quiesce();  // an older version may still be on its way out of the image
  BeginImage(job);
  SendImage(job);  // first: a session is opened, and the first bucket sent, while the others are being started
  const absl::Status started = AwaitStart(*job);
  const absl::Time begun = MonotonicNow();
  if (!started.ok()) {
    running_->Abandon();  // first: it is told here, and not by the sender as well
    job->Cancel(started, /*drop=*/true, SourceJob::Report::kYes);
    return FinishImage(job, started, begun);
  }
  FinishImage(job, EncodeImage(*job), begun);
}

void Publisher::BeginImage(const std::shared_ptr<SourceJob>& job) {
  BeginProgress(job->start().version);
  {
    MutexLock lock(&mu_);
    unreleased_ = job;
    sent_early_ = false;
  }
  retained_ = {};
  retained_.version = job->start().version;
  retained_.encodes = running_;
}

absl::StatusOr<Hash128> Publisher::EncodeImage(const SourceJob& job) {
  for (size_t k = 0; k < encoder_.plan().buckets().size(); ++k) EncodeBucket(static_cast<int64_t>(k), nullptr);
  return FinishEncoding(job, Limits().transfer);
}

void Publisher::SendImage(const std::shared_ptr<SourceJob>& job) {
  SendTask task{job, encoder_.image(), retained_.encodes, Limits()};
  if (job->start().world <= 1) return Sent(task, absl::OkStatus());
  sender_->Send(std::move(task));
}

void Publisher::FinishImage(const std::shared_ptr<SourceJob>& job, const absl::StatusOr<Hash128>& digest,
                            absl::Time begun) {
  const uint64_t version = job->start().version;
  EndProgress();
  if (digest.ok()) {
    // Also when this session was cancelled: the version goes on with other members.
    report_(event::SourceReleased{version, *digest, MonotonicNow() - begun, job->start().epoch});
  } else {
    retained_ = {};
    if (!job->dropped()) retained_ = {version, nullptr, digest.status()};
    if (!job->quiet()) Fail(*job, digest.status(), /*version_lost=*/true);
  }
  bool sent = false;
  {
    MutexLock lock(&mu_);
    sent = sent_early_;
    unreleased_ = nullptr;
  }
  if (sent && digest.ok()) report_(event::SourceSent{job->start().epoch, version});
}

void Publisher::Sent(const SendTask& task, const absl::Status& status) {
  const SourceJob& job = *task.job;
  if (job.quiet()) return;
  if (status.ok()) {
    {
      MutexLock lock(&mu_);
      sent_early_ = unreleased_ == task.job;
      if (sent_early_) return;  // `sent` comes after `released`
    }
    return report_(event::SourceSent{job.start().epoch, job.start().version});
  }
  // A failed encode fails the broadcast behind it. The encode thread says so, and that no retry helps.
  if (task.encodes->AnyFailed()) return;
  Fail(job, status, /*version_lost=*/job.dropped());
}

}  // namespace wsync
