#include "server/backend/cuda/transport.h"

#include <utility>

#include "absl/status/status.h"

namespace wsync::cuda {
namespace {

class NcclTransport final : public Transport {
 public:
  explicit NcclTransport(std::shared_ptr<NcclSession> session) : session_(std::move(session)) {}
  ~NcclTransport() override { session_->Close(); }

  absl::Status Connect(absl::Time deadline) override { return session_->Connect(deadline); }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    return session_->Broadcast(data, bytes, after);
  }
  void Cancel(const absl::Status& why) override { session_->Cancel(why); }
  int64_t moved_bytes() const override { return session_->moved_bytes(); }

 private:
  const std::shared_ptr<NcclSession> session_;  // completions may outlive the transport, and ask it
};

// A source without sinks.
class LoneTransport final : public Transport {
 public:
  absl::Status Connect(absl::Time /*deadline*/) override {
    MutexLock lock(&mu_);
    connected_ = why_.ok();
    return why_;
  }
  CompletionPtr Broadcast(std::byte* /*data*/, int64_t /*bytes*/, CompletionPtr after) override {
    MutexLock lock(&mu_);
    if (!why_.ok()) return CudaCompletion::Failed(why_);
    if (!connected_) return CudaCompletion::Failed(absl::FailedPreconditionError("broadcast: connect first"));
    return after;
  }
  void Cancel(const absl::Status& why) override {
    MutexLock lock(&mu_);
    why_.Update(why);
  }
  int64_t moved_bytes() const override { return 0; }

 private:
  Mutex mu_;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<Transport> NewNcclTransport(std::shared_ptr<NcclSession> session) {
  return std::make_unique<NcclTransport>(std::move(session));
}

std::unique_ptr<Transport> NewLoneTransport() { return std::make_unique<LoneTransport>(); }

}  // namespace wsync::cuda
