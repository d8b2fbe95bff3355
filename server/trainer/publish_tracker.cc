#include "server/trainer/publish_tracker.h"

#include <utility>

namespace wsync {
namespace {

// Smooth for a progress bar, nothing for the wire.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);

}  // namespace

bool PublishTracker::Watch(uint64_t version, std::shared_ptr<PublishWatcher> watcher,
                           std::shared_ptr<StreamOrder> order) {
  const auto [it, is_new] = versions_.try_emplace(version);
  Version& running = it->second;
  if (is_new) running.order = std::move(order);
  if (running.accepted.has_value()) watcher->OnAccepted(*running.accepted);
  if (running.released.has_value()) watcher->OnReleased(*running.released);
  running.watchers.push_back(std::move(watcher));
  return is_new;
}

bool PublishTracker::Forsaken(uint64_t version) {
  const auto it = versions_.find(version);
  if (it == versions_.end()) return false;
  std::erase_if(it->second.watchers, [](const auto& watcher) { return watcher->HungUp(); });
  return it->second.watchers.empty() && !it->second.released.has_value();
}

std::shared_ptr<StreamOrder> PublishTracker::OrderOf(uint64_t version) const {
  const auto it = versions_.find(version);
  return it == versions_.end() ? nullptr : it->second.order;
}

void PublishTracker::Carry(const action::PublishAccepted& accepted) {
  const auto it = versions_.find(accepted.version);
  if (it == versions_.end()) return;
  // A restart is accepted anew by the coordinator, but is the same publish to the caller.
  const bool first = !it->second.accepted.has_value();
  it->second.accepted = accepted;
  if (!first) return;
  for (const auto& watcher : it->second.watchers) watcher->OnAccepted(accepted);
}

void PublishTracker::Carry(const action::PublishReleased& released) {
  const auto it = versions_.find(released.version);
  if (it == versions_.end()) return;
  it->second.released = released;
  for (const auto& watcher : it->second.watchers) watcher->OnReleased(released);
}

void PublishTracker::Carry(const action::PublishDone& done) {
  const auto node = versions_.extract(done.version);
  if (node.empty()) return;
  for (const auto& watcher : node.mapped().watchers) watcher->OnDone(done);
}

void PublishTracker::Abandon(const absl::Status& why) {
  while (!versions_.empty()) Carry(action::PublishDone{versions_.begin()->first, why, {}});
}

uint64_t PublishTracker::Unreleased() const {
  for (const auto& [number, version] : versions_) {
    if (!version.released.has_value()) return number;
  }
  return 0;
}

absl::Time PublishTracker::ReportProgress(absl::Time now,
                                          const std::function<PublishProgress(uint64_t version)>& progress) {
  if (versions_.empty()) return absl::InfiniteFuture();
  if (now < last_progress_ + kProgressInterval) return last_progress_ + kProgressInterval;
  last_progress_ = now;
  for (const auto& [number, version] : versions_) {
    if (!version.accepted.has_value() || version.watchers.empty()) continue;
    PublishProgress current = progress(number);
    current.replicas = version.accepted->replicas;
    for (const auto& watcher : version.watchers) watcher->OnProgress(current);
  }
  return now + kProgressInterval;
}

}  // namespace wsync
