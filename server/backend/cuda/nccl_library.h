// libnccl, found at run time: the agents start where it is missing, and say so when it is wanted.
//
// Loaded once per process and never unloaded. Thread-safe. nccl.h is used for types only.
#ifndef WSYNC_SERVER_BACKEND_CUDA_NCCL_LIBRARY_H_
#define WSYNC_SERVER_BACKEND_CUDA_NCCL_LIBRARY_H_

#include <nccl.h>

#include <string>

#include "absl/status/statusor.h"

namespace wsync::cuda {

inline constexpr char kNcclLibraryVariable[] = "WSYNC_NCCL_LIBRARY";

class NcclLibrary {
 public:
  // The file that WSYNC_NCCL_LIBRARY names, else "libnccl.so.2" where the system's loader looks. FAILED_PRECONDITION
  // says which library or symbol is missing, or that it is older than 2.18, whose non-blocking communicators we need.
  static absl::StatusOr<const NcclLibrary*> Load();

  const std::string& path() const { return path_; }
  int version() const { return version_; }
  std::string VersionText() const;  // "2.28.9"

  decltype(&ncclGetVersion) GetVersion = nullptr;
  decltype(&ncclGetUniqueId) GetUniqueId = nullptr;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig = nullptr;
  decltype(&ncclCommAbort) CommAbort = nullptr;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError = nullptr;
  decltype(&ncclGetErrorString) GetErrorString = nullptr;
  decltype(&ncclGetLastError) GetLastError = nullptr;
  decltype(&ncclBroadcast) Broadcast = nullptr;

  // OK for success and work in progress; else the error of `call` with NCCL's own words. UNAVAILABLE: a peer or the
  // network; FAILED_PRECONDITION: how we were started; INTERNAL: the rest.
  absl::Status Check(ncclResult_t result, const std::string& call) const;

 private:
  NcclLibrary() = default;
  static absl::StatusOr<const NcclLibrary*> LoadOnce();

  std::string path_;
  int version_ = 0;
};

std::string NcclVersionText(int version);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_NCCL_LIBRARY_H_
