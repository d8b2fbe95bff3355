#include "server/trainer/session.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {

void SessionProgress::Show(const Transport* transport) {
  MutexLock lock(&mu_);
  if (transport == nullptr && transport_ != nullptr) last_ = transport_->moved_bytes();
  transport_ = transport;
}

void SessionProgress::Reset() {
  MutexLock lock(&mu_);
  last_ = 0;
}

int64_t SessionProgress::moved_bytes() const {
  MutexLock lock(&mu_);
  return transport_ != nullptr ? transport_->moved_bytes() : last_;
}

absl::StatusOr<std::unique_ptr<Session>> Session::Create(Backend& backend, std::shared_ptr<SourceJob> job,
                                                         SessionProgress* progress) {
  if (absl::Status why = job->cancelled(); !why.ok()) return why;
  SessionSpec spec;
  spec.token = job->start().session;
  spec.rank = 0;
  spec.world = job->start().world;
  auto transport = backend.NewTransport(spec);
  if (!transport.ok()) return transport.status();
  return std::unique_ptr<Session>(new Session(*std::move(transport), std::move(job), progress));
}

Session::Session(std::unique_ptr<Transport> transport, std::shared_ptr<SourceJob> job, SessionProgress* progress)
    : job_(std::move(job)),
      progress_(progress),
      transport_(std::move(transport)),
      on_cancel_(job_->send_token(), [this] { transport_->Cancel(job_->cancelled()); }) {
  progress_->Show(transport_.get());
}

Session::~Session() { progress_->Show(nullptr); }

absl::Status Session::Connect(absl::Time deadline) { return Explain(transport_->Connect(deadline)); }

CompletionPtr Session::Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) {
  return transport_->Broadcast(data, bytes, std::move(after));
}

absl::Status Session::WaitSent(absl::Span<const CompletionPtr> sends, absl::Time deadline) {
  for (size_t k = 0; k < sends.size(); ++k) {
    if (sends[k] == nullptr) continue;
    const absl::Status status = sends[k]->Wait(deadline);
    if (status.ok()) continue;
    if (absl::IsDeadlineExceeded(status) && !sends[k]->Poll().has_value()) {
      const absl::Status late = absl::DeadlineExceededError(
          absl::StrCat("version ", job_->start().version, " is not on the wire in time: ", transport_->moved_bytes(),
                       " bytes reached the slowest sink, bucket ", k, " of ", sends.size(),
                       " is pending; a slow network wants a lower coordinator.min_rate_bytes_per_second"));
      transport_->Cancel(late);
      return late;
    }
    return Explain(status);
  }
  return absl::OkStatus();
}

absl::Status Session::Explain(absl::Status status) const {
  if (status.ok()) return status;
  if (absl::Status why = job_->cancelled(); !why.ok()) return why;
  return status;
}

}  // namespace wsync
