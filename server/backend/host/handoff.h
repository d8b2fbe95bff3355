// Orders what one thread did before it gave an object to gRPC before what another does when gRPC gives it back.
//
// gRPC orders the two as well, but ThreadSanitizer does not see how: Debian builds it without.
#ifndef WSYNC_SERVER_BACKEND_HOST_HANDOFF_H_
#define WSYNC_SERVER_BACKEND_HOST_HANDOFF_H_

#include <atomic>

namespace wsync::host {

class Handoff {
 public:
  void Give() { given_.store(true, std::memory_order_release); }
  void Take() const { (void)given_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> given_ = false;
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_HANDOFF_H_
