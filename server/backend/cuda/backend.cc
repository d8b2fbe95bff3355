#include "server/backend/cuda/backend.h"

#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/load_cuda.h"
#include "kernels/quantize_cuda.h"
#include "server/backend/checks.h"
#include "server/backend/cuda/device.h"
#include "server/backend/cuda/loader.h"
#include "server/backend/cuda/memory.h"
#include "server/backend/cuda/nccl_environment.h"
#include "server/backend/cuda/nccl_library.h"
#include "server/backend/cuda/nccl_session.h"
#include "server/backend/cuda/quantizer.h"
#include "server/backend/cuda/stream.h"
#include "server/backend/cuda/transport.h"

namespace wsync::cuda {
namespace {

// Enough for NCCL to use every channel it has, as for a bucket.
constexpr int64_t kWarmUpBytes = int64_t{4} << 20;

// A launch that brings its code onto the device waits for all that runs there, and a transport's kernel may be waiting
// for a peer that waits for us.
absl::Status Preload(const Device& device) {
  absl::Status status = device.Check(PreloadEncodeKernels(), "PreloadEncodeKernels", "the encoder");
  if (status.ok()) status = device.Check(PreloadCheckKernels(), "PreloadCheckKernels", "the loader");
  if (status.ok()) status = device.Check(PreloadCopyKernels(), "PreloadCopyKernels", "the loader");
  return status;
}

}  // namespace

struct CudaBackend::Parts {
  std::shared_ptr<Device> device;
  const NcclLibrary* nccl = nullptr;
  int max_ctas = 0;
  std::shared_ptr<EventPool> events;
  std::unique_ptr<CudaMemory> memory;
  // Kept from the start: allocating and freeing wait for the whole device, which is busy when sessions change.
  std::unique_ptr<Buffer> warm_up;

  Mutex mu;
  absl::Status no_token ABSL_GUARDED_BY(mu);  // why the newest token is empty
};

CudaBackend::CudaBackend(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
CudaBackend::~CudaBackend() = default;

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(const CudaBackendOptions& options) {
  auto parts = std::make_unique<Parts>();
  absl::StatusOr<std::shared_ptr<Device>> device = Device::Open(options.device);
  if (!device.ok()) return device.status();
  parts->device = *std::move(device);
  absl::StatusOr<const NcclLibrary*> nccl = NcclLibrary::Load();
  if (!nccl.ok()) return nccl.status();
  parts->nccl = *nccl;
  parts->max_ctas = options.max_ctas;
  parts->events = std::make_shared<EventPool>(parts->device);
  absl::StatusOr<std::unique_ptr<CudaMemory>> memory = CudaMemory::Create(parts->device);
  if (!memory.ok()) return memory.status();
  parts->memory = *std::move(memory);
  if (absl::Status status = Preload(*parts->device); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Buffer>> warm_up = parts->memory->Allocate(kWarmUpBytes, "the first broadcast");
  if (!warm_up.ok()) return warm_up.status();
  parts->warm_up = *std::move(warm_up);
  return std::unique_ptr<CudaBackend>(new CudaBackend(std::move(parts)));
}

std::string CudaBackend::fingerprint() const {
  return NcclFingerprint(parts_->nccl->version(), parts_->max_ctas, environ);
}

std::string CudaBackend::device_id() const { return parts_->device->uuid(); }
absl::Status CudaBackend::health() const { return parts_->device->health(); }

std::string CudaBackend::Describe() const {
  return absl::StrCat(parts_->device->name(), ", NCCL ", parts_->nccl->VersionText(), " from ", parts_->nccl->path());
}

Memory& CudaBackend::memory() { return *parts_->memory; }

absl::StatusOr<std::unique_ptr<Quantizer>> CudaBackend::NewQuantizer(std::shared_ptr<const Plan> plan,
                                                                     std::vector<const std::byte*> tensors) {
  return NewCudaQuantizer(parts_->device, *parts_->memory, parts_->events, std::move(plan), std::move(tensors));
}

absl::StatusOr<std::unique_ptr<Loader>> CudaBackend::NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                               std::vector<std::byte*> handles) {
  return NewCudaLoader(parts_->device, *parts_->memory, parts_->events, std::move(plan), table, handles);
}

absl::StatusOr<std::unique_ptr<Transport>> CudaBackend::NewTransport(const SessionSpec& spec) {
  if (absl::Status status = CheckSession(spec); !status.ok()) {
    MutexLock lock(&parts_->mu);
    return spec.token.empty() && !parts_->no_token.ok() ? parts_->no_token : status;
  }
  if (spec.world == 1) return NewLoneTransport();
  const absl::StatusOr<ncclUniqueId> id = UniqueIdOf(spec.token);
  if (!id.ok()) return id.status();
  const NcclSessionSpec session_spec{.id = *id,
                                     .rank = spec.rank,
                                     .world = spec.world,
                                     .max_ctas = parts_->max_ctas,
                                     .wide = spec.wide,
                                     .warm_up = parts_->warm_up->data(),
                                     .warm_up_bytes = kWarmUpBytes};
  auto session = NcclSession::Create(parts_->device, parts_->nccl, parts_->events, session_spec);
  if (!session.ok()) return session.status();
  return NewNcclTransport(*std::move(session));
}

std::string CudaBackend::NewSessionToken() {
  ncclUniqueId id = {};
  absl::Status status = parts_->nccl->Check(parts_->nccl->GetUniqueId(&id), "ncclGetUniqueId");
  MutexLock lock(&parts_->mu);
  parts_->no_token =
      status.ok()
          ? status
          : absl::Status(status.code(), absl::StrCat("data plane: no session: ", std::string(status.message())));
  return status.ok() ? TokenOf(id) : "";
}

}  // namespace wsync::cuda
