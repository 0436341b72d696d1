// The backward pass, by hand (ops/README.md derives it): every thread owns some units of every layer. A cell has two
// halves with a barrier between: gradients of the gates, and their products with the weights. What reaches a boundary is
// summed at the barrier of the sample's next cell, by blocks of PANEL units, so that threads do not change its bits.
//
// As in the forward pass samples do not wait for each other, but at active cells, which need products: a round takes all
// samples through their COPY cells, one each, or the samples of one layer through an active one.
#pragma once

#include "problem.h"
#include "saved.h"
#include "stopwatch.h"
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

template <class T, class S>
class BackwardWorker {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  enum Kind { FROZEN_STEP, COPY, ACTIVE };
  // The gradient that a block of units sends to a sample's boundaries. Each part has one thread that writes it.
  enum Part { GATES_TO_Z_PREV, GATES_TO_Z_BELOW, TOP_DOWN_TO_Z_PREV, BOTTOM_UP_TO_Z_BELOW, PARTS };

 public:
  BackwardWorker(const BackwardCall<T, S>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.problem), B_(p_.B), L_(p_.L), kappa_(T(p_.options.detector_grad_scale)),
        z_(call.saved_z), thread_(thread), threads_(threads), barrier_(barrier), carry_(L_ * B_),
        from_above_(B_, 0), zp_extra_(B_, 0), zb_extra_(B_, 0), kind_(B_), slot_(B_), zp_(B_), zb_(B_), du_(B_),
        t_(B_, p_.T_ - 1), layer_(B_, L_ - 1), cells_(B_, 0), scratch_(buffer_of<T>(B_ * P)),
        watch_(thread == 0 && call.problem.B >= 4) {
    for (auto& d : detector_) d.resize(B_);
    int64_t most = 0;
    for (const auto& layer : p_.layers) most = std::max(most, GATES * layer.size);
    zeros_.assign(most, 0);
    for (const SavedLayer& layer : call.saved->layers)
      saved_.push_back({layer.slot(), layer.previous(), pointer<T>(layer.gates), pointer<T>(layer.copy_terms),
                        pointer<T>(layer.statistics), pointer<T>(layer.copy_statistics),
                        {pointer<T>(layer.normalised[0]), pointer<T>(layer.normalised[1]),
                         pointer<T>(layer.normalised[2])}});
    projected_ = pointer<T>(call.saved->projected);
    for (const auto& layer : p_.layers) {
      bias_sums_.emplace_back(nullptr, layer.size);
      for (int product = 0; product < PRODUCTS; ++product) {
        gains_.emplace_back(layer.gain[product], layer.size);
        gain_sums_.emplace_back(nullptr, layer.size);
      }
    }
  }
  static constexpr int parts() { return PARTS; }

  void run() {
    for (int64_t l = 0; l < L_; ++l)
      for (int64_t b = 0; b < B_; ++b) carry_[l * B_ + b] = call_.dz[b * L_ + l];
    pack();
    watch_.lap(BACKWARD_PRODUCTS);
    for (int b = 0; b < B_; ++b) arrive(b);
    while (gather()) round();
    for (int64_t l = 0; l < L_; ++l) {
      const Range units = own(p_.layers[l].size);
      bias_sums_[l].add_to(call_.biases[l], units.first, units.last);
      for (int64_t i = l * PRODUCTS; i < (l + 1) * PRODUCTS; ++i)
        if (call_.gains[i]) gain_sums_[i].add_to(call_.gains[i], units.first, units.last);
    }
    barrier_.wait();
    for (int b = 0; b < B_; ++b) collect_boundary_gradients(b);
    if (thread_ == 0)
      for (int64_t l = 0; l < L_; ++l)
        for (int64_t b = 0; b < B_; ++b) call_.dz[b * L_ + l] = carry_[l * B_ + b];
  }

 private:
  struct Range {
    int64_t first, last;
  };
  struct SavedPointers {  // of a SavedLayer
    const int *slot, *previous;
    const T *gates, *copy_terms, *statistics, *copy_statistics, *normalised[PRODUCTS];
  };

  Share panels(int64_t units) const { return Share(ceil_div(units, P), thread_, threads_); }
  Range own(int64_t units) const {
    const Share share = panels(units);
    return {std::min(share.first * P, units), std::min(share.last * P, units)};
  }

  void pack() {
    for (int64_t l = 0; l < L_; ++l)
      for (int product = 0; product < PRODUCTS; ++product) {
        S* room = call_.to_pack[l * PRODUCTS + product];
        if (!room) continue;
        const auto& layer = p_.layers[l];
        const int64_t K = layer.columns[product], size = elements<S>(GATES * layer.size) * P, count = ceil_div(K, P);
        const Share share = panels(K);
        for (int64_t panel = share.first; panel < share.last; ++panel)
          if (!call_.pack_last_only)
            pack_columns<T, S>(layer.weight[product], layer.size, K, panel, room + panel * size);
          else if (panel == count - 1)
            pack_columns<T, S>(layer.weight[product], layer.size, K, panel, room);
      }
  }

  bool finished(int b) const { return t_[b] < 0; }

  // Decides what a sample does in the cell it has come to.
  void arrive(int b) {
    const int64_t t = t_[b], l = layer_[b];
    if (finished(b)) return;
    zp_[b] = z_[(t * L_ + l) * B_ + b];
    zb_[b] = l ? z_[((t + 1) * L_ + l - 1) * B_ + b] : T(1);
    slot_[b] = saved_[l].slot[t * B_ + b];
    const bool copy = zp_[b] == 0 && zb_[b] == 0 && !p_.copy_has_gate_gradients();
    kind_[b] = !p_.is_valid(t, b) ? FROZEN_STEP : copy ? COPY : ACTIVE;
  }

  // The members of the next round: samples in any cell that is not active, else those of the layer where most wait, the
  // highest of several. False when all are done.
  bool gather() {
    members_.clear();
    waiting_.assign(L_, 0);
    for (int b = 0; b < B_; ++b) {
      if (finished(b)) continue;
      ++waiting_[layer_[b]];
      if (kind_[b] != ACTIVE) members_.push_back(b);
    }
    if (!members_.empty()) return true;
    const int64_t l = L_ - 1 - (std::max_element(waiting_.rbegin(), waiting_.rend()) - waiting_.rbegin());
    for (int b = 0; b < B_; ++b)
      if (!finished(b) && layer_[b] == l) members_.push_back(b);
    return !members_.empty();
  }

  void round() {
    const bool active = kind_[members_[0]] == ACTIVE;
    for (size_t i = 0; i < members_.size(); ++i) {
      next_ = i + 1 < members_.size() && active ? members_[i + 1] : -1;
      gate_gradients(members_[i]);
    }
    barrier_.wait();  // parts of all threads are there
    for (const int b : members_) {
      if (cells_[b] > 0) collect_boundary_gradients(b);
      detector_gradients(b);
    }
    if (p_.layer_norm && active) {
      for (const int b : members_) norm_gradients(b);
      barrier_.wait();
    }
    watch_.lap(BACKWARD_CELLS);
    for (int64_t l = 0; l < L_; ++l) {
      here_.clear();
      for (const int b : members_)
        if (layer_[b] == l) here_.push_back(b);
      for (int product = 0; product < PRODUCTS; ++product) {
        if (here_.empty() || !p_.layers[l].weight[product]) continue;
        detector_row_gradients(l, product);
        if (product != BOTTOM_UP || l > 0) input_gradients(l, product);
      }
    }
    watch_.lap(BACKWARD_PRODUCTS);
    for (const int b : members_) {
      ++cells_[b];
      if (layer_[b]-- == 0) {
        layer_[b] = L_ - 1;
        --t_[b];
      }
      arrive(b);
    }
  }

  // The gradient that a block of units of the sample's cell `ago` cells before this one sends to its boundaries.
  T* boundary_part(int ago, int64_t b, int64_t block) const {
    return call_.boundary_parts + ((((cells_[b] - ago) % 3) * B_ + b) * call_.blocks + block) * PARTS;
  }
  // Blocks of what a product sends to its input.
  int64_t blocks_sent(int64_t l, int product) const {
    const bool sends = p_.layers[l].weight[product] && (product != BOTTOM_UP || l > 0);
    return sends ? ceil_div(p_.layers[l].columns[product], P) : 0;
  }
  T* norm_part(int64_t b, int64_t block) const {
    return call_.norm_parts + (b * call_.blocks + block) * 2 * PRODUCTS;
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
  T* product_gradient(int64_t l, int product, int64_t slot) const {
    return call_.products[l * PRODUCTS + product] + slot * GATES * p_.layers[l].size;
  }
  const T* statistics(int64_t l, int64_t slot, int product) const {
    return saved_[l].statistics + (slot * PRODUCTS + product) * 2;
  }

  // First half: for the own units of a sample, block by block.
  void gate_gradients(int64_t b) {
    const int64_t l = layer_[b], H = p_.layers[l].size;
    const Range units = own(H);
    if (const T* grad = call_.grad_hidden[l])
      add_scaled(call_.dh[l] + b * H + units.first, T(1), grad + (t_[b] * B_ + b) * H + units.first,
                 units.last - units.first);
    for (const int product : {TOP_DOWN, BOTTOM_UP}) {
      const Share sent(blocks_sent(l, product), thread_, threads_);
      for (int64_t block = sent.first; block < sent.last; ++block)
        boundary_part(0, b, block)[product == TOP_DOWN ? TOP_DOWN_TO_Z_PREV : BOTTOM_UP_TO_Z_BELOW] = 0;
    }
    for (int64_t first = units.first; first < units.last; first += P) {
      const Range block = {first, std::min(first + P, units.last)};
      T* parts = boundary_part(0, b, first / P);
      parts[GATES_TO_Z_PREV] = parts[GATES_TO_Z_BELOW] = 0;
      if (kind_[b] == COPY) copy_gradients(l, b, block, parts);
      if (kind_[b] == ACTIVE) active_gradients(t_[b], l, b, block, parts);
    }
  }

  // On a COPY step h and c pass, and so do their gradients; the boundaries feel the branches not taken.
  void copy_gradients(int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const T* terms = saved_[l].copy_terms + int64_t(slot_[b]) * layer.panels() * COPY_TERMS * W;
    Vec<T> zp{}, zb{};
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, layer.size - j));
      const Vec<T> dh = load(call_.dh[l] + b * layer.size + j, lanes);
      const Vec<T> dc = load(call_.dc[l] + b * layer.size + j, lanes);
      const BoundaryGradient<T> d = copy_backward<T>(terms + j * COPY_TERMS, dh, dc);
      zp += d.z_prev;
      zb += d.z_below;
    }
    parts[GATES_TO_Z_PREV] = sum<T>(zp);
    parts[GATES_TO_Z_BELOW] = sum<T>(zb);
  }

  void active_gradients(int64_t t, int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, slot = slot_[b], before = saved_[l].previous[slot];
    const T* gates = saved_[l].gates;
    const Operation<T> op(zp_[b], zb_[b]);
    const T* h_before = h_prev(t, l, b);
    T* ds_row = product_gradient(l, RECURRENT, slot);
    T* symbol = l == 0 && !p_.layer_norm && call_.symbols ? call_.symbols + p_.tokens[t * B_ + b] * GATES * H : nullptr;
    const T* closed = closed_term(t, l, b);
    Vec<T> zp_sum{}, zb_sum{};
    norm_sums_ = {};
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      const T* at = gates + (slot * layer.panels() + j / W) * SAVED * W;
      const Vec<T> c_prev = before < 0 ? load(p_.c0[l] + b * H + j, lanes)
                                       : saved_c<T>(gates + (before * layer.panels() + j / W) * SAVED * W);
      T *dh_at = call_.dh[l] + b * H + j, *dc_at = call_.dc[l] + b * H + j;
      const CellGradient<T> d = step_backward<T>(at, op, zb_[b], load(h_before + j, lanes), c_prev, load(dh_at, lanes),
                                                 load(dc_at, lanes));
      zp_sum += d.z.z_prev;
      zb_sum += d.z.z_below;
      store(dh_at, d.h_prev, lanes);
      store(dc_at, d.c_prev, lanes);
      for (int q = 0; q < GATES; ++q) {
        store(ds_row + q * H + j, d.s[q], lanes);
        T* bias = bias_sums_[l].at(j, q);
        store(bias, load(bias) + d.s[q]);
        if (symbol) store(symbol + q * H + j, load(symbol + q * H + j, lanes) + d.s[q], lanes);
        if (!closed) continue;
        const Vec<T> sent = d.s[q] * load(closed + q * H + j, lanes);
        zp_sum += p_.layer_norm ? sent * load(gains_[l * PRODUCTS + TOP_DOWN].at(j, q)) : sent;
      }
      if (p_.layer_norm) gain_gradients(l, b, j, lanes, d.s);
      if (next_ >= 0) fetch_saved(l, next_, j);
    }
    parts[GATES_TO_Z_PREV] = sum<T>(zp_sum);
    parts[GATES_TO_Z_BELOW] = sum<T>(zb_sum);
    if (!p_.layer_norm) return;
    T* norm = norm_part(b, units.first / P);
    for (int i = 0; i < 2 * PRODUCTS; ++i) norm[i] = sum<T>(norm_sums_.of[i]);
    parts[GATES_TO_Z_PREV] += norm[2 * TOP_DOWN + 1];
    parts[GATES_TO_Z_BELOW] += norm[2 * BOTTOM_UP + 1];
  }

  // The normalised product of the gates of units j.. : gate q is q * step numbers further on.
  struct Normalised {
    const T* at;
    int64_t step;
  };
  Normalised normalised(int64_t l, int64_t b, int product, int64_t j) const {
    const auto& layer = p_.layers[l];
    if (l == 0 && product == BOTTOM_UP && projected_)
      return {projected_ + p_.input_row(t_[b], b) * layer.rows() + j, layer.size};
    return {saved_[l].normalised[product] + (int64_t(slot_[b]) * layer.panels() + j / W) * P, W};
  }

  // Fetches units j.. of the next sample's cell, which come from memory.
  void fetch_saved(int64_t l, int b, int64_t j) const {
    const int64_t panel = int64_t(slot_[b]) * p_.layers[l].panels() + j / W;
    for (int q = 0; q < SAVED; ++q) __builtin_prefetch(saved_[l].gates + (panel * SAVED + q) * W);
    if (const T* n = saved_[l].normalised[RECURRENT])
      for (int q = 0; q < GATES; ++q) __builtin_prefetch(n + panel * P + q * W);
  }

  // Layer norm: gradients of the gains, and the two sums over rows that the normalisation sends back.
  void gain_gradients(int64_t l, int64_t b, int64_t j, int lanes, const Vec<T> (&ds)[GATES]) {
    const auto& layer = p_.layers[l];
    const T factor[PRODUCTS] = {1, zp_[b], zb_[b]};
    for (int product = 0; product < PRODUCTS; ++product) {
      if (!layer.weight[product] || (product == TOP_DOWN && zp_[b] == 0)) continue;
      const Normalised from = normalised(l, b, product, j);
      const ByPanel<T>&gain = gains_[l * PRODUCTS + product], &sums = gain_sums_[l * PRODUCTS + product];
      for (int q = 0; q < GATES; ++q) {
        const Vec<T> n = load(from.at + q * from.step, lanes), gd = load(gain.at(j, q)) * ds[q];
        norm_sums_.of[2 * product] += gd;
        norm_sums_.of[2 * product + 1] += gd * n;
        store(sums.at(j, q), load(sums.at(j, q)) + factor[product] * ds[q] * n);
      }
    }
  }

  // Sums over the blocks what the sample's cell before this one sent to z_prev and z_below.
  void collect_boundary_gradients(int64_t b) {
    const bool top = layer_[b] == L_ - 1;
    const int64_t l = top ? 0 : layer_[b] + 1;
    if (!p_.is_valid(top ? t_[b] + 1 : t_[b], b)) return;
    T zp = zp_extra_[b], zb = zb_extra_[b];
    for (int64_t block = 0; block < ceil_div(p_.layers[l].size, P); ++block) {
      zp += boundary_part(1, b, block)[GATES_TO_Z_PREV];
      zb += boundary_part(1, b, block)[GATES_TO_Z_BELOW];
    }
    for (int64_t block = 0; block < blocks_sent(l, TOP_DOWN); ++block)
      zp += boundary_part(1, b, block)[TOP_DOWN_TO_Z_PREV];
    for (int64_t block = 0; block < blocks_sent(l, BOTTOM_UP); ++block)
      zb += boundary_part(1, b, block)[BOTTOM_UP_TO_Z_BELOW];
    carry_[l * B_ + b] = zp;
    from_above_[b] = zb;
  }

  // The closed top-down term that the gradient of z_prev asks for, or null.
  const T* closed_term(int64_t t, int64_t l, int64_t b) const {
    if (!call_.closed[l]) return nullptr;
    const int row = call_.closed_row[l][t * B_ + b];
    return row < 0 ? nullptr : call_.closed[l] + row * p_.layers[l].rows();
  }

  // Straight-through: du, and what the detector sends to the boundaries it reads other than through the products.
  void detector_gradients(int64_t b) {
    const int64_t t = t_[b], l = layer_[b];
    const auto& layer = p_.layers[l];
    const int64_t row = GATES * layer.size, at = (t * B_ + b) * L_ + l;
    du_[b] = zp_extra_[b] = zb_extra_[b] = 0;
    for (auto& d : detector_) d[b] = 0;
    if (kind_[b] == FROZEN_STEP || !p_.has_detector(l)) return;
    T dz = carry_[l * B_ + b] + (l + 1 < L_ ? from_above_[b] : T(0));
    if (call_.grad_boundaries) dz += call_.grad_boundaries[at];
    T dz_tilde = call_.grad_probs ? call_.grad_probs[at] : T(0);
    const T u = call_.u(t, l, b);
    if (p_.options.nested) {
      const T z_tilde = p_.probability(u);
      zb_extra_[b] = dz * p_.decide(z_tilde, t, b, l) + dz_tilde * z_tilde;
      dz *= zb_[b];
      dz_tilde *= zb_[b];
    }
    const T du = du_[b] = call_.inside(u) ? T(p_.options.slope) / 2 * (dz + dz_tilde) : T(0);
    if (thread_ == 0) call_.biases[l][row] += du;
    const T* closed = closed_term(t, l, b);
    if (!p_.layer_norm) {
      detector_[RECURRENT][b] = du;
      detector_[TOP_DOWN][b] = zp_[b] * du;
      detector_[BOTTOM_UP][b] = zb_[b] * du;
      if (closed) zp_extra_[b] += kappa_ * du * closed[row];
    } else if (kind_[b] == ACTIVE) {
      if (closed)
        zp_extra_[b] += kappa_ * du * layer.gain[TOP_DOWN][row] * closed[row];
      else if (zp_[b] != 0 && layer.weight[TOP_DOWN])
        zp_extra_[b] += kappa_ * du * layer.gain[TOP_DOWN][row] * statistics(l, slot_[b], TOP_DOWN)[1];
      zb_extra_[b] += kappa_ * du * layer.gain[BOTTOM_UP][row] * statistics(l, slot_[b], BOTTOM_UP)[1];
    } else {
      const T* copy = saved_[l].copy_statistics + 2 * int64_t(slot_[b]);
      detector_[RECURRENT][b] = copy[0] * layer.gain[RECURRENT][row] * du;
      if (thread_ == 0) call_.gains[l * PRODUCTS + RECURRENT][row] += du * copy[1];
    }
  }

  // Layer norm: from the gradient of s to that of each product, own units, in place for the recurrent one.
  void norm_gradients(int64_t b) {
    const int64_t l = layer_[b];
    const T factor[PRODUCTS] = {1, zp_[b], zb_[b]};
    for (const int product : {TOP_DOWN, BOTTOM_UP, RECURRENT})
      if (p_.layers[l].weight[product] && factor[product] != 0) norm_gradient(l, b, product, factor[product]);
  }

  void norm_gradient(int64_t l, int64_t b, int product, T factor) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, slot = slot_[b];
    const T rstd = statistics(l, slot, product)[0], n_detector = statistics(l, slot, product)[1];
    const T gd_detector = layer.gain[product][GATES * H] * factor * du_[b];
    T total = 0, along = 0;
    for (int64_t block = 0; block < ceil_div(H, P); ++block) {
      total += norm_part(b, block)[2 * product];
      along += norm_part(b, block)[2 * product + 1];
    }
    const T mean = (factor * total + kappa_ * gd_detector) / layer.rows();
    const T slope = (factor * along + kappa_ * gd_detector * n_detector) / layer.rows();
    detector_[product][b] = rstd * (gd_detector - mean - n_detector * slope);
    if (thread_ == 0) call_.gains[l * PRODUCTS + product][GATES * H] += factor * du_[b] * n_detector;
    const T* ds = product_gradient(l, RECURRENT, slot);
    const bool by_symbol = l == 0 && product == BOTTOM_UP && call_.symbols;
    T* dp = by_symbol ? call_.symbols + p_.tokens[t_[b] * B_ + b] * GATES * H : product_gradient(l, product, slot);
    const Range units = own(H);
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      const Normalised from = normalised(l, b, product, j);
      for (int q = 0; q < GATES; ++q) {
        const int64_t r = q * H + j;
        const Vec<T> n = load(from.at + q * from.step, lanes);
        const Vec<T> gd = factor * load(gains_[l * PRODUCTS + product].at(j, q)) * load(ds + r, lanes);
        const Vec<T> value = rstd * (gd - mean - n * slope);
        store(dp + r, by_symbol ? load(dp + r, lanes) + value : value, lanes);
      }
    }
  }

  // The detector's row of the weights gets its whole gradient, at every step.
  void detector_row_gradients(int64_t l, int product) {
    const auto& layer = p_.layers[l];
    const Range columns = own(layer.columns[product]);
    const int64_t count = columns.last - columns.first;
    T* row = call_.rows[l * PRODUCTS + product] + columns.first;
    for (const int b : here_) {
      const T d = detector_[product][b];
      if (l == 0 && product == BOTTOM_UP && thread_ == 0) call_.x_detector[p_.input_row(t_[b], b)] += kappa_ * d;
      if (d == 0) continue;
      const T* a = input(t_[b], l, b, product) + columns.first;
      const T* mask = product == RECURRENT ? p_.mask[l] : nullptr;
      if (!mask)
        add_scaled(row, d, a, count);
      else
        for (int64_t k = 0; k < count; ++k) row[k] += d * a[k] * mask[b * layer.size + columns.first + k];
    }
  }

  // Second half: what one product sends to its input, for the own columns, and with it to the boundary that gates it.
  void input_gradients(int64_t l, int product) {
    const auto& layer = p_.layers[l];
    const bool dense = !p_.options.skip;
    rows_.clear();
    alone_.clear();
    for (const int b : here_) {
      if (kind_[b] == FROZEN_STEP) continue;
      const T gate = product == TOP_DOWN ? zp_[b] : product == BOTTOM_UP ? zb_[b] : T(1);
      const bool through_detector = kappa_ * du_[b] != 0 && !p_.layer_norm;
      if (kind_[b] == COPY) {
        if (dense)
          rows_.add(zeros_.data(), 1, b);
        else if (through_detector)
          alone_.push_back(b);
        continue;
      }
      const bool needed = product == BOTTOM_UP && call_.needs_boundary_gradient(t_[b], l - 1, b);
      if (gate != 0 || (!p_.layer_norm && (needed || dense)))
        rows_.add(product_gradient(l, p_.layer_norm ? product : int(RECURRENT), slot_[b]), 1, b);
    }
    if (rows_.empty() && alone_.empty()) return;
    const int64_t K = layer.columns[product], size = elements<S>(GATES * layer.size);
    const Share share = panels(K);
    if (share.size() > 0) rows_.prepare(GATES * layer.size);
    T* out = scratch_.template as<T>();
    for (int64_t panel = share.first; panel < share.last; ++panel) {
      const bool last = panel == ceil_div(K, P) - 1;
      const S* packed = call_.weights[l * PRODUCTS + product];
      if (!call_.pack_last_only || (last && packed))
        multiply_panel<T, S>(rows_, size, packed + (call_.pack_last_only ? 0 : panel * size * P), P, false, out);
      else if constexpr (std::is_same<S, T>::value)
        multiply_panel<T, S>(rows_, size, layer.weight[product] + panel * P, K, false, out);
      for (const int b : rows_.sample) send(l, product, b, panel, out + b * P);
      for (const int b : alone_) {
        std::fill_n(out + b * P, P, T(0));
        send(l, product, b, panel, out + b * P);
      }
    }
  }

  // v: one panel of (weight, gate rows)^T times the product's gradient.
  void send(int64_t l, int product, int b, int64_t panel, const T* v) {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    const T* detector = layer.weight[product] + GATES * layer.size * K;
    // Without layer norm v is the gradient before the gate, which is applied here.
    const T gate = product == RECURRENT || p_.layer_norm ? T(1) : product == TOP_DOWN ? zp_[b] : zb_[b];
    const T through = kappa_ * (p_.layer_norm ? detector_[product][b] : du_[b]);
    const int64_t target = product == RECURRENT ? l : product == TOP_DOWN ? l + 1 : l - 1;
    const T* mask = product == RECURRENT ? p_.mask[l] : nullptr;
    const T* a = input(t_[b], l, b, product);
    Vec<T> boundary{};
    for (int64_t k = panel * P, i = 0; i < P && k < K; i += W, k += W) {
      const int lanes = int(std::min<int64_t>(W, K - k));
      const Vec<T> value = load(v + i) + through * load(detector + k, lanes);
      T* to = call_.dh[target] + b * K + k;
      boundary += value * load(a + k, lanes);
      const Vec<T> sent = mask ? value * load(mask + b * K + k, lanes) : gate * value;
      store(to, load(to, lanes) + sent, lanes);
    }
    if (product == RECURRENT || p_.layer_norm) return;
    if (product == TOP_DOWN && gate == 0 && kind_[b] == ACTIVE) return;  // closed_term has spoken for it
    boundary_part(0, b, panel)[product == TOP_DOWN ? TOP_DOWN_TO_Z_PREV : BOTTOM_UP_TO_Z_BELOW] = sum<T>(boundary);
  }

  const BackwardCall<T, S>& call_;
  const Problem<T>& p_;
  const int64_t B_, L_;
  const T kappa_;
  const T* z_;
  const int thread_, threads_;
  Barrier& barrier_;

  std::vector<T> carry_;                           // (L, B): gradient of z of the state
  std::vector<T> from_above_, zp_extra_, zb_extra_;  // (B), as all below: gradients of boundaries
  std::vector<Kind> kind_;
  std::vector<int> slot_;
  std::vector<T> zp_, zb_, du_;
  std::vector<int64_t> t_, layer_, cells_;  // the cell that each sample has come to, and how many it has been through
  std::vector<int> members_, here_, waiting_;
  std::vector<T> detector_[PRODUCTS];  // gradient of the detector row of each product
  std::vector<T> zeros_;
  std::vector<int> alone_;
  int next_ = -1;  // the member after the one whose gate gradients are taken, if it is active
  std::vector<ByPanel<T>> bias_sums_, gains_, gain_sums_;  // per layer, and product; sums of the own units
  std::vector<SavedPointers> saved_;
  const T* projected_ = nullptr;
  Rows<T, S> rows_;
  Buffer scratch_;
  Stopwatch watch_;
  struct {
    Vec<T> of[2 * PRODUCTS];
  } norm_sums_ = {};
};

}  // namespace hmrnn
