// What one call works on, and what the forward pass saves for the backward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "product.h"

namespace hmrnn {

enum Product { RECURRENT, TOP_DOWN, BOTTOM_UP, PRODUCTS };
enum Mode { STEP, BERNOULLI, SOFT };

struct Options {
  double slope = 1, detector_grad_scale = 1;
  int mode = STEP;
  bool nested = false, top = false;
  bool skip = true;  // false: compute what COPY and closed gates make superfluous, for tests; the bits are the same
};

template <class T>
struct LayerWeights {
  int64_t size = 0;
  const T* weight[PRODUCTS] = {};  // (4H+1, columns), TOP_DOWN null for the top layer
  int64_t columns[PRODUCTS] = {};
  const T* gain[PRODUCTS] = {};
  const T* bias = nullptr;
  const T* packed[PRODUCTS] = {};  // by pack_gates, or null

  int64_t rows() const { return 4 * size + 1; }
  int64_t panels() const { return ceil_div(size, LANES<T>); }
};

template <class T>
struct Problem {
  int64_t T_ = 0, B = 0, L = 0;
  Options options;
  bool layer_norm = false;
  std::vector<LayerWeights<T>> layers;
  const T* x = nullptr;           // (T, B, input)
  const bool* valid = nullptr;    // (T, B) or null
  const T* noise = nullptr;       // (T, B, L) or null
  std::vector<const T*> mask;     // (B, H) per layer, or null
  std::vector<const T*> h0, c0;   // (B, H) per layer
  const T* z0 = nullptr;          // (B, L)

  bool has_detector(int64_t l) const { return l + 1 < L || options.top; }
  bool is_valid(int64_t t, int64_t b) const { return !valid || valid[t * B + b]; }
  // Layer normalisation mixes the detector's gradient into every row: with it, no step is without gate gradients.
  bool copy_has_gate_gradients() const { return layer_norm && options.detector_grad_scale != 0; }

  T probability(T u) const {
    const T p = (T(options.slope) * u + 1) / 2;
    return p < 0 ? T(0) : (p > 1 ? T(1) : p);
  }
  T decide(T z_tilde, int64_t t, int64_t b, int64_t l) const {
    if (options.mode == SOFT) return z_tilde;
    return z_tilde > (options.mode == STEP ? T(0.5) : noise[(t * B + b) * L + l]) ? T(1) : T(0);
  }
  int64_t products_per_cell() const {
    int64_t most = 0;
    for (const auto& layer : layers) most = std::max(most, B * 4 * layer.size * layer.size);
    return most;
  }
};

constexpr int FROZEN = -1;

// One layer of what the backward pass needs. A slot holds one active step of one sample; a copy slot holds one run of
// COPY steps of one sample, in which everything is constant.
struct SavedLayer {
  std::vector<int> slot;          // (T, B): slot, copy slot or FROZEN
  std::vector<int> step, sample;  // of each slot
  std::vector<int> previous;      // slot of the sample's active step before, or -1: the start state
  int64_t copies = 0;
  Buffer gates;         // (slots, panels, 5, LANES): f, i, o, g and c after the step
  Buffer coefficients;  // (copy slots, panels, 3, LANES): i g - c', i g + (f - 1) c', h' - o tanh(c')
  Buffer normalised[PRODUCTS];  // (slots, panels, 4, LANES): products, mean 0 and variance 1
  Buffer statistics;            // (slots, PRODUCTS, 2): 1 / deviation, the normalised detector row
  Buffer copy_statistics;       // (copy slots, 2): the same of the recurrent product

  int64_t slots() const { return int64_t(step.size()); }
};

struct Saved {
  std::vector<SavedLayer> layers;
  Buffer u;  // (T, L, B) argument of the hard sigmoid
  Buffer z;  // (T + 1, L, B) boundaries of the state, z[0] of the start
};

}  // namespace hmrnn
