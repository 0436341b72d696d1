// What the threads of a backward pass share: its tensors, and where each sample stands.
#pragma once

#include "problem.h"
#include "saved.h"
#include "team.h"

namespace hmrnn {

// S: the type of the products' operands, T or Pair.
template <class T, class S>
struct BackwardCall {
  Problem<T> problem;
  const Saved* saved = nullptr;
  std::vector<const T*> hidden;       // (T, B, H) per layer
  std::vector<const T*> grad_hidden;  // the same, or null
  const T *grad_boundaries = nullptr, *grad_probs = nullptr;  // (T, B, L) or null
  std::vector<T*> dh, dc;             // (B, H): in, of the final state; out, of the start state
  T* dz = nullptr;                    // (B, L), likewise
  // Per layer and product. products: (slots, 4H) gradient of the product's gate rows; without layer norm there is one
  // for all three, before the gates z_prev and z_below. rows: (columns) gradient of the weight's detector row.
  std::vector<T*> products, rows, gains;
  std::vector<T*> biases;             // (4H+1)
  T* symbols = nullptr;               // with tokens, (symbols, 4H): layer 1's bottom-up product by symbol
  T* du = nullptr;                    // (L, T, B), filled with 0: the gradient of every u; or null
  T* x_detector = nullptr;            // (rows of x): factor on layer 1's detector row in the gradient of x
  std::vector<const S*> weights;      // per layer and product: panels by pack_columns, or null
  std::vector<S*> to_pack;            // room for them (all panels or, with `pack_last_only`, the last one)
  bool pack_last_only = false;
  int64_t blocks = 0;                 // of PANEL units in the largest layer
  T* boundary_parts = nullptr;        // (3, B, blocks, PARTS)
  T* norm_parts = nullptr;            // (B, blocks, 2 * PRODUCTS)
  // Per layer: the top-down product, normalised with layer norm, of every h_above that some closed gate asks for,
  // (., 4H+1), and which of its rows each step asks for, (T, B), -1 for none.
  std::vector<const T*> closed;
  std::vector<std::vector<int>> closed_row;
  const T *saved_u = nullptr, *saved_z = nullptr;  // of `saved`

  void keep(const Saved& of) {
    saved = &of;
    saved_u = of.u.template data_ptr<T>();
    saved_z = of.z.template data_ptr<T>();
  }
  bool inside(T u) const {
    const T p = (T(problem.options.slope) * u + 1) / 2;
    return p >= 0 && p <= 1;
  }
  T u(int64_t t, int64_t l, int64_t b) const {
    return saved_u[(t * problem.L + l) * problem.B + b];
  }
  // Whether anything depends on the gradient of z at (t, l), t = -1 being the start state.
  bool needs_boundary_gradient(int64_t t, int64_t l, int64_t b) const {
    if (t < 0 || !problem.is_valid(t, b)) return true;
    return problem.has_detector(l) && (problem.options.nested || inside(u(t, l, b)));
  }
};

// The cell that each sample has come to, what was saved of it, and the gradients of its boundaries; (B) where nothing
// else is said. Each thread has its own.
template <class T, class S>
class BackwardCells {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;

 public:
  enum Kind { FROZEN_STEP, COPY, ACTIVE };
  // The gradient that a block of units sends to a sample's boundaries. Each part has one thread that writes it.
  enum Part { GATES_TO_Z_PREV, GATES_TO_Z_BELOW, TOP_DOWN_TO_Z_PREV, BOTTOM_UP_TO_Z_BELOW, PARTS };
  struct Range {
    int64_t first, last;
  };
  struct SavedPointers {  // of a SavedLayer
    const int *slot, *previous;
    const T *gates, *copy_terms, *statistics, *copy_statistics, *normalised[PRODUCTS];
  };

  BackwardCells(const BackwardCall<T, S>& of, int thread, int threads)
      : kappa(T(of.problem.options.detector_grad_scale)), t(of.problem.B, of.problem.T_ - 1),
        layer(of.problem.B, of.problem.L - 1), passed(of.problem.B, 0), kind(of.problem.B), slot(of.problem.B),
        zp(of.problem.B), zb(of.problem.B), du(of.problem.B), zp_extra(of.problem.B, 0), zb_extra(of.problem.B, 0),
        call_(of), p_(of.problem), B_(p_.B), thread_(thread), threads_(threads) {
    for (auto& d : detector) d.resize(B_);
    for (const SavedLayer& from : of.saved->layers)
      saved.push_back({from.slot(), from.previous(), pointer<T>(from.gates), pointer<T>(from.copy_terms),
                       pointer<T>(from.statistics), pointer<T>(from.copy_statistics),
                       {pointer<T>(from.normalised[0]), pointer<T>(from.normalised[1]),
                        pointer<T>(from.normalised[2])}});
  }

  // The own units of a layer, or columns of a weight.
  Share panels(int64_t units) const { return Share(ceil_div(units, P), thread_, threads_); }
  Range own(int64_t units) const {
    const Share share = panels(units);
    return {std::min(share.first * P, units), std::min(share.last * P, units)};
  }

  // The gradient that a block of units of the sample's cell `ago` cells before this one sends to its boundaries.
  T* boundary_part(int ago, int64_t b, int64_t block) const {
    return call_.boundary_parts + ((((passed[b] - ago) % 3) * B_ + b) * call_.blocks + block) * PARTS;
  }
  // Blocks of what a product sends to its input.
  int64_t blocks_sent(int64_t l, int product) const {
    const bool sends = p_.layers[l].weight[product] && (product != BOTTOM_UP || l > 0);
    return sends ? ceil_div(p_.layers[l].columns[product], P) : 0;
  }

  const T* h_prev(int64_t t, int64_t l, int64_t b) const {
    const int64_t H = p_.layers[l].size;
    return t ? call_.hidden[l] + ((t - 1) * B_ + b) * H : p_.h0[l] + b * H;
  }
  // The input of a product: h' (not yet masked), h_above or h_below.
  const T* input(int64_t t, int64_t l, int64_t b, int product) const {
    if (product == RECURRENT) return h_prev(t, l, b);
    if (product == TOP_DOWN) return h_prev(t, l + 1, b);
    if (l == 0) return p_.input(t, b);
    return call_.hidden[l - 1] + (t * B_ + b) * p_.layers[l - 1].size;
  }
  // Of a product's gate rows, of an active cell.
  T* product_gradient(int64_t l, int product, int64_t slot) const {
    return call_.products[l * PRODUCTS + product] + slot * GATES * p_.layers[l].size;
  }
  // With layer norm: the reciprocal of a product's deviation, and its normalised detector row.
  const T* statistics(int64_t l, int64_t slot, int product) const {
    return saved[l].statistics + (slot * PRODUCTS + product) * 2;
  }

  // The closed top-down term that the gradient of z_prev asks for, or null.
  const T* closed_term(int64_t t, int64_t l, int64_t b) const {
    if (!call_.closed[l]) return nullptr;
    const int row = call_.closed_row[l][t * B_ + b];
    return row < 0 ? nullptr : call_.closed[l] + row * p_.layers[l].rows();
  }

  const T kappa;  // on what a detector sends further than to itself
  std::vector<int64_t> t, layer, passed;  // passed: how many cells it has been through
  std::vector<Kind> kind;
  std::vector<int> slot;
  std::vector<T> zp, zb, du, zp_extra, zb_extra;  // extra: sent to z_prev and z_below other than by blocks of units
  std::vector<T> detector[PRODUCTS];  // gradient of the detector row of each product
  std::vector<int> here;              // the samples in a cell of the layer whose products are computed now
  std::vector<SavedPointers> saved;   // by layer

 private:
  const BackwardCall<T, S>& call_;
  const Problem<T>& p_;
  const int64_t B_;
  const int thread_, threads_;
};

}  // namespace hmrnn
