// Clients of the local API that speak nonsense, ask for too much, or hang up in the middle: each gets an error, at
// once, and real agents serve the others as before.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "tests/system/system_testing.h"
#include "wsync/v1/rollout.grpc.pb.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync::cli {
namespace {

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

template <typename Context>
void SetDeadline(Context& context) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kPatience));
}

class HostileClient : public System {
 protected:
  void SetUp() override {
    Start(1);
    ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
    ASSERT_TRUE(Publish(1).ok());
    segment_ = *SharedSegment::Create(1 << 20, "a test");
  }
  void TearDown() override {
    const auto report = Publish(2);
    EXPECT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(engines_[0]->WaitForVersion(2, kPatience));
  }
  std::shared_ptr<grpc::Channel> To(const std::string& socket) const {
    grpc::ChannelArguments own;  // a connection of its own, that goes with the channel
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(socket, grpc::InsecureChannelCredentials(), own);
  }
  std::shared_ptr<grpc::Channel> Trainer() const { return To(cluster_->trainer_socket()); }
  std::shared_ptr<grpc::Channel> Rollout() const { return To(cluster_->rollout_socket(0)); }

  // One small tensor in the segment, that takes over: good until `spoil` has been at it.
  v1::RegisterRequest Registration() const {
    v1::RegisterRequest request;
    request.mutable_header()->set_pid(getpid());
    request.mutable_header()->set_replace(true);
    *request.mutable_header()->add_handles() = ToProto(segment_->handle());
    v1::RegisteredTensor* tensor = request.add_tensors();
    *tensor->mutable_tensor() = ToProto(Tensor{"a", Dtype::kBF16, {16, 16}});
    return request;
  }
  grpc::Status Register(const v1::RegisterRequest& request) const {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::RegisterReply reply;
    const auto stub = v1::Trainer::NewStub(Trainer());
    const auto writer = stub->Register(&context, &reply);
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }
  grpc::Status Attach(const v1::AttachRequest& request) const {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::AttachReply reply;
    const auto stub = v1::Rollout::NewStub(Rollout());
    const auto writer = stub->Attach(&context, &reply);
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }
  std::unique_ptr<SharedSegment> segment_;
};

using Spoil = std::function<void(v1::RegisterRequest&)>;

TEST_F(HostileClient, RegistrationsThatMakeNoSenseAreRefused) {
  const std::vector<std::pair<const char*, Spoil>> all = {
      {"a size of 2^64 - 1",
       [](auto& r) { r.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(kHuge); }},
      {"a size of 2^63 - 1",
       [](auto& r) { r.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(kHuge / 2); }},
      {"no size", [](auto& r) { r.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(0); }},
      {"memory of its own kind", [](auto& r) { r.mutable_header()->mutable_handles(0)->Clear(); }},
      {"memory of the agent's own process",
       [](auto& r) { r.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_name("/proc/self/mem"); }},
      {"a path out of the folder",
       [](auto& r) { r.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_name("/../etc/passwd"); }},
      {"too many handles",
       [](auto& r) {
         const v1::MemoryHandle one = r.header().handles(0);
         for (int i = 0; i < 70'000; ++i) {
           v1::MemoryHandle* next = r.mutable_header()->add_handles();
           next->mutable_shared_memory()->set_name("/x");
           next->mutable_shared_memory()->set_size_bytes(1);
         }
       }},
      {"an offset of 2^64 - 1", [](auto& r) { r.mutable_tensors(0)->set_offset_bytes(kHuge); }},
      {"an offset that wraps around", [](auto& r) { r.mutable_tensors(0)->set_offset_bytes(kHuge - 511); }},
      {"handle 2^32 - 1", [](auto& r) { r.mutable_tensors(0)->set_handle(~0u); }},
      {"a shape of 2^126", [](auto& r) { r.mutable_tensors(0)->mutable_tensor()->set_shape(0, int64_t{1} << 62); }},
      {"a thousand tensors of 4 TiB each, which would take all memory for their plan",
       [](auto& r) {
         r.mutable_tensors(0)->mutable_tensor()->set_shape(0, int64_t{1} << 37);
         for (int i = 0; i < 1000; ++i) {
           *r.add_tensors() = r.tensors(0);
           r.mutable_tensors(i + 1)->mutable_tensor()->set_name(absl::StrCat("a", i));
         }
       }},
      {"a shape below zero", [](auto& r) { r.mutable_tensors(0)->mutable_tensor()->set_shape(0, -1); }},
      {"no such dtype", [](auto& r) { r.mutable_tensors(0)->mutable_tensor()->set_dtype(v1::Dtype(99)); }},
      {"a name twice", [](auto& r) { *r.add_tensors() = r.tensors(0); }},
      {"a process that is none", [](auto& r) { r.mutable_header()->set_pid(-1); }},
      {"a process beyond all", [](auto& r) { r.mutable_header()->set_pid(int64_t{1} << 40); }},
  };
  for (const auto& [what, spoil] : all) {
    v1::RegisterRequest request = Registration();
    spoil(request);
    const grpc::Status status = Register(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << what << ": " << status.error_message();
  }
}

// It hung the thread that registers, for good.
TEST_F(HostileClient, AFifoThatIsLentIsRefusedAtOnce) {
  const std::string name = absl::StrCat("/wsync-test-fifo-", getpid());
  ASSERT_EQ(mkfifo(("/dev/shm" + name).c_str(), 0600), 0);
  v1::RegisterRequest request = Registration();
  request.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_name(name);
  EXPECT_EQ(Register(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  unlink(("/dev/shm" + name).c_str());
}

TEST_F(HostileClient, AttachesThatMakeNoSenseAreRefusedOnceTheSlotIsFree) {
  engines_[0] = nullptr;
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 0; }, "the engine is gone");
  const auto client = EngineClient::Connect(cluster_->rollout_socket(0), kPatience);
  ASSERT_TRUE(client.ok()) << client.status();
  const auto outputs = (*client)->GetOutputs(kPatience);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const auto memory = EngineMemory::Create(*outputs);
  ASSERT_TRUE(memory.ok()) << memory.status();
  v1::AttachRequest good;
  good.mutable_header()->set_pid(getpid());
  good.mutable_header()->set_engine("hostile");
  *good.mutable_header()->add_handles() = ToProto((*memory)->handle());
  for (const Destination& destination : (*memory)->Destinations()) *good.add_destinations() = ToProto(destination);
  good.mutable_header()->set_destinations(static_cast<uint64_t>(good.destinations_size()));

  const std::vector<std::pair<const char*, std::function<void(v1::AttachRequest&)>>> all = {
      {"two outputs in one place",
       [](auto& r) { r.mutable_destinations(1)->set_offset_bytes(r.destinations(0).offset_bytes()); }},
      {"an offset of 2^64 - 1", [](auto& r) { r.mutable_destinations(0)->set_offset_bytes(kHuge); }},
      {"a pitch of 2^64 - 1", [](auto& r) { r.mutable_destinations(0)->set_row_pitch_bytes(kHuge); }},
      {"a pitch that wraps around", [](auto& r) { r.mutable_destinations(0)->set_row_pitch_bytes(uint64_t{1} << 62); }},
      {"rows of one another", [](auto& r) { r.mutable_destinations(0)->set_row_pitch_bytes(1); }},
      {"rows beyond the tensor", [](auto& r) { r.mutable_destinations(0)->set_row_end(int64_t{1} << 62); }},
      {"columns before the first", [](auto& r) { r.mutable_destinations(0)->set_col_begin(-1); }},
      {"nothing of a tensor", [](auto& r) { r.mutable_destinations(0)->set_row_end(0); }},
      {"handle 2^32 - 1", [](auto& r) { r.mutable_destinations(0)->set_handle(~0u); }},
      {"a list that is cut short", [](auto& r) { r.mutable_destinations()->RemoveLast(); }},
  };
  for (const auto& [what, spoil] : all) {
    v1::AttachRequest request = good;
    spoil(request);
    const grpc::Status status = Attach(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << what << ": " << status.error_message();
  }
  engines_[0] = std::make_unique<EngineThread>("good", cluster_->rollout_socket(0));
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "an engine is there again");
}

TEST_F(HostileClient, WhoHangsUpInTheMiddleOfACallLeavesNothingBehind) {
  const v1::RegisterRequest registration = Registration();
  for (int i = 0; i < 40; ++i) {
    grpc::ClientContext contexts[4];
    v1::RegisterReply registered;
    v1::AttachReply attached;
    const auto trainer = v1::Trainer::NewStub(Trainer());
    const auto rollout = v1::Rollout::NewStub(Rollout());
    const auto registering = trainer->Register(&contexts[0], &registered);
    v1::RegisterRequest half = registration;
    half.mutable_header()->set_tensors(1000);
    registering->Write(half);
    const auto attaching = rollout->Attach(&contexts[1], &attached);
    v1::AttachRequest header;
    header.mutable_header()->set_engine("half");
    header.mutable_header()->set_allow_partial(true);
    header.mutable_header()->set_destinations(1000);
    attaching->Write(header);
    const auto updates = rollout->Updates(&contexts[2]);
    v1::EngineMessage hello;
    hello.mutable_hello()->set_attachment_id("of another");
    updates->Write(hello);
    v1::EngineMessage nonsense;
    nonsense.mutable_layer_taken()->set_ticket(kHuge);
    updates->Write(nonsense);
    const auto outputs = rollout->GetOutputs(&contexts[3], {});
    for (grpc::ClientContext& context : contexts) {
      if (i % 2 == 0) context.TryCancel();
    }
    if (i % 2 == 1) {
      registering->WritesDone();
      attaching->WritesDone();
      updates->WritesDone();
    }
    EXPECT_FALSE(registering->Finish().ok());
    EXPECT_FALSE(attaching->Finish().ok());
    v1::UpdateEvent event;
    while (updates->Read(&event)) continue;
    EXPECT_FALSE(updates->Finish().ok());
    v1::OutputsReply reply;
    while (outputs->Read(&reply)) continue;
    (void)outputs->Finish();
  }
}

}  // namespace
}  // namespace wsync::cli
