#include "kernels/simd.h"

#include <array>
#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/quantize.h"

namespace wsync::simd {
namespace {

struct Level {
  const Loops* loops;
  bool supported;
};

#if defined(__x86_64__)
bool HasF16c() {  // clang 14 has no __builtin_cpu_supports("f16c")
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// Best first.
std::array<Level, 3> Levels() {
  const bool avx2 = __builtin_cpu_supports("avx2") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {Level{&kAvx512Loops, avx512}, Level{&kAvx2Loops, avx2}, Level{&kPortableLoops, true}};
}
#else
std::array<Level, 1> Levels() { return {Level{&kPortableLoops, true}}; }
#endif

// An empty or unknown cap is no cap.
const Loops* Best(std::string_view cap) {
  const auto levels = Levels();
  size_t first = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    if (cap == levels[i].loops->name) first = i;
  }
  for (size_t i = first; i < levels.size(); ++i) {
    if (levels[i].supported) return levels[i].loops;
  }
  return &kPortableLoops;
}

std::atomic<const Loops*>& Current() {
  static std::atomic<const Loops*> current = [] {
    const char* cap = std::getenv("WSYNC_SIMD");
    return Best(cap == nullptr ? "" : cap);
  }();
  return current;
}

}  // namespace

bool StreamingPays(const std::byte* out, int64_t out_pitch, int64_t total_bytes) {
  const auto misalignment = (reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(out_pitch)) % kStreamAlignment;
  return misalignment == 0 && total_bytes >= kStreamMinBytes;
}

const Loops& Active() { return *Current().load(std::memory_order_relaxed); }

bool Use(std::string_view level) {
  const Loops* loops = Best(level);
  if (loops->name != level) return false;
  Current().store(loops, std::memory_order_relaxed);
  return true;
}

}  // namespace wsync::simd

namespace wsync {
std::string_view SimdLevel() { return simd::Active().name; }
}  // namespace wsync
