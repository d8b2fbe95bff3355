#include "server/backend/cuda/nccl_library.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace wsync::cuda {
namespace {

constexpr char kDefaultName[] = "libnccl.so.2";
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 0);

template <class Function>
absl::Status Find(void* library, const std::string& path, const char* symbol, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("NCCL library '", path, "' has no symbol ", symbol,
                                                    "; install NCCL ", NcclVersionText(kOldestVersion),
                                                    " or newer, or name another library in ", kNcclLibraryVariable));
}

std::string PathOf(void* symbol, const std::string& name) {
  Dl_info info = {};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : name;
}

// Hundreds of megabytes of kernels, of which the first session reads those of its GPU: from a cold disk that can take
// longer than connect_timeout_ms. So the kernel begins to read now, while the agent starts; nobody waits for it.
void ReadAhead(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;  // it is loaded all the same
  posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED);
  close(file);
}

}  // namespace

std::string NcclVersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::StatusOr<const NcclLibrary*> NcclLibrary::Load() {
  // Never destroyed: threads of NCCL's own outlive main.
  static const auto* const loaded = new absl::StatusOr<const NcclLibrary*>(LoadOnce());
  return *loaded;
}

absl::StatusOr<const NcclLibrary*> NcclLibrary::LoadOnce() {
  const char* const chosen = std::getenv(kNcclLibraryVariable);
  const std::string name = chosen != nullptr && *chosen != '\0' ? chosen : kDefaultName;
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = dlerror();
    return absl::FailedPreconditionError(
        absl::StrCat("cannot load NCCL: ", reason != nullptr ? reason : name,
                     "; install the package libnccl2, or name the library in ", kNcclLibraryVariable,
                     " (PyTorch brings one: nvidia/nccl/lib/libnccl.so.2 in its site-packages)"));
  }
  std::unique_ptr<NcclLibrary> nccl(new NcclLibrary);
  absl::Status status = Find(library, name, "ncclGetVersion", &nccl->GetVersion);
  status.Update(Find(library, name, "ncclGetUniqueId", &nccl->GetUniqueId));
  status.Update(Find(library, name, "ncclCommInitRankConfig", &nccl->CommInitRankConfig));
  status.Update(Find(library, name, "ncclCommAbort", &nccl->CommAbort));
  status.Update(Find(library, name, "ncclCommGetAsyncError", &nccl->CommGetAsyncError));
  status.Update(Find(library, name, "ncclGetErrorString", &nccl->GetErrorString));
  status.Update(Find(library, name, "ncclGetLastError", &nccl->GetLastError));
  status.Update(Find(library, name, "ncclBroadcast", &nccl->Broadcast));
  if (!status.ok()) return status;
  nccl->path_ = PathOf(reinterpret_cast<void*>(nccl->GetVersion), name);
  ReadAhead(nccl->path_);
  if (status = nccl->Check(nccl->GetVersion(&nccl->version_), "ncclGetVersion"); !status.ok()) return status;
  if (nccl->version_ < kOldestVersion) {
    return absl::FailedPreconditionError(absl::StrCat("NCCL library '", nccl->path_, "' is ", nccl->VersionText(), "; ",
                                                      NcclVersionText(kOldestVersion), " or newer is needed"));
  }
  return nccl.release();
}

std::string NcclLibrary::VersionText() const { return NcclVersionText(version_); }

absl::Status NcclLibrary::Check(ncclResult_t result, const std::string& call) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const char* const last = GetLastError(nullptr);
  const std::string text = absl::StrCat(call, ": ", GetErrorString(result),
                                        last != nullptr && *last != '\0' ? absl::StrCat(" (", last, ")") : "");
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:
      return absl::UnavailableError(text);
    case ncclInvalidUsage:
      return absl::FailedPreconditionError(
          absl::StrCat(text, "; are two ranks on one GPU? Every agent of a session needs a GPU of its own"));
    case ncclInvalidArgument:
      return absl::FailedPreconditionError(text);
    default:
      return absl::InternalError(
          !absl::StrContains(text, "out of memory") && !absl::StrContains(text, "calloc")  // how NCCL says it
              ? text
              : absl::StrCat(text,
                             "; a communicator takes up to 1 GB: free some of this GPU's memory ('wsync plan "
                             "--device' says what an agent takes), or lower transfer.nccl_max_ctas"));
  }
}

}  // namespace wsync::cuda
