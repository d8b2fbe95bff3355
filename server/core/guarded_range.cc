#include "server/core/guarded_range.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/sync.h"

namespace wsync {
namespace {

// Written by Create and the destructor under the registry's lock, read by the handler without one. `begin` is stored
// last and cleared first; whoever reads it again after `end` and finds it the same has a pair that belongs together.
struct Slot {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> cut{false};
};

Slot slots[GuardedRange::kMaxRanges];  // untouched pages of it cost nothing
std::atomic<size_t> slots_used{0};     // those ever used: what the handler looks through
struct sigaction previous_action;

class Registry {
 public:
  // kMaxRanges: none is free.
  size_t Take(uintptr_t begin, uintptr_t end) {
    MutexLock lock(&mu_);
    const size_t slot = TakeFree();
    if (slot == GuardedRange::kMaxRanges) return slot;
    slots[slot].cut = false;
    slots[slot].end = end;
    slots[slot].begin = begin;
    by_address_[begin] = slot;
    return slot;
  }
  void Give(size_t slot) {
    MutexLock lock(&mu_);
    by_address_.erase(slots[slot].begin);
    slots[slot].begin = 0;
    free_.push_back(slot);
  }
  const std::atomic<bool>* MarkAt(uintptr_t address) const {
    MutexLock lock(&mu_);
    auto next = by_address_.upper_bound(address);
    if (next == by_address_.begin()) return nullptr;
    const Slot& slot = slots[(--next)->second];
    return address < slot.end ? &slot.cut : nullptr;
  }

 private:
  size_t TakeFree() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (free_.empty()) {
      const size_t next = slots_used;
      if (next < GuardedRange::kMaxRanges) slots_used = next + 1;
      return next;
    }
    const size_t slot = free_.back();
    free_.pop_back();
    return slot;
  }

  mutable Mutex mu_;
  std::map<uintptr_t, size_t> by_address_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> free_ ABSL_GUARDED_BY(mu_);
};

Registry& TheRegistry() {
  static auto* const registry = new Registry;  // never destroyed: threads may run while the process exits
  return *registry;
}

// ---- in the signal's handler: nothing but atomics and system calls

bool Replace(uintptr_t address) {
  const size_t used = slots_used;
  for (size_t i = 0; i < used; ++i) {
    const uintptr_t begin = slots[i].begin;
    const uintptr_t end = slots[i].end;
    if (begin == 0 || address < begin || address >= end || slots[i].begin != begin) continue;
    slots[i].cut.store(true, std::memory_order_release);
    // All of it: one fault for each range, not one for each page. NORESERVE: it may be larger than what there is. The
    // system call itself: to ThreadSanitizer the library's function is a write, against which every reader races.
    const long at = syscall(SYS_mmap, begin, end - begin, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return static_cast<uintptr_t>(at) == begin;
  }
  return false;
}

void OnBusError(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  // Not those that the hardware raises: a failing memory chip is no client's doing.
  const bool replaced = info->si_code == BUS_ADRERR && Replace(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = saved_errno;
  if (replaced) return;
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) return previous_action.sa_sigaction(signal, info, context);
  if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    return previous_action.sa_handler(signal);
  }
  struct sigaction fall_back = {};
  fall_back.sa_handler = SIG_DFL;
  sigaction(signal, &fall_back, nullptr);  // the instruction is run again, and ends the process where it happened
  if (info->si_code <= 0) raise(signal);   // sent by somebody: there is no such instruction
}

void InstallHandler() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &previous_action) == 0;
  }();
  (void)installed;
}

}  // namespace

CutMark CutMarkAt(const void* address) { return CutMark(TheRegistry().MarkAt(reinterpret_cast<uintptr_t>(address))); }

absl::StatusOr<std::unique_ptr<GuardedRange>> GuardedRange::Create(const void* data, int64_t bytes) {
  InstallHandler();
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes) + page - 1) / page * page;
  const size_t slot = TheRegistry().Take(begin, end);
  if (slot == kMaxRanges) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map more memory of other processes: ", kMaxRanges, " pieces are mapped already"));
  }
  return std::unique_ptr<GuardedRange>(new GuardedRange(slot));
}

GuardedRange::~GuardedRange() { TheRegistry().Give(slot_); }

bool GuardedRange::cut() const { return slots[slot_].cut.load(std::memory_order_acquire); }

}  // namespace wsync
