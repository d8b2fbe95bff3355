#include "server/backend/host/sink_session.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>
#include <pthread.h>

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/backend/host/grpc_status.h"
#include "server/core/failpoint.h"
#include "wsync/v1/data_plane.pb.h"

namespace wsync::host {
namespace {

constexpr char kMethod[] = "/wsync.v1.DataPlane/Receive";

// Tags of the stream's operations, of which one runs at a time, and of the wake-up alarm.
char operation_tag, wake_tag;

// A few chunks in flight, so that the source never waits for an answer; and no more: gRPC's own probe of the network's
// capacity would let the window grow, and memory of the agent with it, far beyond what the estimate allows.
constexpr int kWindowBytes = 4 << 20;
constexpr int kMaxFrameBytes = (1 << 24) - 1;  // HTTP/2's limit: a chunk is one frame
constexpr int kReadBytes = 1 << 20;            // one read takes a chunk off the socket
// A backstop against half-open connections. That the source is gone the coordinator's heartbeats say, within 3 s; a
// ping queues behind megabytes of payload, and its answer for a processor.
constexpr int kKeepaliveMs = 2000;
constexpr int kKeepaliveTimeoutMs = 5000;

// A channel of its own for every session: own connection, own credentials, closed with the session.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxChunkMessageBytes));
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kMaxFrameBytes);
  arguments.SetInt("grpc.experimental.tcp_read_chunk_size", kReadBytes);
  arguments.SetInt("grpc.experimental.tcp_min_read_chunk_size", kReadBytes);
  arguments.SetInt("grpc.experimental.tcp_max_read_chunk_size", kReadBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

grpc::ByteBuffer EncodeRequest(const SessionSpec& spec) {
  v1::ReceiveRequest request;
  request.set_session_token(spec.token);
  request.set_rank(spec.rank);
  const grpc::Slice slice(request.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

SinkSession::SinkSession(const SessionSpec& spec, std::shared_ptr<grpc::ChannelCredentials> credentials)
    : spec_(spec), credentials_(std::move(credentials)) {}

absl::Status SinkSession::Connect(absl::Time deadline) {
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return why_;
    if (state_ != State::kNew) return absl::FailedPreconditionError("data plane: connected already");
    state_ = State::kConnecting;
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "wsync-receive");
  {
    MutexLock lock(&mu_);
    bool in_time = true;
    while (state_ == State::kConnecting && in_time) in_time = changed_.WaitUntil(&mu_, deadline);
    if (state_ == State::kConnected) return absl::OkStatus();
    if (state_ == State::kOver) return why_;
  }
  const absl::Status late = absl::DeadlineExceededError(
      absl::StrCat("data plane: rank ", spec_.rank, " could not open its stream from rank 0 at ", spec_.root_address,
                   " before the deadline; is the source running, and can this host reach it?"));
  Cancel(late);
  return late;
}

CompletionPtr SinkSession::Broadcast(std::byte* data, int64_t bytes, const CompletionPtr& after) {
  auto receive = std::make_shared<Receive>();
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return HostCompletion::Finished(why_);
    if (state_ != State::kConnected) {
      return HostCompletion::Finished(absl::FailedPreconditionError("broadcast: connect first"));
    }
    receive->target = {.sequence = next_sequence_++, .data = data, .bytes = bytes};
    receives_.push_back(receive);
  }
  RunAfter(after, [self = shared_from_this(), receive](const absl::Status& result) { self->Ready(receive, result); });
  return receive->completion;
}

void SinkSession::Ready(const ReceivePtr& receive, const absl::Status& after) {
  if (!after.ok()) return Cancel(after);  // what comes next on the stream belongs to this broadcast
  WakeUp(receive.get());
}

// The thread may be waiting for a chunk or for a broadcast. Only in the latter case nothing else will wake it, except
// that an empty broadcast has no chunk to come: then it is finished here.
void SinkSession::WakeUp(Receive* ready) {
  std::vector<ReceivePtr> finished;
  bool ring = false;
  {
    MutexLock lock(&mu_);
    if (ready != nullptr) ready->ready = true;
    if (why_.ok()) finished = TakeFinished();
    ring = wake_ == Wake::kParked;
    if (ring) wake_ = Wake::kComing;
  }
  for (const ReceivePtr& receive : finished) receive->completion->Finish(absl::OkStatus());
  if (ring) alarm_.Set(&queue_, std::chrono::system_clock::now(), &wake_tag);
}

std::vector<SinkSession::ReceivePtr> SinkSession::TakeFinished() {
  std::vector<ReceivePtr> finished;
  while (!receives_.empty() && receives_.front()->ready &&
         receives_.front()->target.received == receives_.front()->target.bytes) {
    finished.push_back(std::move(receives_.front()));
    receives_.pop_front();
  }
  return finished;
}

void SinkSession::Cancel(const absl::Status& why) {
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return;
    why_ = why;
    changed_.SignalAll();
    if (state_ == State::kNew) return;
  }
  context_.TryCancel();
  WakeUp(nullptr);
}

void SinkSession::Join() {
  if (thread_.joinable()) thread_.join();
}

void SinkSession::Run() {
  if (Open()) {
    while (ReceiveChunk()) {
    }
  }
  Close();
}

// Waits for an operation of the stream; a wake-up that comes meanwhile is only noted.
bool SinkSession::Await(void* tag) {
  void* got = nullptr;
  bool ok = false;
  while (queue_.Next(&got, &ok)) {
    if (got == &wake_tag) {
      MutexLock lock(&mu_);
      wake_ = Wake::kAwake;
    }
    if (got == tag) return ok;
  }
  return false;
}

bool SinkSession::Open() {
  stub_ = std::make_unique<grpc::GenericStub>(NewChannel(spec_.root_address, credentials_));
  context_.set_wait_for_ready(true);  // the source may come up later than its sinks; Connect's deadline ends the wait
  stream_ = stub_->PrepareCall(&context_, kMethod, &queue_);
  stream_->StartCall(&operation_tag);
  if (!Await(&operation_tag)) return false;
  stream_->WriteLast(EncodeRequest(spec_), grpc::WriteOptions(), &operation_tag);
  if (!Await(&operation_tag)) return false;
  stream_->ReadInitialMetadata(&operation_tag);
  if (!Await(&operation_tag)) return false;
  if (context_.GetServerInitialMetadata().count(kAdmittedKey) == 0) return false;
  MutexLock lock(&mu_);
  if (!why_.ok()) return false;
  state_ = State::kConnected;
  changed_.SignalAll();
  return true;
}

bool SinkSession::ReceiveChunk() {
  stream_->Read(&chunk_, &operation_tag);
  if (!Await(&operation_tag)) return false;
  const ReceivePtr receive = AwaitReceive();
  if (receive == nullptr) return false;
  const int64_t before = receive->target.received;
  ChunkTarget target = receive->target;
  const absl::Status status = DecodeChunk(&chunk_, &target);
  if (!status.ok()) {
    Cancel(
        absl::DataLossError(absl::StrCat("data plane: rank 0 at ", spec_.root_address, " sent a ", status.message())));
    return false;
  }
  WSYNC_CORRUPTION_POINT("rollout.chunk", target.data + before, target.received - before);
  moved_bytes_.fetch_add(target.received - before, std::memory_order_relaxed);
  std::vector<ReceivePtr> finished;
  {
    MutexLock lock(&mu_);
    receive->target.received = target.received;
    if (why_.ok()) finished = TakeFinished();
  }
  for (const ReceivePtr& done : finished) done->completion->Finish(absl::OkStatus());
  return true;
}

// The broadcast that the chunk at hand belongs to, once it may be received; null when the session is over.
SinkSession::ReceivePtr SinkSession::AwaitReceive() {
  while (true) {
    {
      MutexLock lock(&mu_);
      if (!why_.ok()) return nullptr;
      if (!receives_.empty() && receives_.front()->ready) return receives_.front();
      wake_ = Wake::kParked;
    }
    Await(&wake_tag);
  }
}

void SinkSession::Close() {
  absl::Status end = absl::UnavailableError("no stream");
  if (stream_ != nullptr) {
    grpc::Status status;
    stream_->Finish(&status, &operation_tag);
    Await(&operation_tag);
    end = FromGrpc(status);
  }
  const absl::Status why = SetOver(end);
  std::deque<ReceivePtr> failed;
  {
    MutexLock lock(&mu_);
    failed.swap(receives_);
  }
  for (const ReceivePtr& receive : failed) receive->completion->Finish(why);
  // Only a parked thread is rung, and it takes the event before it goes on: no alarm is under way here.
  queue_.Shutdown();
  void* got = nullptr;
  bool ok = false;
  while (queue_.Next(&got, &ok)) {
  }
}

// The reason everything fails with from now on: Cancel's, or how the source ended the stream.
absl::Status SinkSession::SetOver(const absl::Status& end) {
  MutexLock lock(&mu_);
  if (why_.ok()) {
    why_ =
        end.ok()
            ? absl::UnavailableError(absl::StrCat("data plane: rank 0 at ", spec_.root_address, " ended the session"))
            : absl::Status(end.code(), absl::StrCat("data plane: the stream from rank 0 at ", spec_.root_address,
                                                    " broke: ", end.message()));
  }
  state_ = State::kOver;
  changed_.SignalAll();
  return why_;
}

}  // namespace wsync::host
