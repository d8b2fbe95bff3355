// What wsync wrote into a directory: wsync.json there, with the size and a digest of every file. By it, wsync tells its
// own files from everybody else's when it is asked to overwrite them.
//
// The digest covers small files whole, and of large ones their ends and samples between: enough to see another model,
// or a training run's own weights, under a name that we wrote. Pure functions over a directory; links are never
// followed.
#ifndef WSYNC_CLIENT_CHECKPOINT_MANIFEST_H_
#define WSYNC_CLIENT_CHECKPOINT_MANIFEST_H_

#include <string>

#include "absl/status/status.h"

namespace wsync {

inline constexpr char kManifestFileName[] = "wsync.json";

// Lists every file of `directory`, all of which are the caller's.
absl::Status WriteManifest(const std::string& directory);

// OK if `directory` holds what its manifest lists, as it was written, or some of it, and nothing else.
// FAILED_PRECONDITION otherwise, with a sentence that names the first file that is not ours, or was changed.
absl::Status CheckOnlyOurs(const std::string& directory);

// Removes what CheckOnlyOurs would pass, and the directory if nothing is left in it. FAILED_PRECONDITION naming the
// first thing that was kept.
absl::Status RemoveOurs(const std::string& directory);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_MANIFEST_H_
