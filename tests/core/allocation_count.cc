#include "tests/core/allocation_count.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<bool> counting = false;
std::atomic<int64_t> total = 0;
std::atomic<int64_t> most = 0;

void* Take(std::size_t bytes, std::size_t align) {
  if (counting.load(std::memory_order_relaxed)) {
    const auto taken = static_cast<int64_t>(bytes);
    total.fetch_add(taken, std::memory_order_relaxed);
    int64_t seen = most.load(std::memory_order_relaxed);
    while (taken > seen && !most.compare_exchange_weak(seen, taken, std::memory_order_relaxed)) {
    }
  }
  const std::size_t rounded = (bytes + align - 1) / align * align;  // as aligned_alloc wants it
  void* const memory = align <= alignof(std::max_align_t) ? std::malloc(bytes == 0 ? 1 : bytes)
                                                          : std::aligned_alloc(align, rounded == 0 ? align : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// The array and nothrow forms of the standard library end up in these.
void* operator new(std::size_t bytes) { return Take(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t align) { return Take(bytes, static_cast<std::size_t>(align)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace wsync {

AllocationCount::AllocationCount() {
  total = 0;
  most = 0;
  counting = true;
}

AllocationCount::~AllocationCount() { counting = false; }

int64_t AllocationCount::bytes() const { return total; }

int64_t AllocationCount::largest() const { return most; }

}  // namespace wsync
