// Layer normalisation of a product: mean and variance over its 4H+1 rows, the detector's included. Gains come later.
#pragma once

#include <cmath>

#include "problem.h"

namespace hmrnn {

constexpr double LAYER_NORM_EPS = 1e-2;  // as in reference.py, which says why

template <class T>
struct RowStatistics {
  T mean, rstd;
};

// Mean and sum of squared deviations of the gate rows of one panel, (GATES, LANES) of which `lanes` units are there.
template <class T>
void measure(const T* row, int lanes, T* result) {
  constexpr int W = LANES<T>;
  Vec<T> total{}, squares{};
  for (int q = 0; q < GATES; ++q) total += load(row + q * W, lanes);
  const T mean = sum<T>(total) / (GATES * lanes);
  T ones[W];
  for (int j = 0; j < W; ++j) ones[j] = j < lanes;
  for (int q = 0; q < GATES; ++q) {
    const Vec<T> d = (load(row + q * W, lanes) - mean) * load(ones);
    squares += d * d;
  }
  result[0] = mean;
  result[1] = sum<T>(squares);
}

// Of all rows of a layer. parts: (panels, 2) by `measure`; detector: the last row.
template <class T>
RowStatistics<T> combine(const LayerWeights<T>& layer, const T* parts, T detector) {
  double total = detector, squares = 0;
  for (int64_t panel = 0; panel < layer.panels(); ++panel)
    total += double(parts[2 * panel]) * (GATES * layer.width(panel));
  const double mean = total / layer.rows();
  for (int64_t panel = 0; panel < layer.panels(); ++panel) {
    const double d = parts[2 * panel] - mean;
    squares += parts[2 * panel + 1] + GATES * layer.width(panel) * d * d;
  }
  squares += (detector - mean) * (detector - mean);
  return {T(mean), T(1 / std::sqrt(squares / layer.rows() + LAYER_NORM_EPS))};
}

// Normalises rows (n, R) in place, with one deviation each.
template <class T>
void normalise(T* rows, T* rstd, int64_t n, int64_t R) {
  parallel_for(n, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      T* row = rows + i * R;
      Vec<T> total{}, squares{};
      for (int64_t r = 0; r < R; r += LANES<T>) total += load(row + r, int(std::min<int64_t>(LANES<T>, R - r)));
      const T mean = sum<T>(total) / R;
      T tail = 0;
      int64_t r = 0;
      for (; r + LANES<T> <= R; r += LANES<T>) {
        const Vec<T> d = load(row + r) - mean;
        squares += d * d;
      }
      for (; r < R; ++r) tail += (row[r] - mean) * (row[r] - mean);
      rstd[i] = T(1 / std::sqrt(double(sum<T>(squares) + tail) / R + LAYER_NORM_EPS));
      for (r = 0; r < R; ++r) row[r] = (row[r] - mean) * rstd[i];
    }
  });
}

}  // namespace hmrnn
