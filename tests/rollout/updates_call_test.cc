// The local API's calls under clients that send too much, read nothing, or open more than they need.
#include "server/rollout/updates_call.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/sync.h"
#include "server/rollout/rollout_service.h"
#include "tests/rollout/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

// A controller that does nothing but count, and never gets to what comes next by itself.
class IdleApi final : public LocalApi {
 public:
  void AwaitPlan(Caller, std::function<void(absl::StatusOr<std::shared_ptr<const Plan>>)>) override {}
  void Attach(Caller, AttachSpec, std::function<void(absl::StatusOr<Attached>)> done) override {
    done(Attached{.attachment_id = "id"});
  }
  void Detach(std::string, std::function<void(absl::Status)> done) override { done(absl::OkStatus()); }
  void OpenUpdates(std::string, std::shared_ptr<EngineStream> stream) override { Count(std::move(stream)); }
  void EnginePaused(std::shared_ptr<EngineStream> stream, uint64_t, std::optional<EventHandle>) override {
    Count(std::move(stream));
  }
  void EngineAnswers(std::shared_ptr<EngineStream> stream, LayerAnswer) override { Count(std::move(stream)); }
  void EngineGone(std::shared_ptr<EngineStream> stream, absl::Status status) override {
    stream->Finish(status);
    MutexLock lock(&mu_);
    if (!gone_.has_value()) gone_ = status;
    changed_.SignalAll();
  }

  // The stream, once as many messages came.
  std::shared_ptr<EngineStream> Await(int heard) {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (heard_ < heard && changed_.WaitUntil(&mu_, deadline)) {
    }
    EXPECT_GE(heard_, heard);
    return stream_;
  }
  absl::Status AwaitGone() {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (!gone_.has_value() && changed_.WaitUntil(&mu_, deadline)) {
    }
    return gone_.value_or(absl::OkStatus());
  }
  int heard() {
    MutexLock lock(&mu_);
    return heard_;
  }

 private:
  void Count(std::shared_ptr<EngineStream> stream) {
    MutexLock lock(&mu_);
    stream_ = std::move(stream);
    ++heard_;
    changed_.SignalAll();
  }
  Mutex mu_;
  CondVar changed_;
  int heard_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<absl::Status> gone_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<EngineStream> stream_ ABSL_GUARDED_BY(mu_);
};

class UpdatesCallTest : public ::testing::Test {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::EngineMessage, v1::UpdateEvent>;
  UpdatesCallTest() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ =
        v1::Rollout::NewStub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  ~UpdatesCallTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::unique_ptr<Stream> Open(grpc::ClientContext* context) {
    std::unique_ptr<Stream> stream = stub_->Updates(context);
    v1::EngineMessage hello;
    hello.mutable_hello()->set_attachment_id("id");
    EXPECT_TRUE(stream->Write(hello));
    return stream;
  }

  IdleApi api_;
  RolloutService service_{&api_};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Rollout::Stub> stub_;
};

TEST_F(UpdatesCallTest, WhatAnEngineSaysIsReadOnlyAsFastAsTheControllerGetsToIt) {
  grpc::ClientContext context;
  const auto stream = Open(&context);
  v1::EngineMessage message;
  message.mutable_paused()->set_version(1);
  for (int i = 0; i < 100; ++i) stream->Write(message);
  for (int turn = 1; turn <= 20; ++turn) {
    const auto engine = api_.Await(turn);
    EXPECT_EQ(api_.heard(), turn);  // a hundred are there to be read
    engine->Heard();
  }
  context.TryCancel();
  v1::UpdateEvent event;
  while (stream->Read(&event)) {
  }
  (void)stream->Finish();
  (void)api_.AwaitGone();
}

TEST_F(UpdatesCallTest, AnEngineThatReadsNothingIsLetGoBeforeItsQueueGrowsWithoutEnd) {
  grpc::ClientContext context;
  const auto stream = Open(&context);
  const auto engine = api_.Await(1);
  for (uint64_t version = 1; version <= 100'000; ++version) engine->Prepare({.version = version});
  const absl::Status gone = api_.AwaitGone();
  EXPECT_EQ(gone.code(), absl::StatusCode::kResourceExhausted) << gone;
  EXPECT_THAT(std::string(gone.message()), HasSubstr("does not read its update stream"));
  context.TryCancel();
  (void)stream->Finish();
}

TEST_F(UpdatesCallTest, ThousandsOfStreamsAreRefusedByNameAndTheOthersGoOn) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 1024; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(Open(contexts.back().get()));
  }
  (void)api_.Await(1024);
  grpc::ClientContext one_too_many;
  const auto stream = stub_->Updates(&one_too_many);
  v1::UpdateEvent event;
  EXPECT_FALSE(stream->Read(&event));
  const grpc::Status refused = stream->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << refused.error_message();
  EXPECT_THAT(refused.error_message(), HasSubstr("1024 calls of Updates"));
  grpc::ClientContext other;
  v1::DetachReply reply;
  EXPECT_TRUE(stub_->Detach(&other, {}, &reply).ok());
  for (auto& context : contexts) context->TryCancel();
  for (auto& open : streams) (void)open->Finish();
}

TEST_F(UpdatesCallTest, AListThatIsCutShortIsNeverAttached) {
  for (const uint64_t announced : {uint64_t{2}, uint64_t{0}, uint64_t{1}}) {
    grpc::ClientContext context;
    v1::AttachReply reply;
    const auto writer = stub_->Attach(&context, &reply);
    v1::AttachRequest request;
    request.mutable_header()->set_engine("engine");
    request.mutable_header()->set_allow_partial(true);
    request.mutable_header()->set_destinations(announced);
    request.add_destinations()->mutable_output()->set_name("a");
    request.mutable_destinations(0)->mutable_output()->set_dtype(v1::DTYPE_BF16);
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_EQ(status.ok(), announced == 1) << status.error_message();
    if (announced != 1) {
      EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("1 destinations where its header says ", announced)));
    }
  }
}

}  // namespace
}  // namespace wsync
