// The copies of load_cuda.h: one block per item of about 32 KiB, at the width that its addresses allow.
#include "kernels/device_cuda.cuh"
#include "kernels/load_cuda.h"

namespace wsync::cuda {
namespace {

// A rectangle of bytes, `rows` of `row_bytes`.
struct Rectangle {
  const uint8_t* source;
  uint8_t* dest;
  uint64_t source_pitch;
  uint64_t dest_pitch;
  uint32_t rows;
  uint32_t row_bytes;
};

__device__ __forceinline__ Rectangle RectangleOf(const CopyRecord& record, uintptr_t base, uint32_t index) {
  const uint32_t band = index / record.items_per_row, segment = index - band * record.items_per_row;
  const uint64_t row = uint64_t{band} * record.rows_per_item, in_row = uint64_t{segment} * kCopyItemBytes;
  return {.source = reinterpret_cast<const uint8_t*>(base + record.source_offset + row * record.source_pitch + in_row),
          .dest = reinterpret_cast<uint8_t*>(record.dest) + row * record.dest_pitch + in_row,
          .source_pitch = record.source_pitch,
          .dest_pitch = record.dest_pitch,
          .rows = static_cast<uint32_t>(min(uint64_t{record.rows_per_item}, record.rows - row)),
          .row_bytes = static_cast<uint32_t>(min(static_cast<uint64_t>(kCopyItemBytes), record.row_bytes - in_row))};
}

template <class Unit>
__device__ __forceinline__ Unit Load(const uint8_t* source) {
  if constexpr (sizeof(Unit) == 16) {
    return LoadOnce(source);
  } else {
    return *reinterpret_cast<const Unit*>(source);
  }
}

template <class Unit>
__device__ __forceinline__ void CopyUnits(const Rectangle& r) {
  const uint32_t units_per_row = r.row_bytes / sizeof(Unit), total = units_per_row * r.rows;
  for (uint32_t first = threadIdx.x; first < total; first += kThreads * kSteps) {
    Unit v[kSteps];
    uint8_t* dest[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t unit = first + i * kThreads;
      if (unit >= total) break;
      const uint32_t row = r.rows == 1 ? 0 : unit / units_per_row;
      const uint64_t in_row = uint64_t{unit - row * units_per_row} * sizeof(Unit);
      v[i] = Load<Unit>(r.source + row * r.source_pitch + in_row);
      dest[i] = r.dest + row * r.dest_pitch + in_row;
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (first + i * kThreads < total) StoreStreaming(reinterpret_cast<Unit*>(dest[i]), v[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    CopyKernel(const CopyRecord* records, const uint32_t* items, uint32_t item_begin, uintptr_t base,
               const Mismatches* guard) {
  const uint32_t item = item_begin + blockIdx.x;
  const uint32_t bad_pieces = guard != nullptr ? guard->count : 0;
  const CopyRecord record = records[items[item]];
  if (bad_pieces != 0) return;
  const Rectangle rectangle = RectangleOf(record, base, item - record.first_item);
  switch (record.unit_bytes) {
    case 16:
      return CopyUnits<uint4>(rectangle);
    case 8:
      return CopyUnits<uint2>(rectangle);
    case 4:
      return CopyUnits<uint32_t>(rectangle);
    case 2:
      return CopyUnits<uint16_t>(rectangle);
    default:
      return CopyUnits<uint8_t>(rectangle);
  }
}

// `base`: where the image begins, or would begin around a bucket that lies alone.
cudaError_t LaunchItems(const CopyDevice& device, uint32_t item_begin, uint32_t item_end, uintptr_t base,
                        const Mismatches* guard, cudaStream_t stream) {
  if (item_begin == item_end) return cudaSuccess;
  CopyKernel<<<item_end - item_begin, kThreads, 0, stream>>>(device.records, device.items, item_begin, base, guard);
  return cudaGetLastError();
}

}  // namespace

cudaError_t PreloadCopyKernels() { return Preload(CopyKernel); }

cudaError_t LaunchCopyBucket(const CopyTable& table, const CopyDevice& device, int64_t bucket, const std::byte* wire,
                             cudaStream_t stream, const Mismatches* guard) {
  const auto k = static_cast<size_t>(bucket);
  const uintptr_t base = reinterpret_cast<uintptr_t>(wire) - static_cast<uintptr_t>(table.image_offsets[k]);
  return LaunchItems(device, table.item_begin[k], table.item_begin[k + 1], base, guard, stream);
}

cudaError_t LaunchCopyAll(const CopyTable& table, const CopyDevice& device, const std::byte* image,
                          cudaStream_t stream) {
  return LaunchItems(device, 0, table.item_begin.back(), reinterpret_cast<uintptr_t>(image), nullptr, stream);
}

}  // namespace wsync::cuda
