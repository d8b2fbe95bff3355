// The other process of cuda_memory_test: opens a handle, or exports one. What it finds wrong goes to stderr, exit
// code 1.
//   cuda_ipc_peer open HANDLE(hex) UUID BYTES SEED   checks the bytes, writes those of SEED + 1, in two mappings of one
//   cuda_ipc_peer export BYTES SEED                  prints "HANDLE UUID", and keeps the memory until it is killed
//   cuda_ipc_peer export-and-exit BYTES SEED         the same, but lets go of it
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/backend/cuda/memory.h"
#include "tests/backend/cuda_ipc_pattern.h"

namespace wsync::cuda {
namespace {

absl::Status Wrong(const std::string& what) { return absl::InternalError(what); }

absl::Status Open(CudaMemory& memory, const CudaIpcHandle& handle, uint32_t seed) {
  auto first = memory.Open(handle, Access::kRead);
  if (!first.ok()) return first.status();
  {
    const auto second = memory.Open(handle, Access::kReadWrite);
    if (!second.ok()) return second.status();
    if ((*second)->data() != (*first)->data() || memory.mappings() != 1) return Wrong("opened twice, mapped twice");
    std::string text;
    if (!HoldsPattern((*second)->data(), handle.bytes, seed, &text)) return Wrong(text);
    WritePattern((*second)->data(), handle.bytes, seed + 1);
  }
  if (memory.mappings() != 1) return Wrong("unmapped while still in use");
  CudaIpcHandle larger = handle;
  larger.bytes += int64_t{1} << 40;
  if (const absl::Status status = memory.Open(larger, Access::kRead).status(); !absl::IsInvalidArgument(status)) {
    return Wrong(absl::StrCat("a handle that claims too much: ", status.ToString()));
  }
  *first = nullptr;
  if (memory.mappings() != 0) return Wrong("still mapped");
  const auto again = memory.Open(handle, Access::kRead);
  return again.status();
}

absl::Status Export(CudaMemory& memory, int64_t bytes, uint32_t seed, bool keep) {
  MemoryHandle handle;
  const auto buffer = memory.AllocateShared(bytes, "a test", &handle);
  if (!buffer.ok()) return buffer.status();
  WritePattern((*buffer)->data(), bytes, seed);
  const auto& ipc = std::get<CudaIpcHandle>(handle);
  std::cout << absl::BytesToHexString(ipc.handle) << " " << ipc.device_uuid << " ready" << std::endl;
  while (keep) pause();
  return absl::OkStatus();
}

absl::Status Run(int argc, char** argv) {
  const auto device = Device::Open(0);
  if (!device.ok()) return device.status();
  const auto memory = CudaMemory::Create(*device);
  if (!memory.ok()) return memory.status();
  const std::string mode = argv[1];
  if (mode == "open" && argc == 6) {
    return Open(**memory, {absl::HexStringToBytes(argv[2]), argv[3], std::atoll(argv[4])},
                static_cast<uint32_t>(std::atoi(argv[5])));
  }
  if (argc != 4) return Wrong("usage");
  return Export(**memory, std::atoll(argv[2]), static_cast<uint32_t>(std::atoi(argv[3])), mode == "export");
}

}  // namespace
}  // namespace wsync::cuda

int main(int argc, char** argv) {
  const absl::Status status = argc < 2 ? absl::InvalidArgumentError("usage") : wsync::cuda::Run(argc, argv);
  if (!status.ok()) std::cerr << "cuda_ipc_peer: " << status << std::endl;
  return status.ok() ? 0 : 1;
}
