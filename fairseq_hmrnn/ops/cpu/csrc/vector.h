// Vectors of the widest register the compiler was given, and the nonlinearities of the cell on them.
#pragma once

#include <cstdint>
#include <cstring>

// Of a function that there is once: inlined, or cloned for a constant argument, the compiler would round some of its
// products and fuse others.
#if defined(__clang__)  // clones none, and does not know the word
#define HMRNN_ONE_INSTANCE __attribute__((noinline))
#else
#define HMRNN_ONE_INSTANCE __attribute__((noinline, noclone))
#endif

// Of a loop whose sums fill the registers: inlined, the compiler kept some of them on the stack.
#define HMRNN_OWN_REGISTERS __attribute__((noinline))

namespace hmrnn {

// VECTOR_BYTES: one register. TILE_ROWS: most rows of a product that are computed at once. TILE_SUMS: registers that hold
// their sums; the others are for operands.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 6, TILE_SUMS = 24;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6, TILE_SUMS = 12;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 6, TILE_SUMS = 24;
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 2, TILE_SUMS = 8;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n lanes; the others are 0 (load) or left alone (store).
template <class T>
inline Vec<T> load(const T* p, int n) {
  if (n >= LANES<T>) return load(p);
  Vec<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v, int n) {
  if (n >= LANES<T>)
    store(p, v);
  else
    std::memcpy(p, &v, n * sizeof(T));
}

// The sum of the first N lanes of vectors of N lanes, by halves.
template <class T, int N, class V>
inline T sum_lanes(V v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    typedef T Half __attribute__((vector_size(sizeof(T) * (N / 2))));
    Half halves[2];
    std::memcpy(halves, &v, sizeof v);
    const Half both = halves[0] + halves[1];
    return sum_lanes<T, N / 2>(both);
  }
}

template <class T>
inline T sum(Vec<T> v) {
  return sum_lanes<T, LANES<T>>(v);
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float low = -87.f, high = 88.f, magic = 12582912.f, ln2_high = 0.693359375f,
                         ln2_low = -2.12194440e-4f;
  static constexpr int shift = 23, terms = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double low = -708., high = 709., magic = 6755399441055744., ln2_high = 6.93145751953125e-1,
                          ln2_low = 1.42860682030941723212e-6;
  static constexpr int shift = 52, terms = 13;
};

// e^x: x = n ln2 + r, a Taylor sum for e^r on |r| < 0.35, and 2^n added to the exponent. NaN stays NaN.
template <class T>
inline Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename VectorOf<T>::bits;
  Vec<T> y = x < splat<T>(C::low) ? splat<T>(C::low) : x;
  y = y > splat<T>(C::high) ? splat<T>(C::high) : y;
  const Vec<T> shifted = y * T(1.4426950408889634) + T(C::magic);  // n in the low bits
  const Vec<T> n = shifted - T(C::magic);
  const Vec<T> r = (y - n * T(C::ln2_high)) - n * T(C::ln2_low);
  T factorial = 1;
  for (int k = 2; k <= C::terms; ++k) factorial *= k;
  Vec<T> p = splat<T>(1 / factorial);
#pragma GCC unroll 16
  for (int k = C::terms; k > 0; --k) {
    factorial /= k;
    p = p * r + 1 / factorial;
  }
  const Vec<T> result = (Vec<T>)((Bits)p + ((Bits)shifted << C::shift));
  return x == x ? result : x;
}

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

// Exact to about a unit of rounding of 1; near 0, where the difference cancels, that is more of a small result.
template <class T>
inline Vec<T> tanh(Vec<T> x) {
  return T(1) - T(2) / (exp<T>(x + x) + T(1));
}

template <class T>
inline T dot(const T* a, const T* b, int64_t n) {
  constexpr int W = LANES<T>;
  Vec<T> sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W)
    for (int i = 0; i < 4; ++i) sums[i] += load(a + k + i * W) * load(b + k + i * W);
  for (; k < n; k += W) {
    const int width = n - k < W ? int(n - k) : W;
    sums[0] += load(a + k, width) * load(b + k, width);
  }
  return sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// y += a x
template <class T>
inline void add_scaled(T* y, T a, const T* x, int64_t n) {
  constexpr int W = LANES<T>;
  for (int64_t k = 0; k < n; k += W) {
    const int width = n - k < W ? int(n - k) : W;
    store(y + k, load(y + k, width) + a * load(x + k, width), width);
  }
}

}  // namespace hmrnn
