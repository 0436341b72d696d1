// The hidden layer that a detector may have, eq. (2a) of ops/README.md: what it adds to u. Once du is known its
// gradients are products of tall matrices, which Python asks for (ops/detector.py).
#pragma once

#include <algorithm>

#include "forward_call.h"

namespace hmrnn {

// Columns [first, last) of a row.
struct Columns {
  int64_t first, last;
};

// sums[i] = rows[i] . a over some columns, for COUNT rows that lie `stride` apart: each element of `a` is loaded once
// for all of them.
template <int COUNT, class T>
inline void dot_rows(const T* rows, int64_t stride, const T* a, const Columns* columns, int ranges, T* sums) {
  constexpr int W = LANES<T>;
  Vec<T> acc[COUNT][2] = {};
  for (int range = 0; range < ranges; ++range) {
    const int64_t last = columns[range].last;
    int64_t k = columns[range].first;
    for (; k + 2 * W <= last; k += 2 * W) {
      const Vec<T> a0 = load(a + k), a1 = load(a + k + W);
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; ++i) {
        acc[i][0] += a0 * load(rows + i * stride + k);
        acc[i][1] += a1 * load(rows + i * stride + k + W);
      }
    }
    for (; k < last; k += W) {
      const int lanes = last - k < W ? int(last - k) : W;
      const Vec<T> a0 = load(a + k, lanes);
      for (int i = 0; i < COUNT; ++i) acc[i][0] += a0 * load(rows + i * stride + k, lanes);
    }
  }
  for (int i = 0; i < COUNT; ++i) sums[i] = sum<T>(acc[i][0] + acc[i][1]);
}

template <class T, class S>
class DetectorHidden {
 public:
  DetectorHidden(const ForwardCall<T, S>& call, const ForwardCells<T>& at) : call_(call), p_(call.problem), at_(at) {
    int64_t most = 0;
    for (const auto& layer : p_.layers) most = std::max(most, layer.detector_units ? layer.columns_read() : 0);
    read_.resize(most);
  }

  // Whether threads that own units are to share the members of a cell of layer l; a meeting that is there anyway is
  // free. The same for every thread.
  bool worth_sharing(int64_t l, bool meets_anyway) const {
    const auto& layer = p_.layers[l];
    if (!layer.detector_units) return false;
    return meets_anyway || layer.hidden_products(int64_t(at_.members.size())) >= HIDDEN_SHARED_FROM;
  }

  // What the hidden layer adds to u of a sample's cell, whoever computes it; a closed product is left out.
  HMRNN_ONE_INSTANCE T term(int64_t l, int64_t b) {
    const auto& layer = p_.layers[l];
    const int64_t N = layer.detector_units, stride = layer.columns_read();
    const T* given = l == 0 ? call_.input_terms + p_.input_row(at_.t[b], b) * N : nullptr;
    const int ranges = gather(l, b);
    T u = 0;
    for (int64_t n = 0; n < N;) {
      T sums[ROWS];
      const T* rows = layer.hidden_weight + n * stride;
      const int count = N - n < ROWS ? 1 : ROWS;
      if (count == ROWS)
        dot_rows<ROWS>(rows, stride, read_.data(), open_, ranges, sums);
      else
        dot_rows<1>(rows, stride, read_.data(), open_, ranges, sums);
      for (int i = 0; i < count; ++i, ++n) {
        const T unit = layer.hidden_bias[n] + sums[i] + (given ? given[n] : T(0));
        u += layer.hidden_output[n] * (unit < 0 ? T(0) : unit);  // NaN stays NaN
      }
    }
    return u;
  }

 private:
  static constexpr int ROWS = 4;

  // Writes what the hidden layer reads of the open products, gates and mask applied, and the columns that it takes.
  // Layer 1's input has been multiplied before.
  int gather(int64_t l, int64_t b) {
    const auto& layer = p_.layers[l];
    const int64_t i = l * p_.B + b, H = layer.size, above = layer.columns[TOP_DOWN];
    std::copy_n(at_.h_read[i], H, read_.data());
    open_[0] = {0, H};
    int ranges = 1;
    if (above && at_.zp[b] != 0) {
      write_scaled(at_.zp[b], at_.h[i + p_.B], above, H);
      open_[0].last = H + above;
    }
    if (l > 0 && at_.zb[b] != 0) {
      const int64_t first = H + above, last = layer.columns_read();
      write_scaled(at_.zb[b], at_.h[i - p_.B], last - first, first);
      if (open_[0].last == first)
        open_[0].last = last;
      else
        open_[ranges++] = {first, last};
    }
    return ranges;
  }

  void write_scaled(T factor, const T* from, int64_t count, int64_t to) {
    for (int64_t k = 0; k < count; ++k) read_[to + k] = factor * from[k];
  }

  const ForwardCall<T, S>& call_;
  const Problem<T>& p_;
  const ForwardCells<T>& at_;
  std::vector<T> read_;  // of one sample: (H + H_above + H_below)
  Columns open_[2];
};

}  // namespace hmrnn
