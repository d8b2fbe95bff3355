// Who waits for which version: routes the coordinator's answers to the callers of Publish.
//
// Lives on the control thread, no locks. A second caller for a running version joins it and is told what it missed.
#ifndef WSYNC_SERVER_TRAINER_PUBLISH_TRACKER_H_
#define WSYNC_SERVER_TRAINER_PUBLISH_TRACKER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/status.h"
#include "server/trainer/publisher.h"

namespace wsync {

struct PublishProgress {
  SourceProgress source;
  int64_t staged_replicas = 0;
  int64_t applied_replicas = 0;
  int64_t replicas = 0;
};

// One caller. Calls come from the control thread and must not block.
class PublishWatcher {
 public:
  virtual ~PublishWatcher() = default;
  virtual void OnAccepted(const action::PublishAccepted& accepted) = 0;
  virtual void OnProgress(const PublishProgress& progress) = 0;
  virtual void OnReleased(const action::PublishReleased& released) = 0;
  virtual void OnDone(const action::PublishDone& done) = 0;  // last
  virtual bool HungUp() const = 0;
};

class PublishTracker {
 public:
  // True when the version is not running yet: the caller must give the coordinator a Publish event next. `order` is
  // that publish's, or null.
  bool Watch(uint64_t version, std::shared_ptr<PublishWatcher> watcher, std::shared_ptr<StreamOrder> order = nullptr);
  // Forgets who hung up. True when that leaves a version that is not released without anybody.
  bool Forsaken(uint64_t version);
  std::shared_ptr<StreamOrder> OrderOf(uint64_t version) const;  // null: none

  void Carry(const action::PublishAccepted& accepted);
  void Carry(const action::PublishReleased& released);
  void Carry(const action::PublishDone& done);

  // Tells every caller that no answer will come, and why.
  void Abandon(const absl::Status& why);

  bool Running() const { return !versions_.empty(); }
  bool Running(uint64_t version) const { return versions_.contains(version); }
  uint64_t Unreleased() const;  // the version that runs whose weights may still be read; 0: none
  // Tells progress at most ten times a second. Returns when it wants to be called again.
  absl::Time ReportProgress(absl::Time now, const std::function<PublishProgress(uint64_t version)>& progress);

 private:
  struct Version {
    std::vector<std::shared_ptr<PublishWatcher>> watchers;
    std::shared_ptr<StreamOrder> order;
    std::optional<action::PublishAccepted> accepted;
    std::optional<action::PublishReleased> released;
  };
  std::map<uint64_t, Version> versions_;
  absl::Time last_progress_ = absl::InfinitePast();
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_PUBLISH_TRACKER_H_
