// The events that one client process has lent so far, each opened once: clients use a few again and again.
//
// Used from one thread. CloseAll when the client goes.
#ifndef WSYNC_SERVER_BACKEND_CLIENT_EVENTS_H_
#define WSYNC_SERVER_BACKEND_CLIENT_EVENTS_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/memory.h"

namespace wsync {

class ClientEvents {
 public:
  // One per version is in use; a client that lends ever new ones gets the oldest closed.
  static constexpr size_t kMax = 16;

  // Errors are Memory::OpenEvent's.
  absl::StatusOr<std::shared_ptr<StreamEvent>> Open(Memory& memory, const EventHandle& handle) {
    for (const auto& [name, event] : open_) {
      if (name == handle.handle) return event;
    }
    absl::StatusOr<std::unique_ptr<StreamEvent>> opened = memory.OpenEvent(handle);
    if (!opened.ok()) return opened.status();
    if (open_.size() == kMax) open_.erase(open_.begin());
    open_.emplace_back(handle.handle, *std::move(opened));
    return open_.back().second;
  }
  void CloseAll() { open_.clear(); }

 private:
  std::vector<std::pair<std::string, std::shared_ptr<StreamEvent>>> open_;  // the oldest first
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_CLIENT_EVENTS_H_
