// Places where tests make a daemon fail: killed, stopped, late, wrong. Not there at all in what users run.
//
// A failpoint is a name at one step of the protocol ("rollout.commit"). The test daemons wsync-*-faults have the files
// that contain failpoints compiled a second time with WSYNC_FAILPOINTS, and tests arm a name in the running process
// (tests/faults/failpoint.cc says how and with what). Everywhere else both macros are constants, and neither name nor
// code remains: FailpointsAreAbsentFromRelease looks for them in the released binaries.
#ifndef WSYNC_SERVER_CORE_FAILPOINT_H_
#define WSYNC_SERVER_CORE_FAILPOINT_H_

#ifdef WSYNC_FAILPOINTS

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace wsync {

// What is armed for `name` happens to this process or thread, here. Not OK: this step is to fail with the status.
absl::Status HitFailpoint(const char* name);
// The same name at the first, a middle, or the last of `count` buckets: "<name>.first", ...
absl::Status HitBucketFailpoint(const char* name, int64_t bucket, int64_t count);
// Flips a bit of data[0, bytes) if that is armed for `name`.
void HitCorruption(const char* name, std::byte* data, int64_t bytes);

}  // namespace wsync

#define WSYNC_FAILPOINT(name) ::wsync::HitFailpoint(name)
#define WSYNC_BUCKET_FAILPOINT(name, bucket, count) ::wsync::HitBucketFailpoint(name, bucket, count)
#define WSYNC_CORRUPTION_POINT(name, data, bytes) ::wsync::HitCorruption(name, data, bytes)

#else

#define WSYNC_FAILPOINT(name) ::absl::OkStatus()
#define WSYNC_BUCKET_FAILPOINT(name, bucket, count) ::absl::OkStatus()
#define WSYNC_CORRUPTION_POINT(name, data, bytes) static_cast<void>(0)

#endif

#endif  // WSYNC_SERVER_CORE_FAILPOINT_H_
