// Counts what a test's process takes from the heap, by any thread, while one of these lives. Linking it replaces
// operator new. One at a time.
#ifndef WSYNC_TESTS_CORE_ALLOCATION_COUNT_H_
#define WSYNC_TESTS_CORE_ALLOCATION_COUNT_H_

#include <cstdint>

namespace wsync {

class AllocationCount {
 public:
  AllocationCount();
  ~AllocationCount();
  int64_t bytes() const;    // taken since, all together, whatever was given back
  int64_t largest() const;  // at once
};

}  // namespace wsync

#endif  // WSYNC_TESTS_CORE_ALLOCATION_COUNT_H_
