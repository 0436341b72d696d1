// The input of one call, and the values that the forward pass saves for the backward pass.
#pragma once

#include <torch/extension.h>

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

template <class T>
struct LayerWeights {
  int64_t size = 0;
  const T* weight[PRODUCTS] = {};  // (4H+1, columns), TOP_DOWN null for the top layer
  int64_t columns[PRODUCTS] = {};
  const T* gain[PRODUCTS] = {};
  const T* bias = nullptr;

  int64_t rows() const { return GATES * size + 1; }
  int64_t panels() const { return ceil_div(size, LANES<T>); }
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
  int64_t products_per_cell() const {
    int64_t most = 0;
    for (const auto& layer : layers) most = std::max(most, B * GATES * layer.size * layer.size);
    return most;
  }
  int64_t most_panels() const {
    int64_t most = 1;
    for (const auto& layer : layers) most = std::max(most, layer.panels());
    return most;
  }
};

constexpr int FROZEN = -1;

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

// One layer of what the backward pass needs. A slot holds one active step of one sample; a copy slot holds one run of
// COPY steps of one sample, in which everything is constant. All of it plain tensors, so that autograd can keep them in
// its own way; the forward pass writes them through SavedRoom.
struct SavedLayer {
  Tensor index;             // (4, T B) int32: of each step its slot, copy slot or FROZEN; then of each slot its step, its
                            // sample, and the slot of the sample's active step before, -1 for the start state
  Tensor gates;             // (slots, panels, SAVED, LANES)
  Tensor copy_terms;        // (copy slots, panels, COPY_TERMS, LANES)
  Tensor normalised[PRODUCTS];  // (slots, panels, GATES, LANES): products, mean 0 and variance 1
  Tensor statistics;        // (slots, PRODUCTS, 2): 1 / deviation, the normalised detector row
  Tensor copy_statistics;   // (copy slots, 2): the same of the recurrent product

  static constexpr int TENSORS = 5 + PRODUCTS;

  template <class Visit>
  void visit(Visit visit) {
    for (Tensor* tensor : {&index, &gates, &copy_terms, &normalised[0], &normalised[1], &normalised[2], &statistics,
                           &copy_statistics})
      visit(*tensor);
  }
  int64_t slots() const { return gates.size(0); }
  int64_t steps() const { return index.size(1); }
  const int* slot() const { return index.data_ptr<int>(); }
  const int* step() const { return slot() + steps(); }
  const int* sample() const { return slot() + 2 * steps(); }
  const int* previous() const { return slot() + 3 * steps(); }
};

struct Saved {
  std::vector<SavedLayer> layers;
  Tensor u;  // (T, L, B) argument of the hard sigmoid
  Tensor z;  // (T + 1, L, B) boundaries of the state, z[0] of the start
  // Layer 1's bottom-up product of every step, or of every symbol, where it was computed for all at once:
  Tensor projected, projected_rstd;  // (., 4H+1), normalised with layer norm, and then (.)

  static constexpr int OWN = 4;

  template <class Visit>
  void visit(Visit visit) {
    for (Tensor* tensor : {&u, &z, &projected, &projected_rstd}) visit(*tensor);
    for (SavedLayer& layer : layers) layer.visit(visit);
  }

  // As autograd keeps it, and back.
  std::vector<MaybeTensor> flat() {
    std::vector<MaybeTensor> tensors;
    visit([&](Tensor& tensor) { tensors.push_back(tensor.defined() ? MaybeTensor(tensor) : std::nullopt); });
    return tensors;
  }
  static Saved of(const std::vector<MaybeTensor>& tensors) {
    Saved saved;
    saved.layers.resize((tensors.size() - OWN) / SavedLayer::TENSORS);
    size_t i = 0;
    saved.visit([&](Tensor& tensor) {
      if (tensors.at(i)) tensor = *tensors[i];
      ++i;
    });
    return saved;
  }
};

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

}  // namespace hmrnn
