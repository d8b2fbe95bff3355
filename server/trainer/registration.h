// What the training process registered: the plan that follows from it, and the memory it lends.
//
// Immutable once made, shared between the publisher (which reads the memory) and the registrar (which watches the
// owner). Dropping the last reference unmaps the memory. Thread-safe.
#ifndef WSYNC_SERVER_TRAINER_REGISTRATION_H_
#define WSYNC_SERVER_TRAINER_REGISTRATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/memory.h"
#include "server/core/events.h"
#include "server/core/plan.h"
#include "server/rpc/client_process.h"

namespace wsync {

inline constexpr size_t kMaxHandles = 65536;  // more than any allocator hands out; each costs a mapping

struct TensorPlace {
  uint32_t handle = 0;        // index into RegistrationRequest::handles
  uint64_t offset_bytes = 0;  // of the first element; rows are contiguous
};

struct RegistrationRequest {
  int64_t pid = 0;  // of the process that owns the memory
  bool replace = false;
  bool plan_only = false;  // the caller asks what the plan would be, and lends nothing
  std::vector<std::string> modules_to_not_convert;
  std::vector<MemoryHandle> handles;
  std::vector<Tensor> tensors;
  std::vector<TensorPlace> places;  // one per tensor
};

// What follows from the tensors alone, which are taken out of the request. INVALID_ARGUMENT as Catalog's and Plan's.
absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(RegistrationRequest& request, RecipeRules rules,
                                                   int64_t bucket_bytes);
PlanInfo InfoOf(const Plan& plan);

class Registration {
 public:
  // INVALID_ARGUMENT names the tensor (unknown handle, not aligned to its element size, outside its memory) or is the
  // catalog's, the plan's or the owner's; NOT_FOUND and PERMISSION_DENIED name the memory handle.
  static absl::StatusOr<std::shared_ptr<const Registration>> Create(RegistrationRequest request, RecipeRules rules,
                                                                    int64_t bucket_bytes, Memory& memory);

  const std::string& id() const { return id_; }
  const std::shared_ptr<const Plan>& plan() const { return plan_; }
  const std::vector<const std::byte*>& addresses() const { return addresses_; }  // first byte, by catalog index
  const ClientProcess& owner() const { return *owner_; }
  PlanInfo Info() const { return InfoOf(*plan_); }

 private:
  Registration() = default;
  // Opens the memory, and finds every tensor in it.
  absl::Status Locate(const Catalog& catalog, const RegistrationRequest& request, Memory& memory);
  std::string id_;
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<ClientProcess> owner_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<const std::byte*> addresses_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_REGISTRATION_H_
