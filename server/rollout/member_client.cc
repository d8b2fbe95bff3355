#include "server/rollout/member_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/rollout/member_stream.h"
#include "server/rpc/convert.h"
#include "server/rpc/log.h"
#include "server/rpc/server.h"

namespace wsync {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(50);
// Somebody must change a config file before a refused join can succeed; that takes minutes, not milliseconds.
constexpr absl::Duration kRefusedPause = absl::Seconds(30);

// While a version is on its way heartbeats are this many times as often: when this process dies, what the coordinator
// knows of its bucket is a fraction of a second old.
constexpr int kBusyBeats = 4;

// A coordinator that asks for nonsense must neither be flooded nor waited for for ever.
absl::Duration Bounded(int64_t ms, int64_t low, int64_t high) { return absl::Milliseconds(std::clamp(ms, low, high)); }

}  // namespace

MemberClient::MemberClient(MemberClientOptions options, std::shared_ptr<SerialThread> thread, MemberDelegate* delegate)
    : options_(std::move(options)), thread_(std::move(thread)), delegate_(delegate), random_(std::random_device{}()) {}

MemberClient::~MemberClient() = default;

void MemberClient::Start(absl::Time now) { Open(now); }

absl::Time MemberClient::NextDeadline() const {
  if (state_ == State::kStopped) return absl::InfiniteFuture();
  return state_ == State::kLinked ? std::min(deadline_, next_beat_) : deadline_;
}

void MemberClient::Tick(absl::Time now) {
  if (now >= next_beat_) Beat(now);
  if (now < deadline_) return;
  switch (state_) {
    case State::kWaiting:
      return Open(now);
    case State::kOpening:
      return Break(absl::StrCat("no welcome within ", absl::FormatDuration(options_.attempt_timeout)));
    case State::kLinked:
      return Break(absl::StrCat("it was silent for ", absl::FormatDuration(silence_timeout_)));
    case State::kLeaving:
      return FinishLeaving();
    case State::kStopped:
      return;
  }
}

void MemberClient::Beat(absl::Time now) {
  if (state_ != State::kLinked) return;
  v1::MemberMessage message;
  *message.mutable_heartbeat() = delegate_->MakeHeartbeat();
  const bool busy = message.heartbeat().epoch() != 0;
  next_beat_ = now + (busy ? heartbeat_ / kBusyBeats : heartbeat_);
  Send(std::move(message));
}

void MemberClient::Send(v1::MemberMessage message) {
  if (state_ == State::kLinked) stream_->Send(std::move(message));
}

void MemberClient::Open(absl::Time now) {
  const uint64_t attempt = ++attempt_;
  state_ = State::kOpening;
  deadline_ = now + options_.attempt_timeout;
  assembler_ = CatalogAssembler();
  const std::shared_ptr<SerialThread> thread = thread_;
  MemberStream::Handlers handlers;
  handlers.on_message = [this, thread, attempt](v1::CoordinatorMessage message) {
    auto shared = std::make_shared<v1::CoordinatorMessage>(std::move(message));
    thread->Post([this, attempt, shared] { Handle(attempt, *shared); });
  };
  handlers.on_end = [this, thread, attempt] {
    thread->Post([this, attempt] {
      if (attempt == attempt_ && stream_ != nullptr) stream_->Release();
    });
  };
  handlers.on_done = [this, thread, attempt](const grpc::Status& status) {
    thread->Post([this, attempt, status] { Finished(attempt, status); });
  };
  // A new channel each time: an old one would sit out its own back-off, which knows nothing of reconnect_max.
  (void)WSYNC_FAILPOINT("rollout.join");
  stream_ = std::make_unique<MemberStream>(NewChannel(options_.address, options_.credentials), std::move(handlers));
  v1::MemberMessage message;
  *message.mutable_join() = options_.join;
  delegate_->Introduce(message.mutable_join());
  stream_->Send(std::move(message));
}

void MemberClient::Handle(uint64_t attempt, const v1::CoordinatorMessage& message) {
  if (attempt != attempt_ || (state_ != State::kOpening && state_ != State::kLinked)) return;
  if (message.has_refused()) return Refused(message.refused());
  if (message.has_welcome()) return Welcome(message.welcome());
  if (state_ != State::kLinked) return Break("it did not begin with a welcome");
  deadline_ = MonotonicNow() + silence_timeout_;
  if (message.has_catalog()) {
    absl::StatusOr<std::optional<AnnouncedCatalog>> catalog = assembler_.Add(message.catalog());
    if (!catalog.ok()) {
      delegate_->OnCatalog(catalog.status());
    } else if (catalog->has_value()) {
      delegate_->OnCatalog(**std::move(catalog));
    }
  } else if (!message.has_heartbeat_ack()) {
    delegate_->OnRoundMessage(message);
  }
}

void MemberClient::Welcome(const v1::Welcome& welcome) {
  if (state_ == State::kLinked) return;
  state_ = State::kLinked;
  failures_ = 0;
  refused_ = false;
  last_error_.clear();
  logged_error_.clear();
  heartbeat_ = Bounded(welcome.heartbeat_ms(), 20, 60'000);
  silence_timeout_ = Bounded(welcome.heartbeat_timeout_ms(), 60, 600'000);
  const absl::Time now = MonotonicNow();
  deadline_ = now + silence_timeout_;
  next_beat_ = now + heartbeat_;
  LogInfo("joined the coordinator", {{"coordinator", options_.address},
                                     {"member", options_.join.name()},
                                     {"committed", absl::StrCat(welcome.committed().version())}});
  delegate_->OnLinked();
}

void MemberClient::Refused(const v1::Refused& refused) {
  refused_ = !refused.retry();
  Break(absl::StrCat("it refuses this agent: ", refused.error()),
        refused_ ? "the coordinator refuses this agent; trying again every 30 s"
                 : "the coordinator refuses this agent; trying again");
}

void MemberClient::Finished(uint64_t attempt, const grpc::Status& status) {
  if (attempt == attempt_ && state_ == State::kLeaving) {
    FinishLeaving();
  } else if (attempt == attempt_) {
    Break(status.ok() ? "it closed the stream" : status.error_message());
  }
  ending_.erase(attempt);
}

// The only way from a stream to the next pause.
void MemberClient::Break(const std::string& reason, const char* headline) {
  const bool was_linked = state_ == State::kLinked;
  EndStream();
  state_ = State::kWaiting;
  deadline_ = MonotonicNow() + NextPause();
  last_error_ = reason;
  if (logged_error_ != reason) {  // once per reason, however long it lasts
    logged_error_ = reason;
    const LogFields fields = {{"coordinator", options_.address}, {"reason", reason}};
    if (headline == nullptr) {
      headline = was_linked ? "lost the coordinator" : "cannot reach the coordinator; trying again";
    }
    refused_ ? LogError(headline, fields) : LogWarn(headline, fields);
  }
  if (was_linked) delegate_->OnUnlinked(reason);
}

// Its callbacks are ignored from now on; the object goes when gRPC has let go of it.
void MemberClient::EndStream() {
  const uint64_t attempt = attempt_++;
  if (stream_ == nullptr) return;
  stream_->Cancel();
  ending_[attempt] = std::move(stream_);
}

absl::Duration MemberClient::NextPause() {
  if (refused_) return kRefusedPause;
  const absl::Duration grown = kFirstPause * (int64_t{1} << std::min(failures_++, 20));
  // Jitter, so that a hundred sinks do not come back to a restarted coordinator in step.
  return std::min(grown, options_.reconnect_max) * std::uniform_real_distribution<double>(0.5, 1.0)(random_);
}

void MemberClient::Leave(const std::string& reason, absl::Duration grace, std::function<void()> done) {
  left_ = std::move(done);
  if (state_ != State::kLinked) return FinishLeaving();
  v1::MemberMessage message;
  message.mutable_leave()->set_reason(reason);
  stream_->Send(std::move(message));
  stream_->Close();
  state_ = State::kLeaving;
  deadline_ = MonotonicNow() + grace;
}

void MemberClient::FinishLeaving() {
  if (state_ == State::kLeaving) LogInfo("left the coordinator", {{"coordinator", options_.address}});
  state_ = State::kStopped;
  EndStream();
  if (const auto done = std::exchange(left_, nullptr)) done();
}

}  // namespace wsync
