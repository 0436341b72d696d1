// Equations (7) and (8) of one sample at one step, from the layers' terms: W_e[l] h[l], then the layer's part of each gate.
#pragma once

#include "cell.h"

namespace hmrnn {

// terms: per layer (E + L). gates (L): the sigmoid of what the layers' parts of each gate come to, eq. (7).
template <class T>
void open_gates(const std::vector<const T*>& terms, int64_t E, T* gates) {
  for (size_t gate = 0; gate < terms.size(); ++gate) {
    T sum = 0;
    for (const T* term : terms) sum += term[E + gate];
    gates[gate] = sigmoid<T>(splat(sum))[0];
  }
}

// Units first to last of h_e: the ReLU of the gated sum of terms, eq. (8).
template <class T>
void gated_sum(const std::vector<const T*>& terms, const T* gates, int64_t first, int64_t last, T* features) {
  constexpr int64_t W = LANES<T>;
  for (int64_t e = first; e < last; e += W) {
    const int lanes = int(std::min(W, last - e));
    Vec<T> sum{};
    for (size_t l = 0; l < terms.size(); ++l) sum += gates[l] * load(terms[l] + e, lanes);
    store(features + e, sum < T(0) ? Vec<T>{} : sum, lanes);
  }
}

}  // namespace hmrnn
