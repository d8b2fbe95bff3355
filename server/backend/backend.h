// One backend: the factory of a device's Memory, Quantizer, Loader and Transport. Chosen once, in main.
#ifndef WSYNC_SERVER_BACKEND_BACKEND_H_
#define WSYNC_SERVER_BACKEND_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/loader.h"
#include "server/backend/memory.h"
#include "server/backend/quantizer.h"
#include "server/backend/transport.h"

namespace grpc {
class Service;
}

namespace wsync {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;  // "host", "cuda"
  // What must be the same on every rank of a session, or the data plane would hang or corrupt instead of failing:
  // library version and settings, in a form that people can compare. Compared when a member joins. Empty: nothing.
  virtual std::string fingerprint() const { return ""; }
  // Which device this is, where no two ranks may share one: the UUID of the GPU. Empty: any number may.
  virtual std::string device_id() const { return ""; }
  // Not OK: something broke that nothing but a restart of the agent mends (a lost GPU context, a communicator that
  // could not be ended). Any thread.
  virtual absl::Status health() const { return absl::OkStatus(); }
  virtual Memory& memory() = 0;
  // `tensors[i]` is the first byte of catalog tensor i (device memory, contiguous).
  virtual absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan> plan,
                                                                  std::vector<const std::byte*> tensors) = 0;
  // `handles[i]` is the base of the memory that ScatterCopy::handle i names. An empty table: check only.
  virtual absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                            std::vector<std::byte*> handles) = 0;
  virtual absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec& spec) = 0;
  // Unguessable; source only. A token may hold a listener until every rank came: make one only for a session that is
  // about to be opened. Empty: none can be had, and NewTransport with it says why.
  virtual std::string NewSessionToken() = 0;
  // What one sink proves with that it is its rank of that session, made for each; where the data plane cannot tell
  // ranks apart, the session's own token. Source only.
  virtual std::string NewRankToken(const std::string& session) { return session; }
  // The service rank 0 must expose for its peers, or null where the data plane needs none.
  virtual grpc::Service* data_plane_service() { return nullptr; }
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_BACKEND_H_
