// What the threads of a forward pass share: its tensors, and where each sample stands.
#pragma once

#include "problem.h"
#include "saved.h"
#include "team.h"

namespace hmrnn {

// S: the type of the products' operands, T or Pair.
template <class T, class S>
struct ForwardCall {
  Problem<T> problem;
  std::vector<SavedRoom<T>>* saved = nullptr;  // training if not null; one for each layer
  T *saved_u = nullptr, *saved_z = nullptr;    // as in Saved
  const T* projected = nullptr;      // (rows of x, 4H+1): layer 1's bottom-up product, normalised if layer_norm; or null
  const T* projected_rstd = nullptr; // (rows of x) with layer_norm
  const T* input_terms = nullptr;    // (rows of x, N): products with the hidden layer of layer 1's detector; or null
  T* hidden_terms = nullptr;         // (B): what hidden layers add to u, where threads share them; or null
  std::vector<const S*> packed;      // per layer and product: panels of a weight by pack_gates, or null
  std::vector<T*> hidden;            // (T, B, H) per layer
  T *boundaries = nullptr, *boundary_probs = nullptr;  // (T, B, L), filled with 0
  std::vector<T*> h, c;              // (B, H) per layer: final state; without `saved` c holds the start state
  T* z = nullptr;                    // (B, L)
  T* copy_u = nullptr;               // (B, L), in and out: u of the run of COPY steps that lasts, else NaN; or null
  std::vector<S*> to_pack;           // per layer and product: room for the panels of a weight without, or null
  std::vector<T*> masked;            // per layer (2, B, H), room for mask * h; or null
  T* statistics = nullptr;           // with layer_norm: (PRODUCTS, B, most panels, 2)
  int64_t most_panels = 0;
  bool by_samples = false;           // threads own samples, not units; without `saved`
  bool backwards = false;            // which way the last pass before this call went over a weight, see Share::at

  // The panels of units of a layer that a thread owns.
  Share own(const LayerWeights<T>& layer, int thread, int threads) const {
    return by_samples ? Share(layer.panels(), 0, 1) : Share(layer.panels(), thread, threads);
  }
  const T* projected_row(int64_t t, int64_t b) const {
    return projected + problem.input_row(t, b) * problem.layers[0].rows();
  }
};

// The cell that each sample has come to, and what it does there; (B) but for the rows of h. Each thread has its own.
template <class T>
struct ForwardCells {
  enum Kind { FROZEN_STEP, KEPT_COPY, FRESH_COPY, ACTIVE };

  std::vector<int64_t> t, layer;
  std::vector<Kind> kind;
  std::vector<T> zp, zb;            // z_prev and z_below
  std::vector<int> slot;            // where its gates are kept
  std::vector<int> members;         // the samples whose cells are computed now, all of one layer
  std::vector<const T*> h, h_read;  // (L, B): rows of h now, and what the recurrent product reads (masked)

  ForwardCells(int64_t B, int64_t L)
      : t(B, 0), layer(B, 0), kind(B), zp(B), zb(B), slot(B), h(L * B), h_read(L * B) {}
};

}  // namespace hmrnn
