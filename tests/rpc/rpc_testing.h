// A coordinator service that only answers status calls, and a way to call services whose headers are not installed.
#ifndef WSYNC_TESTS_RPC_RPC_TESTING_H_
#define WSYNC_TESTS_RPC_RPC_TESTING_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "server/core/sync.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync {

inline std::chrono::system_clock::time_point InSeconds(int seconds) {
  return std::chrono::system_clock::now() + std::chrono::seconds(seconds);
}

// GetStatus answers with the job; WatchStatus sends one status and then holds the call until it is cancelled, or until
// Release(). Thread-safe.
class StatusService final : public v1::Coordinator::CallbackService {
 public:
  explicit StatusService(std::string job) : job_(std::move(job)) {}

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest*,
                                      v1::JobStatus* reply) override {
    reply->set_job(job_);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<v1::JobStatus>* WatchStatus(grpc::CallbackServerContext*,
                                                       const v1::WatchStatusRequest*) override {
    auto* watch = new Watch(this);
    MutexLock lock(&mu_);
    if (released_) {
      watch->Finish(grpc::Status::OK);
    } else {
      held_ = watch;
      watch->Begin(job_);
    }
    return watch;
  }

  // Ends the call that is held, and every later one.
  void Release() {
    MutexLock lock(&mu_);
    released_ = true;
    if (held_ != nullptr) held_->Finish(grpc::Status::OK);
    held_ = nullptr;
  }

 private:
  class Watch final : public grpc::ServerWriteReactor<v1::JobStatus> {
   public:
    explicit Watch(StatusService* service) : service_(service) {}
    void Begin(const std::string& job) {
      status_.set_job(job);
      StartWrite(&status_);
    }
    void OnCancel() override { service_->Cancelled(this); }
    void OnDone() override { delete this; }

   private:
    StatusService* service_;
    v1::JobStatus status_;
  };

  void Cancelled(Watch* watch) {
    MutexLock lock(&mu_);
    if (held_ != watch) return;
    held_ = nullptr;
    watch->Finish(grpc::Status::CANCELLED);
  }

  const std::string job_;
  Mutex mu_;
  Watch* held_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool released_ ABSL_GUARDED_BY(mu_) = false;
};

// GetStatus within five seconds.
inline grpc::Status CallGetStatus(const std::shared_ptr<grpc::Channel>& channel, v1::JobStatus* reply) {
  grpc::ClientContext context;
  context.set_deadline(InSeconds(5));
  context.set_wait_for_ready(true);
  return v1::Coordinator::NewStub(channel)->GetStatus(&context, v1::GetStatusRequest(), reply);
}

// One message out, the first one back, as bytes; "" on an error.
inline std::string CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                           const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(InSeconds(5));
  context.set_wait_for_ready(true);
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  const grpc::Slice slice(request);
  const grpc::ByteBuffer out(&slice, 1);
  grpc::ByteBuffer in;
  auto stream = stub.PrepareCall(&context, method, &queue);
  stream->StartCall(nullptr);
  queue.Next(&tag, &ok);
  stream->WriteLast(out, grpc::WriteOptions(), nullptr);
  queue.Next(&tag, &ok);
  stream->Read(&in, nullptr);
  queue.Next(&tag, &ok);
  const bool got = ok;
  grpc::Status status;
  stream->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice flat;
  if (!got || !in.DumpToSingleSlice(&flat).ok()) return "";
  return {reinterpret_cast<const char*>(flat.begin()), flat.size()};
}

}  // namespace wsync

#endif  // WSYNC_TESTS_RPC_RPC_TESTING_H_
