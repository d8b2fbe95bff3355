#include "server/core/memory_estimate.h"

#include <algorithm>

#include "server/core/destinations.h"
#include "server/core/ring.h"

namespace wsync {
namespace {

// A daemon with a gRPC server, idle, on x86-64 Linux: an allowance, small against any model worth syncing.
constexpr int64_t kIdleProcessBytes = int64_t{24} << 20;
// On a GPU: a CUDA context with our kernels and one NCCL communicator of two ranks over NVLink. Two H100, NCCL 2.28.3:
// nvidia-smi tells 10.18 GB of a trainer agent with a copy of 8.72 GB, and 2.27 GB of a rollout agent with 0.80 GB of
// ring. More ranks, or NCCL_BUFFSIZE and NCCL_MIN_CTAS, make it more.
constexpr int64_t kGpuProcessBytes = int64_t{1460} * 1000 * 1000;
// In a wide session (Begin.wide), which an in_place sink may get, and a source if all its sinks do: 10.9 and 3.0 GB.
constexpr int64_t kWideGpuProcessBytes = kGpuProcessBytes + int64_t{740} * 1000 * 1000;
constexpr int64_t kGpuBytesPerPiece = 256;     // records of encoder, check and copies, digests, what is found
constexpr int64_t kGpuBytesOfWorkPerItem = 8;  // the tables' entry for each item, in encode; in check and copy
constexpr int64_t kGpuItemBytes = int64_t{32} << 10;
constexpr size_t kContentTermBytes = 16;       // what the plan keeps of each tensor for the content digest
constexpr int64_t kDigestsPerPiece = 2;        // what the sender said, and what was found
constexpr int64_t kSourceBytesPerTensor = 32;  // handle, offset and length of each registered tensor
constexpr size_t kInlineString = 15;           // libstdc++ keeps shorter strings within the object

// A heap block as glibc hands it out: 8 bytes of header, multiples of 16, at least 32.
int64_t HeapBytes(size_t bytes) {
  return bytes == 0 ? 0 : std::max<int64_t>(32, RoundUp(static_cast<int64_t>(bytes) + 8, 16));
}

int64_t NameBytes(const std::string& name) { return name.size() <= kInlineString ? 0 : HeapBytes(name.size() + 1); }

template <typename T>
int64_t VectorBytes(const std::vector<T>& values) {
  return HeapBytes(values.size() * sizeof(T));
}

// An absl::flat_hash_map from name to index: 2^k - 1 slots, filled to 7/8 at most, with a control byte each.
int64_t IndexBytes(size_t entries) {
  size_t capacity = 1;
  while (capacity - capacity / 8 < entries) capacity = capacity * 2 + 1;
  return HeapBytes(capacity * (sizeof(std::string_view) + sizeof(int64_t) + 1));
}

MemoryEstimate Estimate(const Plan& plan, bool whole_image, int64_t ring_slots, int64_t tables_bytes,
                        int64_t process_bytes = kIdleProcessBytes) {
  MemoryEstimate estimate;
  if (whole_image) {
    estimate.image_bytes = plan.image_bytes();
  } else {
    estimate.ring_bytes = RingLayout(plan, ring_slots).bytes();
  }
  estimate.tables_bytes = tables_bytes;
  estimate.process_bytes = process_bytes;
  estimate.total = estimate.image_bytes + estimate.ring_bytes + estimate.tables_bytes + estimate.process_bytes;
  return estimate;
}

// What the kernels read beside the weights: a record per piece, an entry per 32 KiB of `bytes`.
int64_t GpuTableBytes(const Plan& plan, int64_t bytes) {
  return static_cast<int64_t>(plan.pieces().size()) * kGpuBytesPerPiece +
         bytes / kGpuItemBytes * kGpuBytesOfWorkPerItem;
}

int64_t DigestBytes(const Plan& plan) {
  return static_cast<int64_t>(plan.pieces().size() * sizeof(uint64_t)) * kDigestsPerPiece;
}

// In place, the digest tables of what is served stay, for deep checks: server/rollout/underlay.h.
int64_t KeptDigestBytes(const Plan& plan, SinkMode mode) {
  int64_t bytes = 0;
  if (mode == SinkMode::kStaged) return bytes;
  for (const Bucket& bucket : plan.buckets()) {
    bytes += RoundUp((bucket.piece_end - bucket.piece_begin) * static_cast<int64_t>(sizeof(uint64_t)), kPieceAlign);
  }
  return bytes;
}

}  // namespace

int64_t PlanTableBytes(const Plan& plan) {
  int64_t bytes = VectorBytes(plan.catalog().tensors()) + IndexBytes(plan.catalog().tensors().size());
  for (const Tensor& tensor : plan.catalog().tensors()) bytes += NameBytes(tensor.name) + VectorBytes(tensor.shape);
  bytes += VectorBytes(plan.outputs()) + IndexBytes(plan.outputs().size());
  for (const Output& output : plan.outputs()) bytes += NameBytes(output.name) + VectorBytes(output.shape);
  bytes += HeapBytes(plan.catalog().tensors().size() * kContentTermBytes);
  return bytes + VectorBytes(plan.recipes()) + VectorBytes(plan.pieces()) + VectorBytes(plan.buckets());
}

MemoryEstimate EstimateSource(const Plan& plan, SourceMode mode, int64_t ring_slots) {
  const auto tensors = static_cast<int64_t>(plan.catalog().tensors().size());
  const int64_t tables = PlanTableBytes(plan) + DigestBytes(plan) + tensors * kSourceBytesPerTensor;
  return Estimate(plan, mode == SourceMode::kFull, ring_slots, tables);
}

MemoryEstimate EstimateSink(const Plan& plan, SinkMode mode, int64_t ring_slots) {
  // One destination per output, cut no finer than the pieces: what an engine without tensor parallelism attaches.
  int64_t tables = PlanTableBytes(plan) + DigestBytes(plan) + KeptDigestBytes(plan, mode);
  for (const Output& output : plan.outputs()) {
    tables += sizeof(Destination) + NameBytes(output.name) + VectorBytes(output.shape);
  }
  for (const Piece& piece : plan.pieces()) {
    tables += static_cast<int64_t>(sizeof(ScatterCopy)) * (piece.scale_bytes > 0 ? 2 : 1);
  }
  return Estimate(plan, mode == SinkMode::kStaged, ring_slots, tables);
}

MemoryEstimate EstimateSourceOnGpu(const Plan& plan, SourceMode mode, int64_t ring_slots) {
  return Estimate(plan, mode == SourceMode::kFull, ring_slots, GpuTableBytes(plan, plan.source_bytes()),
                  kWideGpuProcessBytes);
}

MemoryEstimate EstimateSinkOnGpu(const Plan& plan, SinkMode mode, int64_t ring_slots) {
  return Estimate(plan, mode == SinkMode::kStaged, ring_slots,
                  GpuTableBytes(plan, plan.payload_bytes()) + KeptDigestBytes(plan, mode),
                  mode == SinkMode::kStaged ? kGpuProcessBytes : kWideGpuProcessBytes);
}

}  // namespace wsync
