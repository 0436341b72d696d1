// Products of bfloat16 operands with float32 sums. Operands come in pairs of neighbouring k, so that one instruction does
// both where the processor has it and is fast at it; elsewhere they are widened to float32, from half its memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"
// Intel's processors with AVX512_FP16 have their speed in AMX: of vdpbf16ps an Emerald Rapids begins one in two cycles, of
// vfmadd two in each, twice as many products. Those of AMD up to Zen 5 have no AVX512_FP16.
#if defined(__AVX512BF16__) && defined(__AVX512F__) && !defined(__AVX512FP16__)
#define HMRNN_MULTIPLIES_PAIRS 1  // by one instruction
#include <immintrin.h>
#else
#define HMRNN_MULTIPLIES_PAIRS 0
#endif

namespace hmrnn {

// Two bfloat16 numbers: that of the even k in the low half, that of the odd k in the high half.
struct Pair {
  uint32_t bits;
};

template <>
struct VectorOf<Pair> {
  typedef uint32_t type __attribute__((vector_size(VECTOR_BYTES)));
};

// Whether tiles of a product read operands as float32 that were rounded to bfloat16, of each pair the odd k first. Rows
// are widened once, and weights once for all rows of a product, or as they are read where there are few.
template <class S>
constexpr bool WIDENED = std::is_same<S, Pair>::value && !HMRNN_MULTIPLIES_PAIRS;
template <class S>
using Factor = std::conditional_t<WIDENED<S>, float, S>;
template <class S>
constexpr int FACTORS = WIDENED<S> ? 2 : 1;  // in an element

// Element of an operand, and that of the sums of its products.
template <class S>
struct Operand {
  using Sum = S;
  static constexpr int STEP = 1;  // numbers in one element
};
template <>
struct Operand<Pair> {
  using Sum = float;
  static constexpr int STEP = 2;
};

// Elements that K numbers take; what is missing to a whole one is 0.
template <class S>
inline int64_t elements(int64_t K) {
  return (K + Operand<S>::STEP - 1) / Operand<S>::STEP;
}

// The high halves of the float32 numbers rounded to the nearest bfloat16, ties to even; NaN stays NaN.
inline Vec<Pair> round_to_bfloat16(Vec<float> x) {
  const Vec<Pair> bits = (Vec<Pair>)x;
  const Vec<Pair> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return ((Vec<Pair>)(x == x) & rounded) | ((Vec<Pair>)(x != x) & 0x7fc00000u);
}

inline uint32_t round_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : 0x7fc00000u;
}

inline Pair make_pair(float even, float odd) {
  return {(round_to_bfloat16(even) >> 16) | (round_to_bfloat16(odd) & 0xffff0000u)};
}
inline Vec<Pair> make_pair(Vec<float> even, Vec<float> odd) {
  return (round_to_bfloat16(even) >> 16) | (round_to_bfloat16(odd) & 0xffff0000u);
}

// K numbers side by side as pairs.
inline void make_pairs(const float* from, int64_t K, Pair* to) {
  typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
  constexpr int W = LANES<float>;
  auto* out = reinterpret_cast<char*>(to);
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    const Halves halves = __builtin_convertvector(round_to_bfloat16(load(from + k)) >> 16, Halves);
    std::memcpy(out + 2 * k, &halves, sizeof halves);
  }
  for (; k < K; k += 2) to[k / 2] = make_pair(from[k], k + 1 < K ? from[k + 1] : 0.f);
}

// Pairs of numbers one above the other, `count` of them, of rows of `length` numbers from there on; odd null: 0.
inline void make_pairs(const float* even, const float* odd, int64_t count, int64_t length, Pair* to) {
  constexpr int W = LANES<float>;
  int64_t i = 0;
  for (; i < count && i + W <= length; i += W) {
    const Vec<Pair> pairs = make_pair(load(even + i), odd ? load(odd + i) : Vec<float>{});
    if (i + W <= count)
      store(to + i, pairs);
    else
      std::memcpy(to + i, &pairs, (count - i) * sizeof(Pair));
  }
  for (; i < count; ++i) to[i] = make_pair(even[i], odd ? odd[i] : 0.f);
}

// `count` rows of `width` pairs as two rows each.
inline void widen(const Pair* from, int64_t count, int64_t width, float* to) {
  for (int64_t e = 0; e < count; ++e, from += width, to += 2 * width)
    for (int64_t i = 0; i < width; ++i) {
      const uint32_t odd = from[i].bits & 0xffff0000u, even = from[i].bits << 16;
      std::memcpy(to + i, &odd, sizeof odd);
      std::memcpy(to + width + i, &even, sizeof even);
    }
}

// Rounded to bfloat16 and widened again.
inline Vec<float> round_to_factors(Vec<float> x) { return (Vec<float>)(round_to_bfloat16(x) & 0xffff0000u); }

// K numbers side by side as widened pairs.
inline void make_factors(const float* from, int64_t K, float* to) {
  typedef uint64_t Both __attribute__((vector_size(VECTOR_BYTES)));
  constexpr int W = LANES<float>;
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    const Both both = (Both)round_to_factors(load(from + k));
    store(to + k, (Vec<float>)((both >> 32) | (both << 32)));
  }
  for (; k < K; k += 2) {
    const Pair pair = make_pair(from[k], k + 1 < K ? from[k + 1] : 0.f);
    widen(&pair, 1, 1, to + k);
  }
}

// The same in their order: `count` numbers of a row of `length` from there on; null: 0.
inline void round_row(const float* from, int64_t count, int64_t length, float* to) {
  constexpr int W = LANES<float>;
  for (int64_t i = 0; i < count; i += W) {
    const int lanes = int(std::min<int64_t>(W, count - i));
    Vec<float> factors{};
    if (from) factors = round_to_factors(i + W <= length ? load(from + i) : load(from + i, lanes));
    store(to + i, factors, lanes);
  }
}

// sum + x w over both numbers of the pairs.
inline Vec<float> multiply_add(Vec<float> sum, const float* odd_and_even, Vec<Pair> w) {
  sum += odd_and_even[0] * (Vec<float>)(w & 0xffff0000u);
  return sum + odd_and_even[1] * (Vec<float>)(w << 16);
}

inline Vec<float> multiply_add_portable(Vec<float> sum, Pair x, Vec<Pair> w) {
  float factors[2];
  widen(&x, 1, 1, factors);
  return multiply_add(sum, factors, w);
}

inline Vec<float> multiply_add(Vec<float> sum, Pair x, Vec<Pair> w) {
#if HMRNN_MULTIPLIES_PAIRS
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(x.bits)), (__m512bh)w);
#else
  return multiply_add_portable(sum, x, w);
#endif
}

template <class T>
inline Vec<T> multiply_add(Vec<T> sum, T x, Vec<T> w) {
  return sum + x * w;
}

// Element e of a row, as multiply_add takes it for a weight of S.
template <class S>
inline auto element(const Factor<S>* row, int64_t e) {
  if constexpr (WIDENED<S>)
    return row + 2 * e;
  else
    return row[e];
}

}  // namespace hmrnn
