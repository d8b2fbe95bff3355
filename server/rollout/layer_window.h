// In place without a place: what an engine with a layer window needs of the receive path.
//
// The tensors of no layer have their destinations from the attach on. Every layer's are asked for when its first byte
// is here and checked, opened, fitted to the plan with all the checks of an attach, written, and let go of before the
// engine hears that the layer is complete. A bucket is placed layer by layer, so that with a window of one no two
// layers' memory exists at once, although a bucket may hold several layers.
//
// Used from the receiver's thread.
#ifndef WSYNC_SERVER_ROLLOUT_LAYER_WINDOW_H_
#define WSYNC_SERVER_ROLLOUT_LAYER_WINDOW_H_

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/core/layer_schedule.h"
#include "server/core/layers.h"
#include "server/rollout/layer_loans.h"

namespace wsync {

struct LayerWanted {
  uint64_t ticket = 0;
  std::string layer;
  std::shared_ptr<const Plan> plan;
  std::vector<int64_t> outputs;  // of the plan
};

class LayerWindow {
 public:
  struct Options {
    int64_t window = 1;  // layers
    bool allow_partial = false;
    LayerMemory stays;  // that of the tensors of no layer
  };
  // How the engine hears of it. Both are called on the receiver's thread.
  struct Engine {
    LayerLoans* loans = nullptr;
    std::function<void(LayerWanted)> wanted;
    std::function<void(LayerReady)> ready;
  };

  // INVALID_ARGUMENT: LayerSchedule::CheckWindow. `backend` must outlive it.
  static absl::StatusOr<std::unique_ptr<LayerWindow>> Create(Backend& backend, std::shared_ptr<const Plan> plan,
                                                             Options options);

  // What destinations given at the attach may be for.
  static OutputScope StaysOf(const Plan& plan);

  void Begin(Engine engine);
  // Copies a checked bucket to its destinations and returns when it is there; `stays` is the loader of the tensors of
  // no layer. Waits for the engine. INVALID_ARGUMENT: memory that does not fit, as of an attach; errors of
  // LayerLoans::Borrow.
  absl::Status Place(int64_t bucket, const std::byte* wire, Loader& stays);
  // After the last bucket: OK once the engine has taken every layer, and the tensors of none.
  absl::Status AwaitAllTaken() { return engine_.loans->AwaitAllTaken(); }
  // Ends a version: lets go of what is still lent. Whether any byte was written to memory of a layer since Begin.
  bool End();

 private:
  struct Open {
    uint64_t ticket = 0;
    std::vector<std::unique_ptr<Buffer>> memory;
    std::unique_ptr<Loader> loader;  // after memory: it must not outlive what it writes to
  };

  LayerWindow(Backend& backend, std::shared_ptr<const Plan> plan, Options options)
      : backend_(backend), plan_(std::move(plan)), options_(std::move(options)), schedule_(*plan_) {}
  absl::Status OpenLayer(int64_t layer);
  absl::Status Fit(int64_t layer, const LayerLoans::Loan& loan, Open& open);
  absl::Status CheckApart(const LayerLoans::Loan& loan) const;
  absl::StatusOr<std::unique_ptr<Loader>> TakeLoader();
  absl::StatusOr<uint64_t> CloseLayer(int64_t layer);  // its ticket
  void TellReady(int64_t layer, uint64_t ticket);

  Backend& backend_;
  const std::shared_ptr<const Plan> plan_;
  const Options options_;
  const LayerSchedule schedule_;
  Engine engine_;
  std::vector<std::unique_ptr<Loader>> idle_;  // without a target
  std::map<int64_t, Open> open_;               // by layer
  int64_t ready_ = 0;
  bool wrote_ = false;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_LAYER_WINDOW_H_
