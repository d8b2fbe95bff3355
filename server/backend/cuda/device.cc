#include "server/backend/cuda/device.h"

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace wsync::cuda {
namespace {

std::string UuidText(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof(uuid.bytes)));
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-", hex.substr(16, 4),
                      "-", hex.substr(20));
}

std::string ErrorText(cudaError_t error) {
  return absl::StrCat(cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

// After these, every call on the context fails until the process ends.
bool LosesContext(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorMpsClientTerminated:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsServerNotReady:
    case cudaErrorContextIsDestroyed:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
      return true;
    default:
      return false;
  }
}

absl::Status Unusable(std::string_view what, cudaError_t error) {
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) {
    return absl::ResourceExhaustedError(absl::StrCat("cuda backend: ", std::string(what), ": ", ErrorText(error),
                                                     "; a CUDA context takes some 0.5 GB of its memory: free some"));
  }
  if (error == cudaErrorDevicesUnavailable) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuda backend: ", std::string(what), ": ", ErrorText(error),
        "; is another process on it, in an exclusive compute mode (nvidia-smi -q -d COMPUTE)? Use MPS then"));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "cuda backend: ", std::string(what), ": ", ErrorText(error),
      "; is the NVIDIA driver loaded and the GPU visible (nvidia-smi, CUDA_VISIBLE_DEVICES)? Without a GPU, run with "
      "transfer.backend: host"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<Device>> Device::Open(int ordinal) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return Unusable("no GPU", error);
  if (ordinal < 0 || ordinal >= count) {
    return absl::FailedPreconditionError(absl::StrCat("cuda backend: there is no GPU ", ordinal, "; this process sees ",
                                                      count, " (numbered from 0, as CUDA_VISIBLE_DEVICES lists them)"));
  }
  const std::string number = absl::StrCat("GPU ", ordinal);
  cudaDeviceProp properties = {};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess) {
    return Unusable(number, error);
  }
  std::shared_ptr<Device> device(new Device);
  device->ordinal_ = ordinal;
  device->uuid_ = UuidText(properties.uuid);
  device->total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  device->name_ = absl::StrCat(number, " (", properties.name, ", ", device->uuid_, ")");
  // The first call that needs the context makes it: a GPU in exclusive mode, or without memory, shows now.
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaFree(nullptr);
  if (error != cudaSuccess) return Unusable(device->name_, error);
  return device;
}

absl::Status Device::MakeCurrent() const { return Check(cudaSetDevice(ordinal_), "cudaSetDevice", "this thread"); }

absl::Status Device::Check(cudaError_t error, const char* call, std::string_view object) const {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string text = absl::StrCat(call, " for ", std::string(object), " on ", name_, ": ", ErrorText(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (error == cudaErrorNoKernelImageForDevice) {
    return absl::FailedPreconditionError(
        absl::StrCat(text,
                     "; build wsync for this GPU (cmake -DCMAKE_CUDA_ARCHITECTURES=native); it must have FP8, compute "
                     "capability 8.9 or higher"));
  }
  if (!LosesContext(error)) return absl::InternalError(text);
  const absl::Status lost = absl::InternalError(absl::StrCat(text, "; the context is lost: restart the agent"));
  Break(lost);
  return lost;
}

void Device::Break(const absl::Status& why) const {
  MutexLock lock(&mu_);
  health_.Update(why);
}

absl::Status Device::health() const {
  MutexLock lock(&mu_);
  return health_;
}

std::string NormalUuid(std::string_view text) {
  std::string uuid = absl::AsciiStrToLower(std::string(text));
  if (absl::StartsWith(uuid, "gpu-")) uuid.erase(0, 4);
  return absl::StrCat("GPU-", uuid);
}

}  // namespace wsync::cuda
