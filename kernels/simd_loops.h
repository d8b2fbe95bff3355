// Every inner loop, once, over a traits class V of register operations (simd_*.cc). Included by those files only.
//
// V has two register types, Int and Float, of kStep bytes. A step takes kStep elements (as kStep / 4 lanes of fp32 in
// four registers) to kStep codes in one register, which is also kStep / 8 words for the digest. Rows end in a partial
// step, done on zero-padded copies. Everything here is in an unnamed namespace: see simd.h for why.
#ifndef WSYNC_KERNELS_SIMD_LOOPS_H_
#define WSYNC_KERNELS_SIMD_LOOPS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/digest.h"
#include "kernels/simd.h"

namespace wsync::simd {
namespace {

constexpr int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }  // std::min has external linkage

// The digest of a run of words, lane by lane.
template <class V>
class DigestSum {
 public:
  DigestSum() : sum_(V::Set64(0)), position_(V::Set64(0)), step_(V::Set64(kWords * kDigestGolden)) {
    alignas(V::kStep) uint64_t lanes[kWords];
    for (uint64_t i = 0; i < kWords; ++i) lanes[i] = (i + 1) * kDigestGolden;
    lanes_ = V::Load(reinterpret_cast<const std::byte*>(lanes));
  }
  void StartAt(uint64_t word) { position_ = V::Add64(V::Set64(word * kDigestGolden), lanes_); }
  void Add(typename V::Int words) {
    sum_ = V::Add64(sum_, Mix(words));
    position_ = V::Add64(position_, step_);
  }
  // Only the first `bytes` bytes count; the words they are in are zero-padded already.
  void AddPartial(typename V::Int words, int64_t bytes) {
    alignas(V::kStep) uint64_t mixed[kWords];
    V::Store(reinterpret_cast<std::byte*>(mixed), Mix(words));
    for (int64_t i = 0; i * 8 < bytes; ++i) partial_ += mixed[i];
  }
  uint64_t Total() const {
    alignas(V::kStep) uint64_t lanes[kWords];
    V::Store(reinterpret_cast<std::byte*>(lanes), sum_);
    uint64_t total = partial_;
    for (uint64_t lane : lanes) total += lane;
    return total;
  }

 private:
  static constexpr uint64_t kWords = V::kStep / 8;

  typename V::Int Mix(typename V::Int words) const {  // DigestMix on every lane
    typename V::Int x = V::Add64(words, position_);
    x = V::Mul64(V::Xor(x, V::template Shr64<33>(x)), 0xff51afd7ed558ccdull);
    x = V::Mul64(V::Xor(x, V::template Shr64<33>(x)), 0xc4ceb9fe1a85ec53ull);
    return V::Xor(x, V::template Shr64<33>(x));
  }

  typename V::Int sum_, position_, step_, lanes_;
  uint64_t partial_ = 0;
};

// E4M3 codes of fp32 lanes, one per 32-bit lane. With 2^e the power of two at or below |y| (at least 2^-6, where codes
// turn subnormal), neighbouring codes lie 2^(e-3) apart. That is the last bit of 2^(e+20) in fp32, so adding the two
// rounds |y| to nearest even and leaves n = |y| / 2^(e-3) in the low bits; the code is 8 * (e + 6) + n. The exponent
// field of 2^e, shifted down to bit 3, is 8 * (e + 127) = 8 * (e + 6) + 968, and 968 + 56 is a multiple of 128: 56 more
// in the addend (even, so ties are as they were) cancels it in the seven bits that are kept.
template <class V>
[[gnu::always_inline]] inline typename V::Int EncodeLanes(typename V::Float y) {
  const typename V::Int bits = V::AsInt(y);
  const typename V::Int abs = V::Min32(V::And(bits, V::Set32(0x7FFFFFFF)), V::Set32(0x43E00000));   // 448
  const typename V::Int power = V::And(V::Max32(abs, V::Set32(0x3C800000)), V::Set32(0x7F800000));  // 2^-6
  const typename V::Float rounder = V::AsFloat(V::Add32(power, V::Set32((20u << 23) + 56)));
  const typename V::Int rounded = V::AsInt(V::AddF(V::AsFloat(abs), rounder));
  const typename V::Int code = V::Add32(rounded, V::template Shr32<20>(power));
  return V::Select(V::Set32(0x7F), code, V::template Shr32<24>(bits));  // the sign from bit 31
}

// Both stay inline: as calls they would reload a dozen constants for every step.
template <class V, class Source>
[[gnu::always_inline]] inline typename V::Int EncodeStep(const std::byte* in, typename V::Float multiply) {
  typename V::Float x[4];
  typename V::Int codes[4];
  Source::Load(in, x);
  for (int i = 0; i < 4; ++i) codes[i] = EncodeLanes<V>(V::MulF(x[i], multiply));
  return Source::Pack(codes);
}

template <class V>
typename V::Int LoadPartial(const std::byte* in, int64_t bytes) {
  alignas(V::kStep) std::byte padded[V::kStep] = {};
  std::memcpy(padded, in, static_cast<size_t>(bytes));
  return V::Load(padded);
}

template <class V>
void StorePartial(std::byte* out, typename V::Int v, int64_t bytes) {
  alignas(V::kStep) std::byte whole[V::kStep];
  V::Store(whole, v);
  std::memcpy(out, whole, static_cast<size_t>(bytes));
}

template <class V, class Source>
[[gnu::noinline]] typename V::Int EncodePartialStep(const std::byte* in, int64_t cols, typename V::Float multiply) {
  alignas(V::kStep) std::byte padded[V::kStep * Source::kBytes] = {};
  std::memcpy(padded, in, static_cast<size_t>(cols * Source::kBytes));
  return EncodeStep<V, Source>(padded, multiply);
}

// To the second-level cache: the first holds what is being worked on. An address past the end does no harm.
template <int64_t kBytes>
[[gnu::always_inline]] inline void Prefetch(const std::byte* p) {
  for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Runs `step(col)` for every whole step of [col, end) and then `rest(col, bytes)` for what is left.
template <class V, class Step, class Rest>
[[gnu::always_inline]] inline void ForEachStep(int64_t col, int64_t end, Step step, Rest rest) {
  for (; col + V::kStep <= end; col += V::kStep) step(col);
  if (col < end) rest(col, end - col);
}

template <class V, class Source>
uint64_t Encode(const Rows& job, const float* multiply) {
  DigestSum<V> digest;
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    std::byte* out = job.out + row * job.out_pitch;
    digest.StartAt(job.first_word + static_cast<uint64_t>(row) * job.words_per_row);
    for (int64_t col = 0; col < job.cols; col += job.block_cols) {
      const typename V::Float factor = V::SetF(multiply[col / job.block_cols]);
      const auto step = [&](int64_t c) {
        const typename V::Int codes = EncodeStep<V, Source>(in + c * Source::kBytes, factor);
        Prefetch<V::kStep * Source::kBytes>(in + c * Source::kBytes + job.ahead);
        V::Store(out + c, codes);
        digest.Add(codes);
      };
      const auto rest = [&](int64_t c, int64_t cols) {
        const typename V::Int codes = EncodePartialStep<V, Source>(in + c * Source::kBytes, cols, factor);
        StorePartial<V>(out + c, codes, cols);
        digest.AddPartial(codes, cols);
      };
      ForEachStep<V>(col, Least(col + job.block_cols, job.cols), step, rest);
    }
  }
  return digest.Total();
}

enum class Output { kNone, kCached, kStreamed };

template <class V, Output kOutput>
uint64_t Digest(const Rows& job) {
  DigestSum<V> digest;
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    std::byte* out = kOutput == Output::kNone ? nullptr : job.out + row * job.out_pitch;
    digest.StartAt(job.first_word + static_cast<uint64_t>(row) * job.words_per_row);
    const auto step = [&](int64_t c) {
      const typename V::Int words = V::Load(in + c);
      Prefetch<V::kStep>(in + c + job.ahead);
      if constexpr (kOutput == Output::kCached) V::Store(out + c, words);
      if constexpr (kOutput == Output::kStreamed) V::Stream(out + c, words);
      digest.Add(words);
    };
    const auto rest = [&](int64_t c, int64_t bytes) {
      const typename V::Int words = LoadPartial<V>(in + c, bytes);
      if constexpr (kOutput != Output::kNone) StorePartial<V>(out + c, words, bytes);
      digest.AddPartial(words, bytes);
    };
    ForEachStep<V>(0, job.cols, step, rest);
  }
  if constexpr (kOutput == Output::kStreamed) V::Fence();  // streamed stores are not ordered by a later release
  return digest.Total();
}

template <class V, class Element>
uint32_t LargestLane(typename V::Int v) {
  alignas(V::kStep) Element lanes[V::kStep / sizeof(Element)];
  V::Store(reinterpret_cast<std::byte*>(lanes), v);
  Element largest = 0;
  for (Element lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

template <class V, class Element>
void Max(const Rows& job, uint64_t mask, uint32_t* largest) {
  const typename V::Int masks = V::Set64(mask);
  typename V::Int max[kMaxBlocks];
  for (typename V::Int& block : max) block = V::Set64(0);
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    for (int64_t col = 0; col < job.cols; col += job.block_cols) {
      typename V::Int& block = max[col / job.block_cols];
      typename V::Int found = block;
      const auto take = [&](typename V::Int x) { found = V::template Max<Element>(found, V::And(x, masks)); };
      ForEachStep<V>(
          col, Least(col + job.block_cols, job.cols), [&](int64_t c) { take(V::Load(in + c)); },
          [&](int64_t c, int64_t bytes) { take(LoadPartial<V>(in + c, bytes)); });
      block = found;
    }
  }
  for (int64_t i = 0; i * job.block_cols < job.cols; ++i) largest[i] = LargestLane<V, Element>(max[i]);
}

template <class V>
void Read2Write1(const std::byte* in, std::byte* out, int64_t out_bytes) {
  int64_t i = 0;
  for (; i + V::kStep <= out_bytes; i += V::kStep) {
    V::Store(out + i, V::Xor(V::Load(in + 2 * i), V::Load(in + 2 * i + V::kStep)));
  }
  for (; i < out_bytes; ++i) out[i] = in[2 * i] ^ in[2 * i + 1];
}

template <class V>
constexpr Loops MakeLoops(const char* name) {
  return {
      .name = name,
      .max_8 = Max<V, uint8_t>,
      .max_16 = Max<V, uint16_t>,
      .max_32 = Max<V, uint32_t>,
      .encode_bf16 = Encode<V, typename V::Bf16>,
      .encode_f16 = Encode<V, typename V::F16>,
      .encode_f32 = Encode<V, typename V::F32>,
      .digest = Digest<V, Output::kNone>,
      .copy_and_digest = Digest<V, Output::kCached>,
      .stream_and_digest = Digest<V, Output::kStreamed>,
      .read_2_write_1 = Read2Write1<V>,
  };
}

}  // namespace
}  // namespace wsync::simd

#endif  // WSYNC_KERNELS_SIMD_LOOPS_H_
