// Runs numbered pieces of work on several threads, with an outcome that does not depend on how they interleave.
#ifndef WSYNC_CLIENT_CHECKPOINT_PIECE_LOOP_H_
#define WSYNC_CLIENT_CHECKPOINT_PIECE_LOOP_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace wsync {

// Called as work(piece, worker) with 0 <= worker < threads; one worker runs one piece at a time.
using PieceWork = std::function<absl::Status(int64_t piece, int worker)>;

// Works on pieces 0 .. count-1, taken in order, and returns the error of the first piece (by number) that fails, as if
// they had run one after another: earlier pieces are finished, later ones are given up. Calls `tick` on the calling
// thread about ten times a second, and returns when every thread has ended.
absl::Status RunPieces(int threads, int64_t count, const PieceWork& work, const std::function<void()>& tick);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_PIECE_LOOP_H_
