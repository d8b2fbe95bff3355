#include "server/backend/host/source_transport.h"

#include <string>
#include <utility>

#include "server/backend/host/source_session.h"

namespace wsync::host {
namespace {

class SourceTransport final : public Transport {
 public:
  SourceTransport(const SessionSpec& spec, std::shared_ptr<SessionRegistry> registry, WorkerPool* pool)
      : token_(spec.token),
        registry_(std::move(registry)),
        session_(std::make_shared<SourceSession>(spec.world, pool)) {}

  ~SourceTransport() override {
    if (registered_) registry_->Unregister(token_);
    session_->Cancel(absl::CancelledError("data plane: the source closed the session"));
    session_->WaitReleased();
  }

  absl::Status Connect(absl::Time deadline) override {
    if (absl::Status status = registry_->Register(token_, session_); !status.ok()) return status;
    registered_ = true;
    absl::Status status = session_->WaitConnected(deadline);
    if (!status.ok()) session_->Cancel(status);  // the sinks that came learn it now, and later ones are refused
    return status;
  }

  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    if (!registered_) return HostCompletion::Finished(absl::FailedPreconditionError("broadcast: connect first"));
    return session_->Broadcast(data, bytes, after);
  }

  void Cancel(const absl::Status& why) override { session_->Cancel(why); }
  int64_t moved_bytes() const override { return session_->moved_bytes(); }

 private:
  const std::string token_;
  const std::shared_ptr<SessionRegistry> registry_;
  const std::shared_ptr<SourceSession> session_;
  bool registered_ = false;
};

}  // namespace

std::unique_ptr<Transport> NewSourceTransport(const SessionSpec& spec, std::shared_ptr<SessionRegistry> registry,
                                              WorkerPool* pool) {
  return std::make_unique<SourceTransport>(spec, std::move(registry), pool);
}

}  // namespace wsync::host
