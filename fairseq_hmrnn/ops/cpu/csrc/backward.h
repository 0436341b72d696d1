// The backward pass, by hand (ops/README.md derives it): every thread owns some units of every layer. A cell has two
// halves with a barrier between: gradients of the gates, and their products with the weights. What reaches a boundary is
// summed at the barrier of the sample's next cell, by blocks of PANEL units, so that threads do not change its bits.
//
// As in the forward pass samples do not wait for each other, but at active cells, which need products: a round takes all
// samples through their COPY cells, one each, or the samples of one layer through an active one.
#pragma once

#include "input_gradients.h"
#include "norm_gradients.h"
#include "stopwatch.h"

namespace hmrnn {

template <class T, class S>
class BackwardWorker {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  using Cells = BackwardCells<T, S>;
  using Range = typename Cells::Range;

 public:
  BackwardWorker(const BackwardCall<T, S>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.problem), B_(p_.B), L_(p_.L), z_(call.saved_z), thread_(thread), threads_(threads),
        barrier_(barrier), at_(call, thread, threads), norm_(call, at_, thread), inputs_(call, at_, thread),
        carry_(L_ * B_), from_above_(B_, 0), watch_(thread == 0 && call.problem.B >= 4) {
    for (const auto& layer : p_.layers) bias_sums_.emplace_back(nullptr, layer.size);
  }
  BackwardWorker(const BackwardWorker&) = delete;  // norm_ and inputs_ refer to at_
  static constexpr int parts() { return Cells::PARTS; }

  void run() {
    for (int64_t l = 0; l < L_; ++l)
      for (int64_t b = 0; b < B_; ++b) carry_[l * B_ + b] = call_.dz[b * L_ + l];
    inputs_.pack();
    watch_.lap(BACKWARD_PRODUCTS);
    for (int b = 0; b < B_; ++b) arrive(b);
    while (gather()) round();
    for (int64_t l = 0; l < L_; ++l) {
      const Range units = at_.own(p_.layers[l].size);
      bias_sums_[l].add_to(call_.biases[l], units.first, units.last);
      norm_.add_gains(l);
    }
    barrier_.wait();
    for (int b = 0; b < B_; ++b) collect_boundary_gradients(b);
    if (thread_ == 0)
      for (int64_t l = 0; l < L_; ++l)
        for (int64_t b = 0; b < B_; ++b) call_.dz[b * L_ + l] = carry_[l * B_ + b];
  }

 private:
  bool finished(int b) const { return at_.t[b] < 0; }

  // Decides what a sample does in the cell it has come to.
  void arrive(int b) {
    const int64_t t = at_.t[b], l = at_.layer[b];
    if (finished(b)) return;
    at_.zp[b] = z_[(t * L_ + l) * B_ + b];
    at_.zb[b] = l ? z_[((t + 1) * L_ + l - 1) * B_ + b] : T(1);
    at_.slot[b] = at_.saved[l].slot[t * B_ + b];
    const bool copy = at_.zp[b] == 0 && at_.zb[b] == 0 && !p_.copy_has_gate_gradients();
    at_.kind[b] = !p_.is_valid(t, b) ? Cells::FROZEN_STEP : copy ? Cells::COPY : Cells::ACTIVE;
  }

  // The members of the next round: samples in any cell that is not active, else those of the layer where most wait, the
  // highest of several. False when all are done.
  bool gather() {
    members_.clear();
    waiting_.assign(L_, 0);
    for (int b = 0; b < B_; ++b) {
      if (finished(b)) continue;
      ++waiting_[at_.layer[b]];
      if (at_.kind[b] != Cells::ACTIVE) members_.push_back(b);
    }
    if (!members_.empty()) return true;
    const int64_t l = L_ - 1 - (std::max_element(waiting_.rbegin(), waiting_.rend()) - waiting_.rbegin());
    for (int b = 0; b < B_; ++b)
      if (!finished(b) && at_.layer[b] == l) members_.push_back(b);
    return !members_.empty();
  }

  void round() {
    const bool active = at_.kind[members_[0]] == Cells::ACTIVE;
    for (size_t i = 0; i < members_.size(); ++i) {
      next_ = i + 1 < members_.size() && active ? members_[i + 1] : -1;
      gate_gradients(members_[i]);
    }
    barrier_.wait();  // parts of all threads are there
    for (const int b : members_) {
      if (at_.passed[b] > 0) collect_boundary_gradients(b);
      detector_gradients(b);
    }
    if (p_.layer_norm && active) {
      for (const int b : members_) norm_.products(b);
      barrier_.wait();
    }
    watch_.lap(BACKWARD_CELLS);
    for (int64_t l = 0; l < L_; ++l) {
      at_.here.clear();
      for (const int b : members_)
        if (at_.layer[b] == l) at_.here.push_back(b);
      for (int product = 0; product < PRODUCTS; ++product) {
        if (at_.here.empty() || !p_.layers[l].weight[product]) continue;
        inputs_.detector_row_gradients(l, product);
        if (product != BOTTOM_UP || l > 0) inputs_.input_gradients(l, product);
      }
    }
    watch_.lap(BACKWARD_PRODUCTS);
    for (const int b : members_) {
      ++at_.passed[b];
      if (at_.layer[b]-- == 0) {
        at_.layer[b] = L_ - 1;
        --at_.t[b];
      }
      arrive(b);
    }
  }

  // First half: for the own units of a sample, block by block.
  void gate_gradients(int64_t b) {
    const int64_t l = at_.layer[b], H = p_.layers[l].size;
    const Range units = at_.own(H);
    if (const T* grad = call_.grad_hidden[l])
      add_scaled(call_.dh[l] + b * H + units.first, T(1), grad + (at_.t[b] * B_ + b) * H + units.first,
                 units.last - units.first);
    for (const int product : {TOP_DOWN, BOTTOM_UP}) {
      const Share sent(at_.blocks_sent(l, product), thread_, threads_);
      const auto part = product == TOP_DOWN ? Cells::TOP_DOWN_TO_Z_PREV : Cells::BOTTOM_UP_TO_Z_BELOW;
      for (int64_t block = sent.first; block < sent.last; ++block) at_.boundary_part(0, b, block)[part] = 0;
    }
    for (int64_t first = units.first; first < units.last; first += P) {
      const Range block = {first, std::min(first + P, units.last)};
      T* parts = at_.boundary_part(0, b, first / P);
      parts[Cells::GATES_TO_Z_PREV] = parts[Cells::GATES_TO_Z_BELOW] = 0;
      if (at_.kind[b] == Cells::COPY) copy_gradients(l, b, block, parts);
      if (at_.kind[b] == Cells::ACTIVE) active_gradients(at_.t[b], l, b, block, parts);
    }
  }

  // On a COPY step h and c pass, and so do their gradients; the boundaries feel the branches not taken.
  void copy_gradients(int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const T* terms = at_.saved[l].copy_terms + int64_t(at_.slot[b]) * layer.panels() * COPY_TERMS * W;
    Vec<T> zp{}, zb{};
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, layer.size - j));
      const Vec<T> dh = load(call_.dh[l] + b * layer.size + j, lanes);
      const Vec<T> dc = load(call_.dc[l] + b * layer.size + j, lanes);
      const BoundaryGradient<T> d = copy_backward<T>(terms + j * COPY_TERMS, dh, dc);
      zp += d.z_prev;
      zb += d.z_below;
    }
    parts[Cells::GATES_TO_Z_PREV] = sum<T>(zp);
    parts[Cells::GATES_TO_Z_BELOW] = sum<T>(zb);
  }

  void active_gradients(int64_t t, int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, slot = at_.slot[b], before = at_.saved[l].previous[slot];
    const T* gates = at_.saved[l].gates;
    const Operation<T> op(at_.zp[b], at_.zb[b]);
    const T* h_before = at_.h_prev(t, l, b);
    T* ds_row = at_.product_gradient(l, RECURRENT, slot);
    T* symbol = l == 0 && !p_.layer_norm && call_.symbols ? call_.symbols + p_.tokens[t * B_ + b] * GATES * H : nullptr;
    const T* closed = at_.closed_term(t, l, b);
    Vec<T> zp_sum{}, zb_sum{};
    norm_.begin_block();
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      const T* at = gates + (slot * layer.panels() + j / W) * SAVED * W;
      const Vec<T> c_prev = before < 0 ? load(p_.c0[l] + b * H + j, lanes)
                                       : saved_c<T>(gates + (before * layer.panels() + j / W) * SAVED * W);
      T *dh_at = call_.dh[l] + b * H + j, *dc_at = call_.dc[l] + b * H + j;
      const CellGradient<T> d = step_backward<T>(at, op, at_.zb[b], load(h_before + j, lanes), c_prev,
                                                 load(dh_at, lanes), load(dc_at, lanes));
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
        zp_sum += p_.layer_norm ? sent * norm_.top_down_gain(l, j, q) : sent;
      }
      if (p_.layer_norm) norm_.gain_gradients(l, b, j, lanes, d.s);
      if (next_ >= 0) fetch_saved(l, next_, j);
    }
    parts[Cells::GATES_TO_Z_PREV] = sum<T>(zp_sum);
    parts[Cells::GATES_TO_Z_BELOW] = sum<T>(zb_sum);
    if (p_.layer_norm) norm_.end_block(b, units.first / P, parts);
  }

  // Fetches units j.. of the next sample's cell, which come from memory.
  void fetch_saved(int64_t l, int b, int64_t j) const {
    const int64_t panel = int64_t(at_.slot[b]) * p_.layers[l].panels() + j / W;
    for (int q = 0; q < SAVED; ++q) __builtin_prefetch(at_.saved[l].gates + (panel * SAVED + q) * W);
    if (const T* n = at_.saved[l].normalised[RECURRENT])
      for (int q = 0; q < GATES; ++q) __builtin_prefetch(n + panel * P + q * W);
  }

  // Sums over the blocks what the sample's cell before this one sent to z_prev and z_below.
  void collect_boundary_gradients(int64_t b) {
    const bool top = at_.layer[b] == L_ - 1;
    const int64_t l = top ? 0 : at_.layer[b] + 1;
    if (!p_.is_valid(top ? at_.t[b] + 1 : at_.t[b], b)) return;
    T zp = at_.zp_extra[b], zb = at_.zb_extra[b];
    for (int64_t block = 0; block < ceil_div(p_.layers[l].size, P); ++block) {
      zp += at_.boundary_part(1, b, block)[Cells::GATES_TO_Z_PREV];
      zb += at_.boundary_part(1, b, block)[Cells::GATES_TO_Z_BELOW];
    }
    for (int64_t block = 0; block < at_.blocks_sent(l, TOP_DOWN); ++block)
      zp += at_.boundary_part(1, b, block)[Cells::TOP_DOWN_TO_Z_PREV];
    for (int64_t block = 0; block < at_.blocks_sent(l, BOTTOM_UP); ++block)
      zb += at_.boundary_part(1, b, block)[Cells::BOTTOM_UP_TO_Z_BELOW];
    carry_[l * B_ + b] = zp;
    from_above_[b] = zb;
  }

  // Straight-through: du, and what the detector sends to the boundaries it reads other than through the products.
  void detector_gradients(int64_t b) {
    const int64_t t = at_.t[b], l = at_.layer[b];
    const auto& layer = p_.layers[l];
    const int64_t row = GATES * layer.size, at = (t * B_ + b) * L_ + l;
    at_.du[b] = at_.zp_extra[b] = at_.zb_extra[b] = 0;
    for (auto& d : at_.detector) d[b] = 0;
    if (at_.kind[b] == Cells::FROZEN_STEP || !p_.has_detector(l)) return;
    T dz = carry_[l * B_ + b] + (l + 1 < L_ ? from_above_[b] : T(0));
    if (call_.grad_boundaries) dz += call_.grad_boundaries[at];
    T dz_tilde = call_.grad_probs ? call_.grad_probs[at] : T(0);
    const T u = call_.u(t, l, b);
    if (p_.options.nested) {
      const T z_tilde = p_.probability(u);
      at_.zb_extra[b] = dz * p_.decide(z_tilde, t, b, l) + dz_tilde * z_tilde;
      dz *= at_.zb[b];
      dz_tilde *= at_.zb[b];
    }
    const T du = at_.du[b] = call_.inside(u) ? T(p_.options.slope) / 2 * (dz + dz_tilde) : T(0);
    if (thread_ == 0) call_.biases[l][row] += du;
    if (thread_ == 0 && call_.du) call_.du[(l * p_.T_ + t) * B_ + b] = du;
    const T* closed = at_.closed_term(t, l, b);
    if (!p_.layer_norm) {
      at_.detector[RECURRENT][b] = du;
      at_.detector[TOP_DOWN][b] = at_.zp[b] * du;
      at_.detector[BOTTOM_UP][b] = at_.zb[b] * du;
      if (closed) at_.zp_extra[b] += at_.kappa * du * closed[row];
    } else if (at_.kind[b] == Cells::ACTIVE) {
      if (closed)
        at_.zp_extra[b] += at_.kappa * du * layer.gain[TOP_DOWN][row] * closed[row];
      else if (at_.zp[b] != 0 && layer.weight[TOP_DOWN])
        at_.zp_extra[b] += at_.kappa * du * layer.gain[TOP_DOWN][row] * at_.statistics(l, at_.slot[b], TOP_DOWN)[1];
      at_.zb_extra[b] += at_.kappa * du * layer.gain[BOTTOM_UP][row] * at_.statistics(l, at_.slot[b], BOTTOM_UP)[1];
    } else {
      const T* copy = at_.saved[l].copy_statistics + 2 * int64_t(at_.slot[b]);
      at_.detector[RECURRENT][b] = copy[0] * layer.gain[RECURRENT][row] * du;
      if (thread_ == 0) call_.gains[l * PRODUCTS + RECURRENT][row] += du * copy[1];
    }
  }

  const BackwardCall<T, S>& call_;
  const Problem<T>& p_;
  const int64_t B_, L_;
  const T* z_;
  const int thread_, threads_;
  Barrier& barrier_;

  Cells at_;
  NormGradients<T, S> norm_;
  InputGradients<T, S> inputs_;
  std::vector<T> carry_;                // (L, B): gradient of z of the state
  std::vector<T> from_above_;           // (B): gradient of z of the layer below
  std::vector<int> members_, waiting_;
  int next_ = -1;  // the member after the one whose gate gradients are taken, if it is active
  std::vector<ByPanel<T>> bias_sums_;   // per layer; sums of the own units
  Stopwatch watch_;
};

}  // namespace hmrnn
