// wsync doctor: what this machine has for wsync, and what to do about what it lacks.
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/terminal.h"
#include "kernels/quantize.h"
#include "server/rpc/version.h"
#ifdef WSYNC_HAVE_CUDA
#include "server/backend/cuda/probe.h"
#endif

namespace wsync::cli {
namespace {

enum class Verdict { kGood, kAdvice, kBad };

struct Finding {
  std::string what;
  Verdict verdict = Verdict::kGood;
  std::string found;
  std::string advice;
};

Finding SharedMemory() {
  struct statvfs stats = {};
  if (statvfs("/dev/shm", &stats) != 0) {
    return {"shared memory", Verdict::kBad, "no /dev/shm",
            "mount a tmpfs there: Python lends weights of the host backend in it"};
  }
  const auto free = static_cast<double>(stats.f_bavail) * static_cast<double>(stats.f_frsize);
  Finding finding{"shared memory", Verdict::kGood, absl::StrCat(FormatBytes(free), " free in /dev/shm"), ""};
  if (free < 1e9) {
    finding.verdict = Verdict::kAdvice;
    finding.advice = "weights that Python lends on the host backend must fit; in a container, raise --shm-size";
  }
  return finding;
}

// /run is empty after a reboot.
Finding Sockets() {
  if (access("/run/wsync", W_OK) == 0) return {"sockets", Verdict::kGood, "/run/wsync is there", ""};
  return {"sockets", Verdict::kAdvice, absl::StrCat("/run/wsync: ", std::strerror(errno)),
          "agents that this user starts need it, or a --local_socket elsewhere: make it as README.md says"};
}

#ifdef WSYNC_HAVE_CUDA
// Without MPS the processes of one GPU take turns, and an engine stalls while its agent works.
Finding Mps() {
  const char* const folder = std::getenv("CUDA_MPS_PIPE_DIRECTORY");
  const std::string control = absl::StrCat(folder != nullptr ? folder : "/tmp/nvidia-mps", "/control");
  struct stat info = {};
  if (stat(control.c_str(), &info) == 0) return {"CUDA MPS", Verdict::kGood, "its control daemon is there", ""};
  return {
      "CUDA MPS", Verdict::kAdvice, "not running",
      "start `nvidia-cuda-mps-control -d` before agents and engines: without it an engine's steps wait for its agent"};
}

std::vector<Finding> Gpus() {
  std::vector<Finding> findings;
  const int count = cuda::DeviceCount();
  if (count == 0) {  // no driver, one that is too old, or none that is visible: CUDA's own word tells which
    findings.push_back({"GPU", Verdict::kAdvice, "none that this process can use; backend host works without",
                        std::string(cuda::FactsOf(0).status().message())});
  }
  for (int i = 0; i < count; ++i) {
    const auto facts = cuda::FactsOf(i);
    if (!facts.ok()) {
      findings.push_back({absl::StrCat("GPU ", i), Verdict::kBad, std::string(facts.status().message()), ""});
      continue;
    }
    findings.push_back({absl::StrCat("GPU ", i), Verdict::kGood,
                        absl::StrCat(facts->name, ", ", FormatBytes(static_cast<double>(facts->free_bytes)), " of ",
                                     FormatBytes(static_cast<double>(facts->total_bytes)), " free"),
                        ""});
  }
  const auto nccl = cuda::NcclInUse();
  findings.push_back(nccl.ok() ? Finding{"NCCL", Verdict::kGood, *nccl, ""}
                               : Finding{"NCCL", count > 0 ? Verdict::kBad : Verdict::kAdvice,
                                         std::string(nccl.status().message()), ""});
  if (count > 0) findings.push_back(Mps());
  return findings;
}
#else
std::vector<Finding> Gpus() {
  return {{"CUDA", Verdict::kAdvice, "this wsync was built without CUDA",
           "build it where nvcc and nccl.h are found for backend cuda"}};
}
#endif

ExitCode Run() {
  std::vector<Finding> findings = {
      {"wsync", Verdict::kGood, std::string(kSoftware), ""},
      {"encoder", Verdict::kGood, absl::StrCat("SIMD level ", std::string(SimdLevel())), ""},
      SharedMemory(),
      Sockets()};
  for (Finding& finding : Gpus()) findings.push_back(std::move(finding));
  Table table({"", "WHAT", "FOUND"});
  bool bad = false;
  for (const Finding& finding : findings) {
    bad |= finding.verdict == Verdict::kBad;
    const Cell mark = finding.verdict == Verdict::kGood     ? Cell("ok", Color::kGreen)
                      : finding.verdict == Verdict::kAdvice ? Cell("note", Color::kYellow)
                                                            : Cell("BAD", Color::kRed);
    table.Add({mark, finding.what, finding.found});
    if (!finding.advice.empty()) table.Add({"", "", "-> " + finding.advice});
  }
  Write(stdout, table.Render(UseColor(stdout)));
  return bad ? kError : kOk;
}

}  // namespace

void AddDoctor(CLI::App& app) {
  AddCommand(app, "doctor", "Show what this machine has for wsync: GPUs, NCCL, MPS, shared memory, sockets",
             "  wsync doctor\n"
             "  WSYNC_NCCL_LIBRARY=/opt/nccl/libnccl.so.2 wsync doctor      another NCCL than the system's\n",
             [] { return Run(); });
}

}  // namespace wsync::cli
