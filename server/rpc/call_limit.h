// How many calls of one kind may be open at a time: each holds memory for what it was sent, and waits for a turn of a
// thread. A bound for clients that leak calls, far above what those need that do not. Thread-safe.
#ifndef WSYNC_SERVER_RPC_CALL_LIMIT_H_
#define WSYNC_SERVER_RPC_CALL_LIMIT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {

class CallLimit {
 private:
  struct State {
    State(std::string c, int64_t m) : call(std::move(c)), most(m) {}
    const std::string call;
    const int64_t most;
    std::atomic<int64_t> open = 0;
  };

 public:
  CallLimit(std::string call, int64_t most) : state_(std::make_shared<State>(std::move(call), most)) {}

  // One call's place, for as long as it lives, which may be longer than the limit does: a call is an object that others
  // hold.
  class Place {
   public:
    explicit Place(CallLimit* limit) : state_(limit->state_), number_(state_->open.fetch_add(1) + 1) {}
    ~Place() { state_->open.fetch_sub(1); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    // RESOURCE_EXHAUSTED: there was none left, and the call has to end.
    absl::Status status() const {
      if (number_ <= state_->most) return absl::OkStatus();
      return absl::ResourceExhaustedError(absl::StrCat(state_->most, " calls of ", state_->call,
                                                       " are open, and more are not taken: end some of them"));
    }

   private:
    const std::shared_ptr<State> state_;
    const int64_t number_;
  };

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CALL_LIMIT_H_
