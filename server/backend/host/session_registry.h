// Which sessions this process is the source of, and the sinks that came before their session did.
//
// A sink learns a session's token when the source does and may be faster: its call is parked for a bounded time, and no
// more than a bounded number of calls are. Thread-safe; never blocks.
#ifndef WSYNC_SERVER_BACKEND_HOST_SESSION_REGISTRY_H_
#define WSYNC_SERVER_BACKEND_HOST_SESSION_REGISTRY_H_

#include <grpcpp/alarm.h>

#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/host/sink_stream.h"
#include "server/backend/host/source_session.h"
#include "server/core/sync.h"

namespace wsync::host {

// A few sessions' worth of sinks. Beyond it the call that waited longest goes: a session's own sinks wait for moments.
inline constexpr size_t kMaxParkedCalls = 256;

class SessionRegistry : public std::enable_shared_from_this<SessionRegistry> {
 public:
  explicit SessionRegistry(absl::Duration patience) : patience_(patience) {}

  // From now on sinks with one of these tokens go to `session`, parked ones at once. Each opens one rank's stream, or
  // (rank 0) that of any. ALREADY_EXISTS: one of them is in use.
  struct Key {
    std::string token;
    int32_t rank = 0;
  };
  absl::Status Register(std::vector<Key> keys, std::shared_ptr<SourceSession> session);
  void Unregister(const std::shared_ptr<SourceSession>& session);
  // Hands a sink's stream to its session, now or when that is registered; ends it with the reason where that fails.
  void Admit(const std::string& token, int32_t rank, std::shared_ptr<SinkStream> stream);

 private:
  struct Entry {
    std::vector<Key> keys;
    std::shared_ptr<SourceSession> session;
  };
  struct Found {
    std::shared_ptr<SourceSession> session;  // null: none has this token
    int32_t rank = 0;                        // that it opens; 0: any
    absl::Status Admit(int32_t asked, const std::shared_ptr<SinkStream>& stream) const;
  };
  struct Parked {
    std::string token;
    int32_t rank = 0;
    std::shared_ptr<SinkStream> stream;
    std::shared_ptr<grpc::Alarm> alarm;  // ends the wait; the last reference cancels it
  };

  Found Find(const std::string& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Park(const std::string& token, int32_t rank, std::shared_ptr<SinkStream> stream);
  void SetAlarm(const std::shared_ptr<grpc::Alarm>& alarm, const std::shared_ptr<SinkStream>& stream);
  void Expire(const std::shared_ptr<SinkStream>& stream);

  const absl::Duration patience_;
  Mutex mu_;
  std::vector<Entry> sessions_ ABSL_GUARDED_BY(mu_);
  std::list<Parked> parked_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SESSION_REGISTRY_H_
