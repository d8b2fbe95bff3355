// Memory of single layers that an engine lends while a version lands: asked for, given, complete, taken back.
//
// The receiver's thread asks and waits; what the engine says comes from the controller's thread. A layer is known by a
// ticket that is never used again, so what an engine says late, of an attempt that is over, changes nothing.
#ifndef WSYNC_SERVER_ROLLOUT_LAYER_LOANS_H_
#define WSYNC_SERVER_ROLLOUT_LAYER_LOANS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/memory.h"
#include "server/core/destinations.h"
#include "server/core/sync.h"

namespace wsync {

// What an engine lends for one layer, as it came: nothing in it is believed yet.
struct LayerMemory {
  std::vector<MemoryHandle> handles;
  std::vector<Destination> destinations;
};

// What an engine says of a layer that it was asked for.
struct LayerProvided {
  LayerMemory memory;
};
struct LayerTaken {};
struct LayerRefused {
  std::string reason;
};
struct LayerAnswer {
  uint64_t ticket = 0;
  std::variant<LayerProvided, LayerTaken, LayerRefused> says;
};

class LayerLoans {
 public:
  struct Terms {
    std::string engine;    // for errors
    int64_t window = 1;    // layers that are lent and not taken back at once
    absl::Duration limit;  // of each wait for the engine
  };
  struct Loan {
    uint64_t ticket = 0;
    std::shared_ptr<const LayerMemory> memory;
    std::vector<std::shared_ptr<const LayerMemory>> beside;  // lent as well, and not taken back yet
  };

  // The receiver's thread. All tickets so far are void, and so is a Cancel.
  void Begin(Terms terms);
  // Waits until there is room in the window, calls `ask` with a ticket, and waits for the memory. DEADLINE_EXCEEDED
  // names the engine, the layer and what was waited for; FAILED_PRECONDITION is the engine's refusal.
  absl::StatusOr<Loan> Borrow(const std::string& layer, const std::function<void(uint64_t)>& ask);
  // Nothing of ours refers to the layer's memory any more; before the engine hears of it.
  void Complete(uint64_t ticket);
  // The tensors of no layer are complete. The ticket by which the engine takes them; no room in the window is needed.
  uint64_t CompleteStays();
  // Waits until every layer that was lent is taken back; errors as Borrow.
  absl::Status AwaitAllTaken();

  // Any thread.
  void Answer(LayerAnswer answer);
  void Cancel(const absl::Status& why);  // ends the waits, also later ones, until Begin

 private:
  struct Lent {
    std::string layer;                          // "": of no layer, and in no window
    std::shared_ptr<const LayerMemory> memory;  // null: not given yet
    bool complete = false;
  };
  absl::Status Late(const std::string& what) const;
  std::string Oldest() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Terms terms_;  // the receiver's thread
  Mutex mu_;
  CondVar changed_;
  uint64_t last_ticket_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<uint64_t, Lent> lent_ ABSL_GUARDED_BY(mu_);  // asked for, and not taken back
  absl::Status failed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_LAYER_LOANS_H_
