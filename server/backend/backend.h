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
  // What all ranks of a session must have in common beside the backend: the data plane's library and its settings, as
  // text that people can compare. Empty: nothing.
  virtual std::string fingerprint() const { return ""; }
  // The device this agent is bound to (GPU UUID), which no other rank may have. Empty: any number of ranks may share
  // it.
  virtual std::string device_id() const { return ""; }
  virtual Memory& memory() = 0;
  // `tensors[i]` is the first byte of catalog tensor i (device memory, contiguous).
  virtual absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan> plan,
                                                                  std::vector<const std::byte*> tensors) = 0;
  // `handles[i]` is the base of the memory that ScatterCopy::handle i names. An empty table: check only.
  virtual absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                            std::vector<std::byte*> handles) = 0;
  virtual absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec& spec) = 0;
  virtual std::string NewSessionToken() = 0;  // unguessable; source only
  // The service rank 0 must expose for its peers, or null where the data plane needs none.
  virtual grpc::Service* data_plane_service() { return nullptr; }
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_BACKEND_H_
