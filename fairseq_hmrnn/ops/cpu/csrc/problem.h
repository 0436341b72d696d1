// The input of one call.
#pragma once

#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cell.h"
#include "memory.h"

namespace hmrnn {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

enum Product { RECURRENT, TOP_DOWN, BOTTOM_UP, PRODUCTS };
enum Mode { STEP, BERNOULLI, SOFT };

struct Options {
  double slope = 1, detector_grad_scale = 1;
  int mode = STEP;
  bool nested = false, top = false;
  bool skip = true;  // false: compute what COPY and closed gates make superfluous, for tests; the bits are the same
};

// Numbers that a detector's hidden layer multiplies for all members of a cell, from which on each thread computes a
// share of them at the price of a barrier: half of them take longer than one thread waits for another.
constexpr int64_t HIDDEN_SHARED_FROM = 200000;

template <class T>
struct LayerWeights {
  int64_t size = 0;
  const T* weight[PRODUCTS] = {};  // (4H+1, columns), TOP_DOWN null for the top layer
  int64_t columns[PRODUCTS] = {};
  const T* gain[PRODUCTS] = {};
  const T* bias = nullptr;
  // The detector's hidden layer: weight (detector_units, columns_read), bias and output (detector_units).
  int64_t detector_units = 0;  // 0 without one
  const T *hidden_weight = nullptr, *hidden_bias = nullptr, *hidden_output = nullptr;

  int64_t rows() const { return GATES * size + 1; }
  int64_t columns_read() const { return columns[RECURRENT] + columns[TOP_DOWN] + columns[BOTTOM_UP]; }
  // Numbers multiplied for some samples by what is recurrent in the gates, and by the detector's hidden layer.
  int64_t gate_products(int64_t samples) const { return samples * GATES * size * size; }
  int64_t hidden_products(int64_t samples) const { return samples * detector_units * columns_read(); }
  int64_t panels() const { return ceil_div(size, LANES<T>); }
  // Units of a panel: LANES, but for the last one.
  int width(int64_t panel) const { return int(std::min<int64_t>(LANES<T>, size - panel * LANES<T>)); }
};

template <class T>
struct Problem {
  int64_t T_ = 0, B = 0, L = 0;
  Options options;
  bool layer_norm = false;
  std::vector<LayerWeights<T>> layers;
  const T* x = nullptr;             // (T, B, input), or with `tokens` a table (symbols, input)
  const int64_t* tokens = nullptr;  // (T, B): the row of the table that a step reads; null: x has its own
  const bool* valid = nullptr;      // (T, B) or null
  const T* noise = nullptr;         // (T, B, L) or null
  std::vector<const T*> mask;       // (B, H) per layer, or null
  std::vector<const T*> h0, c0;     // (B, H) per layer
  const T* z0 = nullptr;            // (B, L)

  bool has_detector(int64_t l) const { return l + 1 < L || options.top; }
  bool has_detector_hidden() const {
    return std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.detector_units > 0; });
  }
  bool is_valid(int64_t t, int64_t b) const { return !valid || valid[t * B + b]; }
  // The input of layer 1 at a step.
  int64_t input_row(int64_t t, int64_t b) const { return tokens ? tokens[t * B + b] : t * B + b; }
  const T* input(int64_t t, int64_t b) const { return x + input_row(t, b) * layers[0].columns[BOTTOM_UP]; }
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
  // Numbers that the threads of a cell multiply together, for all samples; on the way back detectors' hidden layers are
  // no part of it.
  int64_t products_per_cell(bool backward = false) const {
    int64_t most = 0;
    for (const auto& layer : layers) {
      const int64_t hidden = layer.hidden_products(B);
      const bool shared = !backward && (layer_norm || hidden >= HIDDEN_SHARED_FROM);
      most = std::max(most, layer.gate_products(B) + (shared ? hidden : 0));
    }
    return most;
  }
  int64_t most_panels() const {
    int64_t most = 1;
    for (const auto& layer : layers) most = std::max(most, layer.panels());
    return most;
  }
};

// A pooled buffer as a tensor, which gives it back at the end of its life.
inline Tensor tensor_of(std::shared_ptr<Buffer> buffer, at::IntArrayRef sizes, at::TensorOptions options) {
  return at::from_blob(buffer->as<void>(), sizes, [buffer](void*) {}, options);
}

// An uninitialised tensor; a large one from the pool, for new memory would have to be cleared page by page.
inline Tensor pooled(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = size_t(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (bytes < (size_t(1) << 16)) return at::empty(sizes, options);
  return tensor_of(std::make_shared<Buffer>(bytes), sizes, options);
}
inline Tensor pooled_like(const Tensor& tensor) { return pooled(tensor.sizes(), tensor.options()); }

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

}  // namespace hmrnn
