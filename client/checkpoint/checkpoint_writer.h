// Writes a checkpoint directory, all or nothing: shards, index, config.json, the other files of a source directory, and
// a manifest of what was written (manifest.h).
//
// Everything goes to `<out>.partial-<pid>` and is renamed to `<out>` by Finish, after a flush. A failure, or an end
// without Finish, removes the partial directory; only a killed process can leave one behind, never under the final
// name. The space of all shards is reserved by Create, so that a full disk shows before any work is done.
//
// The Write functions may be called from several threads at once, each byte once; Finish from one, after them.
#ifndef WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_WRITER_H_
#define WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/checkpoint/safetensors.h"
#include "client/checkpoint/strict_json.h"

namespace wsync {

inline constexpr int64_t kDefaultShardBytes = 5'000'000'000;  // what hubs and save_pretrained use

struct CheckpointOptions {
  int64_t max_shard_bytes = kDefaultShardBytes;  // of tensor data; a larger tensor gets a shard of its own
  std::optional<OrderedJson> config;             // becomes config.json
  // Its files are copied (tokenizer, generation config, code), but no weights, indices or config.json; "": none.
  std::string copy_from;
  // What the tensors are read from, a directory or file; never overwritten, as `copy_from` is not. "": no file.
  std::string source;
  // Replace what wsync wrote before. A directory that holds anything else, or a file of ours that was changed since, is
  // never replaced: whoever put it there takes it away first.
  bool overwrite = false;
};

class CheckpointWriter {
 public:
  // Whether Create would take `out_dir`, for who has a long way to go before there are tensors to write.
  static absl::Status CheckTarget(const std::string& out_dir, const CheckpointOptions& options);
  // Tensors are packed into shards in the order given, which is the order of their indices below.
  // The other files are copied at once: what is wrong with one shows before there is any work.
  // ALREADY_EXISTS: `out_dir` is a file, or a directory with something in it that `overwrite` does not cover (named).
  // RESOURCE_EXHAUSTED: no room. INVALID_ARGUMENT: bad tensors or options, `out_dir` is or holds what is read, a file
  // to copy is a link out of its directory.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Create(const std::string& out_dir,
                                                                  const std::vector<Tensor>& tensors,
                                                                  const CheckpointOptions& options);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  absl::Status Write(int64_t tensor, absl::Span<const std::byte> bytes);  // the whole tensor
  // Whole rows of the tensor's MatrixView, from row `row_begin` on.
  absl::Status WriteRows(int64_t tensor, int64_t row_begin, absl::Span<const std::byte> bytes);
  absl::Status WriteBytes(int64_t tensor, int64_t byte_begin, absl::Span<const std::byte> bytes);

  // FAILED_PRECONDITION naming the first tensor that is not complete. After any error nothing was changed at `out_dir`.
  absl::Status Finish();

  const std::vector<std::string>& shard_names() const { return shard_names_; }
  int64_t total_bytes() const { return total_bytes_; }              // of all tensors
  const std::vector<std::string>& notes() const { return notes_; }  // what was not copied, for the user to read

 private:
  struct Place {
    size_t shard = 0;
    int64_t index = 0;  // within the shard
  };
  CheckpointWriter(std::string out_dir, std::string partial_dir, const CheckpointOptions& options)
      : out_dir_(std::move(out_dir)), partial_dir_(std::move(partial_dir)), options_(options) {}
  absl::Status CreateShards(const std::vector<Tensor>& tensors);
  absl::Status WriteIndex();
  absl::Status CopyOtherFiles();
  absl::Status MoveIntoPlace();

  const std::string out_dir_;
  const std::string partial_dir_;
  const CheckpointOptions options_;
  std::vector<std::string> names_;  // of the tensors
  std::vector<Place> places_;       // of the tensors
  std::vector<std::string> shard_names_;
  std::vector<std::unique_ptr<SafetensorsWriter>> shards_;
  int64_t total_bytes_ = 0;
  std::vector<std::string> notes_;
  bool finished_ = false;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_WRITER_H_
