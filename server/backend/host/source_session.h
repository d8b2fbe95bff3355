// Rank 0's end of one session: which sinks are there, which broadcasts they still have to get, and who is gone.
//
// Every sink has its own position in the queue of broadcasts, so a slow one holds up nobody else; a broadcast is
// complete when the last sink has passed it and gRPC has dropped the last slice of its memory. A sink that goes before
// it got everything ends the session for all, as a dead rank does in a collective; one that goes with everything it was
// sent only ends what comes later, so sinks may leave while slower ones still receive.
//
// Thread-safe. Calls into gRPC happen on pool threads and gRPC's callback threads, never with the lock held, and never
// from a slice's release, which gRPC may run under locks of its own.
#ifndef WSYNC_SERVER_BACKEND_HOST_SOURCE_SESSION_H_
#define WSYNC_SERVER_BACKEND_HOST_SOURCE_SESSION_H_

#include <deque>
#include <memory>
#include <vector>

#include "server/backend/host/completion.h"
#include "server/backend/host/sink_stream.h"
#include "server/backend/host/worker_pool.h"
#include "server/core/events.h"
#include "server/core/sync.h"

namespace wsync::host {

class SourceSession final : public SinkStreamListener, public std::enable_shared_from_this<SourceSession> {
 public:
  // `world` counts this rank: sinks are ranks [1, world). The pool must outlive the session's last broadcast.
  SourceSession(int32_t world, WorkerPool* pool);

  // Gives a stream to its rank. PERMISSION_DENIED: no such rank in this session; ALREADY_EXISTS: the rank came before.
  absl::Status Admit(int32_t rank, const std::shared_ptr<SinkStream>& stream);
  // OK once every sink was admitted; DEADLINE_EXCEEDED names those that were not.
  absl::Status WaitConnected(absl::Time deadline);
  CompletionPtr Broadcast(const std::byte* data, int64_t bytes, const CompletionPtr& after);
  void Cancel(const absl::Status& why);
  void WaitReleased();  // until gRPC refers to no memory of any broadcast
  int64_t moved_bytes();
  std::vector<PeerProgress> peers();  // of ranks 1, 2, ...

  void OnWritten(int32_t rank) override;
  void OnGone(int32_t rank) override;

 private:
  struct Send {
    const std::byte* data = nullptr;
    int64_t bytes = 0;
    uint64_t sequence = 0;
    bool ready = false;      // `after` is done
    int32_t sinks_left = 0;  // that have not passed it
    int64_t slices = 0;      // of its memory that gRPC still refers to
    std::shared_ptr<HostCompletion> completion = std::make_shared<HostCompletion>();
  };
  using SendPtr = std::shared_ptr<Send>;
  struct Sink {
    std::shared_ptr<SinkStream> stream;
    bool admitted = false;
    bool gone = false;
    bool broke_off = false;  // went before it had everything, and ended the session by that
    bool writing = false;
    uint64_t at = 0;  // sequence of the broadcast it is at
    int64_t offset = 0;
    int64_t moved_bytes = 0;
  };
  struct Finished {
    std::vector<SendPtr> sends;
    absl::Status result;
  };
  struct SliceRef;  // what gRPC holds of a broadcast's memory

  void Ready(const SendPtr& send, const absl::Status& after);
  void Pump(int32_t rank);
  bool TakeChunk(int32_t rank, SendPtr* send, int64_t* offset, int64_t* bytes);
  grpc::ByteBuffer MakeChunk(int32_t rank, const SendPtr& send, int64_t offset, int64_t bytes);
  void Released(int32_t rank, const SendPtr& send, int64_t bytes);
  void Pass(Sink& sink, Send& send) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Send* SendAt(uint64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Finished TakeFinished() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void FinishAll(const Finished& finished);

  const int32_t world_;
  WorkerPool* const pool_;
  Mutex mu_;
  CondVar changed_;
  std::vector<Sink> sinks_ ABSL_GUARDED_BY(mu_);    // by rank - 1
  std::deque<SendPtr> sends_ ABSL_GUARDED_BY(mu_);  // not complete, in order; complete ones only behind others
  uint64_t next_sequence_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t slices_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status gone_ ABSL_GUARDED_BY(mu_);  // a sink left with all it was sent: the next broadcast ends the session
  absl::Status why_ ABSL_GUARDED_BY(mu_);   // the session is over
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SOURCE_SESSION_H_
