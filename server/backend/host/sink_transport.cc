#include "server/backend/host/sink_transport.h"

#include <utility>

#include "server/backend/host/sink_session.h"

namespace wsync::host {
namespace {

class SinkTransport final : public Transport {
 public:
  SinkTransport(const SessionSpec& spec, std::shared_ptr<grpc::ChannelCredentials> credentials)
      : session_(std::make_shared<SinkSession>(spec, std::move(credentials))) {}
  ~SinkTransport() override {
    session_->Cancel(absl::CancelledError("data plane: this rank closed the session"));
    session_->Join();
  }

  absl::Status Connect(absl::Time deadline) override { return session_->Connect(deadline); }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    return session_->Broadcast(data, bytes, after);
  }
  void Cancel(const absl::Status& why) override { session_->Cancel(why); }
  int64_t moved_bytes() const override { return session_->moved_bytes(); }

 private:
  const std::shared_ptr<SinkSession> session_;
};

}  // namespace

std::unique_ptr<Transport> NewSinkTransport(const SessionSpec& spec,
                                            std::shared_ptr<grpc::ChannelCredentials> credentials) {
  return std::make_unique<SinkTransport>(spec, std::move(credentials));
}

}  // namespace wsync::host
