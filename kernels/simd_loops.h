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
typename V::Int EncodeLanes(typename V::Float y) {
  const typename V::Int bits = V::AsInt(y);
  const typename V::Int abs = V::Min32(V::And(bits, V::Set32(0x7FFFFFFF)), V::Set32(0x43E00000));   // 448
  const typename V::Int power = V::And(V::Max32(abs, V::Set32(0x3C800000)), V::Set32(0x7F800000));  // 2^-6
  const typename V::Float rounder = V::AsFloat(V::Add32(power, V::Set32((20u << 23) + 56)));
  const typename V::Int rounded = V::AsInt(V::AddF(V::AsFloat(abs), rounder));
  const typename V::Int code = V::Add32(rounded, V::template Shr32<20>(power));
  return V::Select(V::Set32(0x7F), code, V::template Shr32<24>(bits));  // the sign from bit 31
}

template <class V, class Source>
typename V::Int EncodeStep(const std::byte* in, typename V::Float multiply) {
  typename V::Float x[4];
  typename V::Int codes[4];
  Source::Load(in, x);
  for (int i = 0; i < 4; ++i) codes[i] = EncodeLanes<V>(V::MulF(x[i], multiply));
  return Source::Pack(codes);
}

// The last, short step of a row, read from and written to padded copies.
template <class V, class Source>
void EncodePartialStep(const std::byte* in, int64_t count, typename V::Float multiply, std::byte* out,
                       DigestSum<V>& digest) {
  alignas(V::kStep) std::byte padded[V::kStep * Source::kBytes] = {};
  alignas(V::kStep) std::byte codes[V::kStep];
  std::memcpy(padded, in, static_cast<size_t>(count * Source::kBytes));
  const typename V::Int step = EncodeStep<V, Source>(padded, multiply);
  V::Store(codes, step);
  std::memcpy(out, codes, static_cast<size_t>(count));
  digest.AddPartial(step, count);
}

template <class V, class Source>
uint64_t Encode(const Rows& job) {
  DigestSum<V> digest;
  const typename V::Float multiply = V::SetF(job.multiply);
  const int64_t whole = job.cols - job.cols % V::kStep;
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    std::byte* out = job.out + row * job.out_pitch;
    digest.StartAt(job.first_word + static_cast<uint64_t>(row) * job.words_per_row);
    for (int64_t col = 0; col < whole; col += V::kStep) {
      const typename V::Int codes = EncodeStep<V, Source>(in + col * Source::kBytes, multiply);
      V::Store(out + col, codes);
      digest.Add(codes);
    }
    if (whole < job.cols) {
      EncodePartialStep<V, Source>(in + whole * Source::kBytes, job.cols - whole, multiply, out + whole, digest);
    }
  }
  return digest.Total();
}

template <class V, bool kCopy>
uint64_t Digest(const Rows& job) {
  DigestSum<V> digest;
  const int64_t whole = job.cols - job.cols % V::kStep;
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    std::byte* out = kCopy ? job.out + row * job.out_pitch : nullptr;
    digest.StartAt(job.first_word + static_cast<uint64_t>(row) * job.words_per_row);
    for (int64_t col = 0; col < whole; col += V::kStep) {
      const typename V::Int words = V::Load(in + col);
      if constexpr (kCopy) V::Store(out + col, words);
      digest.Add(words);
    }
    if (whole < job.cols) {
      alignas(V::kStep) std::byte padded[V::kStep] = {};
      std::memcpy(padded, in + whole, static_cast<size_t>(job.cols - whole));
      if constexpr (kCopy) std::memcpy(out + whole, padded, static_cast<size_t>(job.cols - whole));
      digest.AddPartial(V::Load(padded), job.cols - whole);
    }
  }
  return digest.Total();
}

template <class V, class Element>
uint32_t Max(const Rows& job, uint64_t mask) {
  const typename V::Int masks = V::Set64(mask);
  typename V::Int max = V::Set64(0);
  const int64_t whole = job.cols - job.cols % V::kStep;
  for (int64_t row = 0; row < job.rows; ++row) {
    const std::byte* in = job.source + row * job.source_pitch;
    for (int64_t col = 0; col < whole; col += V::kStep) {
      max = V::template Max<Element>(max, V::And(V::Load(in + col), masks));
    }
    if (whole < job.cols) {
      alignas(V::kStep) std::byte padded[V::kStep] = {};
      std::memcpy(padded, in + whole, static_cast<size_t>(job.cols - whole));
      max = V::template Max<Element>(max, V::And(V::Load(padded), masks));
    }
  }
  alignas(V::kStep) Element lanes[V::kStep / sizeof(Element)];
  V::Store(reinterpret_cast<std::byte*>(lanes), max);
  Element largest = 0;
  for (Element lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
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
      .digest = Digest<V, false>,
      .copy_and_digest = Digest<V, true>,
      .read_2_write_1 = Read2Write1<V>,
  };
}

}  // namespace
}  // namespace wsync::simd

#endif  // WSYNC_KERNELS_SIMD_LOOPS_H_
