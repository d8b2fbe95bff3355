#include "server/trainer/session.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/failpoint.h"

namespace wsync {

void SessionProgress::Begin(const Transport* transport, uint64_t epoch) {
  MutexLock lock(&mu_);
  transport_ = transport;
  epoch_ = epoch;
  peers_before_ = transport->peers();
  before_ = transport->moved_bytes();
}

void SessionProgress::End() {
  MutexLock lock(&mu_);
  if (transport_ != nullptr) {
    last_ = transport_->moved_bytes() - before_;
    last_peers_ = transport_->peers();
  }
  transport_ = nullptr;
}

void SessionProgress::Reset() {
  MutexLock lock(&mu_);
  last_ = 0;
  if (transport_ != nullptr) before_ = transport_->moved_bytes();
}

int64_t SessionProgress::moved_bytes() const {
  MutexLock lock(&mu_);
  return transport_ != nullptr ? transport_->moved_bytes() - before_ : last_;
}

std::optional<std::vector<PeerProgress>> SessionProgress::peers(uint64_t epoch) const {
  MutexLock lock(&mu_);
  if (epoch != epoch_) return std::vector<PeerProgress>();
  auto peers = transport_ != nullptr ? transport_->peers() : last_peers_;
  for (size_t i = 0; peers.has_value() && i < peers->size(); ++i) {
    (*peers)[i].moved_bytes -= (*peers_before_)[i].moved_bytes;
  }
  return peers;
}

absl::Status Session::Open(Backend& backend, std::shared_ptr<SourceJob> job, SessionProgress* progress,
                           absl::Time connect_deadline, std::unique_ptr<Session>* session) {
  if (absl::Status why = job->cancelled(); !why.ok()) {
    session->reset();
    return why;
  }
  if (absl::Status status = WSYNC_FAILPOINT("trainer.connect"); !status.ok()) {
    session->reset();
    return status;
  }
  if (*session != nullptr && (*session)->idle_ && (*session)->token_ == job->start().session) {
    (*session)->Serve(std::move(job));
    return absl::OkStatus();
  }
  session->reset();  // the peers see its end
  SessionSpec spec;
  spec.token = job->start().session;
  spec.rank = 0;
  spec.world = job->start().world;
  spec.wide = job->start().wide;
  spec.peer_tokens = job->start().peer_tokens;
  auto transport = backend.NewTransport(spec);
  if (!transport.ok()) return transport.status();
  std::unique_ptr<Session> opened(new Session(*std::move(transport), spec.token, progress));
  opened->Serve(std::move(job));
  if (absl::Status status = opened->transport_->Connect(connect_deadline); !status.ok()) {
    return opened->Explain(std::move(status));
  }
  *session = std::move(opened);
  return absl::OkStatus();
}

Session::Session(std::unique_ptr<Transport> transport, std::string token, SessionProgress* progress)
    : token_(std::move(token)), progress_(progress), transport_(std::move(transport)) {}

Session::~Session() { progress_->End(); }

void Session::Serve(std::shared_ptr<SourceJob> job) {
  on_cancel_.reset();
  job_ = std::move(job);
  idle_ = false;
  progress_->Begin(transport_.get(), job_->start().epoch);
  on_cancel_.emplace(job_->send_token(), [this] { transport_->Cancel(job_->cancelled()); });
}

CompletionPtr Session::Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) {
  return transport_->Broadcast(data, bytes, std::move(after));
}

absl::Status Session::WaitSent(absl::Span<const CompletionPtr> sends, absl::Time deadline) {
  for (size_t k = 0; k < sends.size(); ++k) {
    if (sends[k] == nullptr) continue;
    absl::Status status = sends[k]->Wait(deadline);
    status.Update(
        WSYNC_BUCKET_FAILPOINT("trainer.bucket", static_cast<int64_t>(k), static_cast<int64_t>(sends.size())));
    if (status.ok()) continue;
    if (absl::IsDeadlineExceeded(status) && !sends[k]->Poll().has_value()) {
      const absl::Status late = absl::DeadlineExceededError(
          absl::StrCat("version ", job_->start().version, " is not on the wire in time: ", progress_->moved_bytes(),
                       " bytes reached the slowest sink, bucket ", k, " of ", sends.size(),
                       " is pending; a slow network wants a lower coordinator.min_rate_bytes_per_second"));
      transport_->Cancel(late);
      return late;
    }
    return Explain(status);
  }
  on_cancel_.reset();  // waits for a hook that runs: after this nothing is cancelled any more, or it was
  idle_ = job_->cancelled().ok();
  return absl::OkStatus();
}

absl::Status Session::Explain(absl::Status status) const {
  if (status.ok()) return status;
  if (absl::Status why = job_->cancelled(); !why.ok()) return why;
  return status;
}

}  // namespace wsync
