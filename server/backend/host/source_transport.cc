#include "server/backend/host/source_transport.h"

#include <string>
#include <utility>
#include <vector>

#include "server/backend/host/source_session.h"

namespace wsync::host {
namespace {

class SourceTransport final : public Transport {
 public:
  SourceTransport(const SessionSpec& spec, std::shared_ptr<SessionRegistry> registry, WorkerPool* pool)
      : keys_(KeysOf(spec)),
        registry_(std::move(registry)),
        session_(std::make_shared<SourceSession>(spec.world, pool)) {}

  ~SourceTransport() override {
    if (registered_) registry_->Unregister(session_);
    session_->Cancel(absl::CancelledError("data plane: the source closed the session"));
    session_->WaitReleased();
  }

  absl::Status Connect(absl::Time deadline) override {
    if (absl::Status status = registry_->Register(keys_, session_); !status.ok()) return status;
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
  std::optional<std::vector<PeerProgress>> peers() const override { return session_->peers(); }

 private:
  static std::vector<SessionRegistry::Key> KeysOf(const SessionSpec& spec) {
    std::vector<SessionRegistry::Key> keys;
    for (const std::string& token : spec.peer_tokens) keys.push_back({token, static_cast<int32_t>(keys.size()) + 1});
    if (keys.empty()) keys.push_back({spec.token, 0});
    return keys;
  }

  const std::vector<SessionRegistry::Key> keys_;
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
