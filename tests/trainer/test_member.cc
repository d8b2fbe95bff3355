#include "tests/trainer/test_member.h"

#include <gtest/gtest.h>

#include "server/core/clock.h"
#include "server/rpc/server.h"
#include "server/rpc/version.h"
#include "tests/trainer/testing.h"

namespace wsync {

TestMember::TestMember(const std::string& coordinator)
    : channel_(NewChannel(coordinator, nullptr)),
      stub_(v1::Coordinator::NewStub(channel_)),
      stream_(stub_->Member(&context_)),
      reader_([this] { Read(); }) {}

TestMember::~TestMember() {
  HangUp();
  reader_.join();
}

void TestMember::HangUp() { context_.TryCancel(); }

void TestMember::Read() {
  v1::CoordinatorMessage message;
  while (stream_->Read(&message)) {
    MutexLock lock(&mu_);
    received_.push_back(message);
    changed_.SignalAll();
  }
  const grpc::Status status = stream_->Finish();
  MutexLock lock(&mu_);
  ended_ = status;
  changed_.SignalAll();
}

v1::Join TestMember::JoinOf(const std::string& name) {
  v1::Join join;
  join.set_protocol(kProtocolVersion);
  join.set_job("test");
  join.set_name(name);
  join.set_replica(name);
  join.set_replica_size(1);
  join.set_host("here");
  join.set_pid(getpid());
  join.set_backend("fake");
  join.set_software("wsync test");
  return join;
}

bool TestMember::Send(const v1::MemberMessage& message) {
  ++sent_;
  return stream_->Write(message);
}

void TestMember::Join(const std::string& name) {
  v1::MemberMessage message;
  *message.mutable_join() = JoinOf(name);
  Send(message);
}

void TestMember::Ready(const v1::Hash& plan_hash) {
  v1::MemberMessage message;
  message.mutable_ready()->set_ready(true);
  message.mutable_ready()->set_engine("scripted");
  *message.mutable_ready()->mutable_plan_hash() = plan_hash;
  Send(message);
}

void TestMember::Heartbeat() {
  v1::MemberMessage message;
  message.mutable_heartbeat()->set_phase(v1::MEMBER_PHASE_IDLE);
  Send(message);
}

void TestMember::Staged(const v1::Begin& begin, const v1::Hash& digest) {
  v1::MemberMessage message;
  message.mutable_staged()->set_epoch(begin.epoch());
  message.mutable_staged()->set_version(begin.version());
  *message.mutable_staged()->mutable_content_digest() = digest;
  Send(message);
}

void TestMember::Applied(const v1::Begin& begin, const v1::Hash& digest) {
  v1::MemberMessage message;
  message.mutable_applied()->set_epoch(begin.epoch());
  message.mutable_applied()->set_version(begin.version());
  *message.mutable_applied()->mutable_content_digest() = digest;
  Send(message);
}

void TestMember::Failed(const v1::Begin& begin, const std::string& error) {
  v1::MemberMessage message;
  message.mutable_failed()->set_epoch(begin.epoch());
  message.mutable_failed()->set_version(begin.version());
  message.mutable_failed()->set_phase(v1::MEMBER_PHASE_STAGED);
  message.mutable_failed()->set_code(static_cast<int>(grpc::StatusCode::INTERNAL));
  message.mutable_failed()->set_error(error);
  message.mutable_failed()->set_bucket(-1);
  Send(message);
}

void TestMember::Leave() {
  v1::MemberMessage message;
  message.mutable_leave()->set_reason("going home");
  Send(message);
}

v1::CatalogChunk TestMember::JoinAndGetReady(const std::string& name) {
  Join(name);
  Await(Case::kWelcome);
  v1::CatalogChunk catalog = AwaitCatalog();
  Ready(catalog.plan_hash());
  return catalog;
}

v1::CoordinatorMessage TestMember::Await(Case kind, size_t n) {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  while (true) {
    size_t seen = 0;
    for (const v1::CoordinatorMessage& message : received_) {
      if (message.message_case() == kind && seen++ == n) return message;
    }
    if (ended_.has_value() || !changed_.WaitUntil(&mu_, deadline)) {
      ADD_FAILURE() << "message " << kind << " number " << n << " did not come; the stream "
                    << (ended_.has_value() ? "ended: " + ended_->error_message() : "is open");
      return {};
    }
  }
}

v1::CatalogChunk TestMember::AwaitCatalog(size_t n) {
  v1::CatalogChunk whole;
  for (size_t i = 0, last = 0; last <= n; ++i) {
    const v1::CoordinatorMessage message = Await(Case::kCatalog, i);
    if (!message.has_catalog()) return whole;
    if (message.catalog().first()) whole.Clear();
    whole.MergeFrom(message.catalog());
    last += message.catalog().last();
  }
  return whole;
}

size_t TestMember::Count(Case kind) {
  MutexLock lock(&mu_);
  size_t seen = 0;
  for (const v1::CoordinatorMessage& message : received_) seen += message.message_case() == kind;
  return seen;
}

grpc::Status TestMember::AwaitEnd() {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  while (!ended_.has_value() && changed_.WaitUntil(&mu_, deadline)) {
  }
  return ended_.value_or(grpc::Status(grpc::StatusCode::UNKNOWN, "the stream did not end"));
}

}  // namespace wsync
