#include "server/trainer/watch_stream.h"

#include <algorithm>

#include "server/rpc/convert.h"

namespace wsync {
namespace {

constexpr absl::Duration kMinInterval = absl::Milliseconds(50);  // faster than any screen, cheap for any coordinator
constexpr absl::Duration kMaxInterval = absl::Minutes(1);
constexpr absl::Duration kSlowReader = absl::Milliseconds(100);  // look again whether the last state was taken

}  // namespace

std::shared_ptr<WatchStream> WatchStream::Open(absl::Duration min_interval) {
  std::shared_ptr<WatchStream> stream(new WatchStream(std::clamp(min_interval, kMinInterval, kMaxInterval)));
  stream->self_ = stream;
  return stream;
}

WatchStream::WatchStream(absl::Duration min_interval)
    : min_interval_(min_interval),
      writer_({[this](const v1::JobStatus* status) { StartWrite(status); },
               [this](const grpc::Status& status) { Finish(status); },
               [this](const v1::JobStatus* status, const grpc::Status& why) {
                 StartWriteAndFinish(status, grpc::WriteOptions(), why);
               }}) {}

absl::Time WatchStream::Update(absl::Time now, uint64_t changes, const std::function<v1::JobStatus()>& status) {
  if (changes == last_changes_) return absl::InfiniteFuture();
  if (now < last_sent_ + min_interval_) return last_sent_ + min_interval_;
  if (!writer_.Idle()) return now + kSlowReader;
  writer_.Push(status(), 1);
  last_sent_ = now;
  last_changes_ = changes;
  return absl::InfiniteFuture();
}

void WatchStream::Close(const absl::Status& why) { writer_.Close(ToGrpc(why)); }

void WatchStream::OnCancel() { writer_.Break(grpc::Status(grpc::StatusCode::CANCELLED, "the caller is gone")); }

}  // namespace wsync
