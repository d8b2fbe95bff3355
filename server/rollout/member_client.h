// Membership: keeps one stream to the coordinator, for ever. Joins, beats, collects the catalog, notices silence, comes
// back with growing pauses.
//
// Everything runs on one SerialThread (the controller's), which calls Tick by NextDeadline; gRPC's callbacks only post
// to it.
#ifndef WSYNC_SERVER_ROLLOUT_MEMBER_CLIENT_H_
#define WSYNC_SERVER_ROLLOUT_MEMBER_CLIENT_H_

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/rollout/catalog_assembler.h"
#include "server/rollout/serial_thread.h"
#include "wsync/v1/coordinator.pb.h"

namespace grpc {
class ChannelCredentials;
class Status;
}  // namespace grpc

namespace wsync {

class MemberStream;

// Who is told; on the thread.
class MemberDelegate {
 public:
  virtual ~MemberDelegate() = default;
  virtual void Introduce(v1::Join* join) = 0;  // what changes from one join to the next: `serving`, `group`
  virtual v1::Heartbeat MakeHeartbeat() = 0;
  virtual void OnLinked() = 0;
  virtual void OnUnlinked(const std::string& reason) = 0;
  virtual void OnCatalog(absl::StatusOr<AnnouncedCatalog> catalog) = 0;
  virtual void OnRoundMessage(const v1::CoordinatorMessage& message) = 0;  // begin, commit, abort
};

struct MemberClientOptions {
  std::string address;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  v1::Join join;                                      // without what Introduce adds
  absl::Duration attempt_timeout = absl::Seconds(5);  // from dialling to the welcome
  absl::Duration reconnect_max = absl::Seconds(2);
};

class MemberClient {
 public:
  // `thread` runs everything below; `delegate` outlives what is posted there.
  MemberClient(MemberClientOptions options, std::shared_ptr<SerialThread> thread, MemberDelegate* delegate);
  ~MemberClient();

  void Start(absl::Time now);
  void Tick(absl::Time now);
  absl::Time NextDeadline() const;
  void Send(v1::MemberMessage message);  // dropped unless linked
  void Beat(absl::Time now);             // a heartbeat now instead of when it is due
  bool linked() const { return state_ == State::kLinked; }
  // Why there is no link, for people.
  const std::string& last_error() const { return last_error_; }

  // Says goodbye and calls `done` once the coordinator has closed the stream, or after `grace`. No reconnect.
  void Leave(const std::string& reason, absl::Duration grace, std::function<void()> done);

 private:
  enum class State { kWaiting, kOpening, kLinked, kLeaving, kStopped };

  void Open(absl::Time now);
  void Handle(uint64_t attempt, const v1::CoordinatorMessage& message);
  void Welcome(const v1::Welcome& welcome);
  void Refused(const v1::Refused& refused);
  // `headline`: of the line in the log; null: there is no link, or there was one.
  void Break(const std::string& reason, const char* headline = nullptr);
  void EndStream();
  void Finished(uint64_t attempt, const grpc::Status& status);
  void FinishLeaving();
  absl::Duration NextPause();

  const MemberClientOptions options_;
  const std::shared_ptr<SerialThread> thread_;
  MemberDelegate* const delegate_;
  std::mt19937 random_;

  State state_ = State::kStopped;
  std::unique_ptr<MemberStream> stream_;
  // Cancelled ones, by attempt, until gRPC is done with them.
  std::map<uint64_t, std::unique_ptr<MemberStream>> ending_;
  uint64_t attempt_ = 0;  // callbacks of an older one are ignored
  CatalogAssembler assembler_;
  int failures_ = 0;      // since the last welcome
  bool refused_ = false;  // retrying cannot help: retry slowly, in case somebody mends it
  std::string last_error_ = "not dialled yet";
  std::string logged_error_;
  // kWaiting: of the pause; kOpening, kLinked: of the coordinator's silence; kLeaving: of the goodbye.
  absl::Time deadline_;
  absl::Time next_beat_;
  absl::Duration heartbeat_;
  absl::Duration silence_timeout_;
  std::function<void()> left_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_MEMBER_CLIENT_H_
