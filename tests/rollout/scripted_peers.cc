#include "tests/rollout/scripted_peers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rpc/convert.h"

namespace wsync {
namespace {

std::chrono::system_clock::time_point In(absl::Duration timeout) {
  return std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout);
}

std::string Word(const v1::MemberMessage& message) {
  switch (message.message_case()) {
    case v1::MemberMessage::kReady:
      return message.ready().ready() ? "ready" : "not ready";
    case v1::MemberMessage::kStaged:
      return "staged";
    case v1::MemberMessage::kApplied:
      return "applied";
    case v1::MemberMessage::kFailed:
      return "failed";
    default:
      return "";
  }
}

}  // namespace

// ---- coordinator

ScriptedCoordinator::ScriptedCoordinator(const std::string& address) {
  auto server = RpcServer::Start({.address = address, .services = {this}});
  if (!server.ok()) ADD_FAILURE() << server.status();
  if (server.ok()) server_ = *std::move(server);
}

ScriptedCoordinator::~ScriptedCoordinator() {
  if (server_ != nullptr) server_->Shutdown(absl::ZeroDuration());
}

grpc::Status ScriptedCoordinator::Member(grpc::ServerContext*, Stream* stream) {
  {
    MutexLock lock(&mu_);
    stream_ = stream;
    inbox_.clear();
  }
  v1::MemberMessage message;
  while (stream->Read(&message)) {
    MutexLock lock(&mu_);
    if (message.has_heartbeat()) {
      ++heartbeats_;
      v1::CoordinatorMessage ack;
      ack.mutable_heartbeat_ack();
      if (answer_heartbeats_) stream->Write(ack);
    } else {
      if (const std::string word = Word(message); !word.empty()) log_.push_back(word);
      inbox_.push_back(message);
    }
    changed_.SignalAll();
  }
  MutexLock lock(&mu_);
  if (stream_ == stream) stream_ = nullptr;
  changed_.SignalAll();
  return grpc::Status::OK;
}

v1::MemberMessage ScriptedCoordinator::Await(const std::function<bool(const v1::MemberMessage&)>& wanted) {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  while (true) {
    while (!inbox_.empty()) {
      v1::MemberMessage message = std::move(inbox_.front());
      inbox_.pop_front();
      if (wanted(message)) return message;
    }
    if (!changed_.WaitUntil(&mu_, deadline) && inbox_.empty()) break;
  }
  ADD_FAILURE() << "the coordinator did not get the message it waited for";
  return {};
}

v1::Join ScriptedCoordinator::AwaitJoin() {
  return Await([](const auto& m) { return m.has_join(); }).join();
}
v1::Ready ScriptedCoordinator::AwaitReady(bool ready) {
  return Await([ready](const auto& m) { return m.has_ready() && m.ready().ready() == ready; }).ready();
}
v1::Staged ScriptedCoordinator::AwaitStaged() {
  return Await([](const auto& m) { return m.has_staged(); }).staged();
}
v1::Applied ScriptedCoordinator::AwaitApplied() {
  return Await([](const auto& m) { return m.has_applied(); }).applied();
}
v1::Failed ScriptedCoordinator::AwaitFailed() {
  return Await([](const auto& m) { return m.has_failed(); }).failed();
}

bool ScriptedCoordinator::AwaitHeartbeats(int count) {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  heartbeats_ = 0;
  while (heartbeats_ < count && MonotonicNow() < deadline) changed_.WaitUntil(&mu_, deadline);
  return heartbeats_ >= count;
}

bool ScriptedCoordinator::AwaitEnd() {
  const absl::Time deadline = MonotonicNow() + kPatience;
  MutexLock lock(&mu_);
  while (stream_ != nullptr && MonotonicNow() < deadline) changed_.WaitUntil(&mu_, deadline);
  return stream_ == nullptr;
}

void ScriptedCoordinator::Send(const v1::CoordinatorMessage& message) {
  MutexLock lock(&mu_);
  if (stream_ == nullptr || !stream_->Write(message)) ADD_FAILURE() << "no member to send to";
}

void ScriptedCoordinator::Welcome(int64_t heartbeat_ms, int64_t heartbeat_timeout_ms) {
  v1::CoordinatorMessage message;
  message.mutable_welcome()->set_heartbeat_ms(heartbeat_ms);
  message.mutable_welcome()->set_heartbeat_timeout_ms(heartbeat_timeout_ms);
  Send(message);
}

// In chunks of two tensors, so that putting them together is tested, too.
void ScriptedCoordinator::SendCatalog(const Plan& plan) {
  const std::vector<Tensor>& tensors = plan.catalog().tensors();
  for (size_t begin = 0; begin < tensors.size(); begin += 2) {
    v1::CoordinatorMessage message;
    v1::CatalogChunk* chunk = message.mutable_catalog();
    const size_t end = std::min(begin + 2, tensors.size());
    for (size_t i = begin; i < end; ++i) *chunk->add_tensors() = ToProto(tensors[i]);
    chunk->set_first(begin == 0);
    chunk->set_last(end == tensors.size());
    if (chunk->first()) {
      *chunk->mutable_rules() = ToProto(plan.rules());
      chunk->set_bucket_bytes(plan.bucket_bytes());
    }
    if (chunk->last()) {
      *chunk->mutable_catalog_fingerprint() = ToProto(plan.catalog().fingerprint());
      *chunk->mutable_plan_hash() = ToProto(plan.hash());
    }
    Send(message);
  }
}

void ScriptedCoordinator::SendNoCatalog() {
  v1::CoordinatorMessage message;
  message.mutable_catalog()->set_first(true);
  message.mutable_catalog()->set_last(true);
  Send(message);
}

void ScriptedCoordinator::Begin(uint64_t epoch, uint64_t version, const Plan& plan) {
  v1::CoordinatorMessage message;
  message.mutable_begin()->set_epoch(epoch);
  message.mutable_begin()->set_version(version);
  *message.mutable_begin()->mutable_plan_hash() = ToProto(plan.hash());
  message.mutable_begin()->set_session_token(absl::StrCat("session of epoch ", epoch));
  message.mutable_begin()->set_rank(1);
  message.mutable_begin()->set_world(2);
  message.mutable_begin()->set_group(1);
  Send(message);
}

void ScriptedCoordinator::Commit(uint64_t epoch, uint64_t version, const Hash128& digest) {
  v1::CoordinatorMessage message;
  message.mutable_commit()->set_epoch(epoch);
  message.mutable_commit()->set_version(version);
  *message.mutable_commit()->mutable_content_digest() = ToProto(digest);
  Send(message);
}

void ScriptedCoordinator::Abort(uint64_t epoch, uint64_t version, const std::string& why) {
  v1::CoordinatorMessage message;
  message.mutable_abort()->set_epoch(epoch);
  message.mutable_abort()->set_version(version);
  message.mutable_abort()->set_code(static_cast<int32_t>(absl::StatusCode::kAborted));
  message.mutable_abort()->set_error(why);
  Send(message);
}

void ScriptedCoordinator::AnswerHeartbeats(bool answer) {
  MutexLock lock(&mu_);
  answer_heartbeats_ = answer;
}

std::vector<std::string> ScriptedCoordinator::rounds_log() const {
  MutexLock lock(&mu_);
  return log_;
}

// ---- engine

ScriptedEngine::ScriptedEngine(const std::string& address)
    : channel_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())),
      stub_(v1::Rollout::NewStub(channel_)) {}

ScriptedEngine::~ScriptedEngine() {
  if (updates_ == nullptr) return;
  context_->TryCancel();
  End();
}

grpc::Status ScriptedEngine::GetOutputs(absl::Duration timeout, std::vector<v1::OutputsReply>* replies) {
  grpc::ClientContext context;
  context.set_deadline(In(timeout));
  const auto reader = stub_->GetOutputs(&context, {});
  v1::OutputsReply reply;
  while (reader->Read(&reply)) replies->push_back(reply);
  return reader->Finish();
}

grpc::Status ScriptedEngine::Attach(const v1::AttachRequest& request, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(In(timeout));
  const auto writer = stub_->Attach(&context, &attached_);
  // The header alone, then every destination in a message of its own.
  v1::AttachRequest header;
  *header.mutable_header() = request.header();
  writer->Write(header);
  for (const v1::Destination& destination : request.destinations()) {
    v1::AttachRequest part;
    *part.add_destinations() = destination;
    if (!writer->Write(part)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

void ScriptedEngine::OpenUpdates() { OpenUpdates(attached_.attachment_id()); }

void ScriptedEngine::OpenUpdates(const std::string& attachment_id) {
  context_ = std::make_unique<grpc::ClientContext>();
  context_->set_deadline(In(2 * kPatience));
  updates_ = stub_->Updates(context_.get());
  v1::EngineMessage hello;
  hello.mutable_hello()->set_attachment_id(attachment_id);
  updates_->Write(hello);
}

v1::UpdateEvent ScriptedEngine::Next() {
  v1::UpdateEvent event;
  if (!updates_->Read(&event)) event.Clear();
  return event;
}

void ScriptedEngine::Paused(uint64_t version) {
  v1::EngineMessage message;
  message.mutable_paused()->set_version(version);
  updates_->Write(message);
}

void ScriptedEngine::PausedOnStream(uint64_t version, const std::string& after, const std::string& uuid) {
  v1::EngineMessage message;
  v1::EnginePaused* paused = message.mutable_paused();
  paused->set_version(version);
  paused->mutable_after()->set_handle(after);
  paused->mutable_after()->set_device_uuid(uuid);
  updates_->Write(message);
}

grpc::Status ScriptedEngine::End() {
  v1::UpdateEvent event;
  while (updates_->Read(&event)) {
  }
  grpc::Status status = updates_->Finish();
  updates_.reset();
  return status;
}

grpc::Status ScriptedEngine::Detach() {
  grpc::ClientContext context;
  context.set_deadline(In(kPatience));
  v1::DetachRequest request;
  request.set_attachment_id(attached_.attachment_id());
  v1::DetachReply reply;
  return stub_->Detach(&context, request, &reply);
}

}  // namespace wsync
