// Memory modes: what an agent keeps beside the weights that trainer and engine hold anyway.
// The numbers are the wire's and the configuration's: never reuse one.
#ifndef WSYNC_SERVER_CORE_MODES_H_
#define WSYNC_SERVER_CORE_MODES_H_

#include <cstdint>

namespace wsync {

enum class SourceMode : uint8_t {
  kFull = 1,  // one encoded copy of everything: the trainer stalls for the quantization only
  kRing = 2,  // K bucket slots: the trainer stalls until the last bucket is on the wire
};

enum class SinkMode : uint8_t {
  kStaged = 1,   // one encoded copy of everything: the engine runs on during the transfer
  kInPlace = 2,  // K bucket slots: the engine is paused from begin, and a failure leaves the replica torn
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_MODES_H_
