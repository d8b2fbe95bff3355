#include "tests/trainer/agent_testing.h"

#include <algorithm>

#include "server/core/clock.h"
#include "server/rpc/convert.h"
#include "server/rpc/server.h"
#include "tests/trainer/testing.h"

namespace wsync {

v1::TrainerConfig TestConfig() {
  static int agents = 0;
  v1::TrainerConfig config;
  config.set_job("test");
  config.set_local_socket(absl::StrCat("unix://", ::testing::TempDir(), "wsync-", getpid(), "-", ++agents, ".sock"));
  v1::CoordinatorConfig& c = *config.mutable_coordinator();
  c.set_listen("127.0.0.1:0");
  c.set_policy("all");
  c.set_min_replicas(1);
  c.set_min_replicas_wait_ms(5000);
  c.set_heartbeat_ms(1000);
  c.set_heartbeat_timeout_ms(60000);
  c.set_stage_timeout_ms(10000);
  c.set_min_rate_bytes_per_second(50 << 20);
  c.set_apply_timeout_ms(10000);
  c.set_event_history(100);
  config.mutable_transfer()->set_bucket_bytes(kMinBucketBytes);
  config.mutable_transfer()->set_source_mode("full");
  config.mutable_transfer()->set_ring_slots(2);
  config.mutable_recipe()->set_fp8(false);
  config.mutable_recipe()->set_granularity("block");
  config.mutable_recipe()->set_scale("fp32");
  config.mutable_recipe()->set_preset("default");
  return config;
}

int PublishOutcome::Count(v1::PublishEvent::EventCase kind) const {
  return static_cast<int>(
      std::count_if(events.begin(), events.end(), [&](const auto& event) { return event.event_case() == kind; }));
}

PublishInFlight::PublishInFlight(v1::Trainer::Stub* stub, const v1::PublishRequest& request) {
  reader_ = std::thread([this, stub, request] {
    auto stream = stub->Publish(&context_, request);
    v1::PublishEvent event;
    while (stream->Read(&event)) {
      MutexLock lock(&mu_);
      outcome_.events.push_back(event);
      changed_.SignalAll();
    }
    const grpc::Status status = stream->Finish();
    MutexLock lock(&mu_);
    outcome_.status = status;
    ended_ = true;
    changed_.SignalAll();
  });
}

PublishInFlight::~PublishInFlight() {
  if (!reader_.joinable()) return;
  HangUp();
  reader_.join();
}

void PublishInFlight::AwaitEvent(v1::PublishEvent::EventCase kind) {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  while (outcome_.Count(kind) == 0) {
    if (!ended_ && changed_.WaitUntil(&mu_, deadline)) continue;
    ADD_FAILURE() << "event " << kind << " did not come: " << outcome_.status.error_message();
    return;
  }
}

bool PublishInFlight::Told(v1::PublishEvent::EventCase kind) {
  MutexLock lock(&mu_);
  return outcome_.Count(kind) > 0;
}

PublishOutcome PublishInFlight::Join() {
  reader_.join();
  MutexLock lock(&mu_);
  return outcome_;
}

void AgentTest::StartAgent(const v1::TrainerConfig& config) {
  auto backend = std::make_unique<FakeBackend>();
  backend_ = backend.get();
  auto agent = TrainerAgent::Start(config, std::move(backend));
  ASSERT_TRUE(agent.ok()) << agent.status();
  agent_ = *std::move(agent);
  trainer_ = v1::Trainer::NewStub(NewChannel(agent_->local_address(), nullptr));
  coordinator_ = v1::Coordinator::NewStub(NewChannel(agent_->coordinator_address(), nullptr));
}

void AgentTest::TearDown() {
  if (agent_ != nullptr) agent_->Stop(absl::ZeroDuration());
}

grpc::Status AgentTest::Register(int tensors, v1::RegisterReply* reply, bool replace, const std::string& memory,
                                 int64_t pid) {
  const RegistrationRequest made = TestRequest(*backend_, tensors, memory);
  grpc::ClientContext context;
  auto stream = trainer_->Register(&context, reply);
  v1::RegisterRequest request;
  request.mutable_header()->set_pid(pid);
  request.mutable_header()->set_replace(replace);
  *request.mutable_header()->add_handles() = ToProto(made.handles[0]);
  for (int i = 0; i < tensors; ++i) {
    v1::RegisteredTensor* tensor = request.add_tensors();
    *tensor->mutable_tensor() = ToProto(made.tensors[i]);
    tensor->set_handle(made.places[i].handle);
    tensor->set_offset_bytes(made.places[i].offset_bytes);
    if (request.tensors_size() < 1000) continue;
    stream->Write(request);
    request.Clear();
  }
  if (request.has_header() || request.tensors_size() > 0) stream->Write(request);
  stream->WritesDone();
  return stream->Finish();
}

std::string AgentTest::RegisterOk(int tensors, bool replace, const std::string& memory) {
  v1::RegisterReply reply;
  const grpc::Status status = Register(tensors, &reply, replace, memory);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return reply.registration_id();
}

std::unique_ptr<PublishInFlight> AgentTest::Publish(const std::string& registration_id, uint64_t version) {
  v1::PublishRequest request;
  request.set_registration_id(registration_id);
  request.set_version(version);
  return Publish(request);
}

PublishOutcome AgentTest::PublishAndWait(const std::string& registration_id, uint64_t version) {
  return Publish(registration_id, version)->Join();
}

grpc::Status AgentTest::Unregister(const std::string& registration_id, v1::UnregisterReply* reply) {
  grpc::ClientContext context;
  v1::UnregisterRequest request;
  request.set_registration_id(registration_id);
  return trainer_->Unregister(&context, request, reply);
}

v1::JobStatus AgentTest::Status() {
  grpc::ClientContext context;
  v1::JobStatus status;
  const grpc::Status result = coordinator_->GetStatus(&context, v1::GetStatusRequest(), &status);
  EXPECT_TRUE(result.ok()) << result.error_message();
  return status;
}

v1::Hash AgentTest::ContentOf(int tensors, const std::string& memory) {
  const auto registration = TestRegistration(*backend_, tensors, memory);
  return ToProto(FakeBackend::ContentOf(*registration->plan(), registration->addresses()));
}

PublishOutcome AgentTest::Sync(const std::string& registration_id, uint64_t version,
                               const std::vector<TestMember*>& members, const v1::Hash& content, size_t round) {
  auto publish = Publish(registration_id, version);
  std::vector<v1::Begin> begins;
  std::vector<size_t> commits;
  for (TestMember* member : members) {
    commits.push_back(member->Count(TestMember::Case::kCommit));
    begins.push_back(member->Await(TestMember::Case::kBegin, round).begin());
    member->Staged(begins.back(), content);
  }
  for (size_t i = 0; i < members.size(); ++i) {
    members[i]->Await(TestMember::Case::kCommit, commits[i]);
    members[i]->Applied(begins[i], content);
  }
  return publish->Join();
}

}  // namespace wsync
