#include "server/backend/host/backend.h"

#include <grpcpp/security/credentials.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/backend/checks.h"
#include "server/backend/host/data_plane_service.h"
#include "server/backend/host/loader.h"
#include "server/backend/host/memory.h"
#include "server/backend/host/quantizer.h"
#include "server/backend/host/random.h"
#include "server/backend/host/sink_transport.h"
#include "server/backend/host/source_transport.h"
#include "server/backend/host/worker_pool.h"

namespace wsync::host {

struct HostBackend::Parts {
  explicit Parts(HostBackendOptions options)
      : credentials(options.channel_credentials != nullptr ? options.channel_credentials
                                                           : grpc::InsecureChannelCredentials()),
        registry(std::make_shared<SessionRegistry>(options.unknown_session_patience)),
        service(registry, std::move(options.authorize)),
        pool(options.threads) {}

  HostMemory memory;
  const std::shared_ptr<grpc::ChannelCredentials> credentials;
  const std::shared_ptr<SessionRegistry> registry;
  DataPlaneService service;
  WorkerPool pool;
};

HostBackend::HostBackend(HostBackendOptions options) : parts_(std::make_unique<Parts>(std::move(options))) {}
HostBackend::~HostBackend() = default;

Memory& HostBackend::memory() { return parts_->memory; }

absl::StatusOr<std::unique_ptr<Quantizer>> HostBackend::NewQuantizer(std::shared_ptr<const Plan> plan,
                                                                     std::vector<const std::byte*> tensors) {
  return NewHostQuantizer(std::move(plan), std::move(tensors), &parts_->pool);
}

absl::StatusOr<std::unique_ptr<Loader>> HostBackend::NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                               std::vector<std::byte*> handles) {
  return NewHostLoader(std::move(plan), std::move(table), std::move(handles), &parts_->pool);
}

absl::StatusOr<std::unique_ptr<Transport>> HostBackend::NewTransport(const SessionSpec& spec) {
  if (absl::Status status = CheckSession(spec); !status.ok()) return status;
  if (spec.rank == 0) return NewSourceTransport(spec, parts_->registry, &parts_->pool);
  if (spec.root_address.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("data plane: rank ", spec.rank, " was not given rank 0's address"));
  }
  return NewSinkTransport(spec, parts_->credentials);
}

std::string HostBackend::NewSessionToken() { return RandomHex128(); }
std::string HostBackend::NewRankToken(const std::string& /*session*/) { return RandomHex128(); }

grpc::Service* HostBackend::data_plane_service() { return &parts_->service; }

}  // namespace wsync::host
