// Layer normalisation, backwards: from the gradient of s of eq. (1) to those of the gains and of each product.
#pragma once

#include "backward_call.h"

namespace hmrnn {

template <class T, class S>
class NormGradients {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  using Cells = BackwardCells<T, S>;
  using Range = typename Cells::Range;

 public:
  NormGradients(const BackwardCall<T, S>& call, Cells& at, int thread)
      : call_(call), p_(call.problem), at_(at), B_(p_.B), thread_(thread),
        projected_(pointer<T>(call.saved->projected)) {
    if (!p_.layer_norm) return;
    for (const auto& layer : p_.layers)
      for (int product = 0; product < PRODUCTS; ++product) {
        gains_.emplace_back(layer.gain[product], layer.size);
        gain_sums_.emplace_back(nullptr, layer.size);
      }
  }

  // Of a gate's term of the top-down product.
  Vec<T> top_down_gain(int64_t l, int64_t j, int q) const { return load(gains_[l * PRODUCTS + TOP_DOWN].at(j, q)); }

  // Before the blocks of a sample's units.
  void begin_block() { sums_ = {}; }

  // Units j.. of a block: gradients of the gains, and the two sums over rows that the normalisation sends back.
  void gain_gradients(int64_t l, int64_t b, int64_t j, int lanes, const Vec<T> (&ds)[GATES]) {
    const auto& layer = p_.layers[l];
    const T factor[PRODUCTS] = {1, at_.zp[b], at_.zb[b]};
    for (int product = 0; product < PRODUCTS; ++product) {
      if (!layer.weight[product] || (product == TOP_DOWN && at_.zp[b] == 0)) continue;
      const Normalised from = normalised(l, b, product, j);
      const ByPanel<T>&gain = gains_[l * PRODUCTS + product], &sums = gain_sums_[l * PRODUCTS + product];
      for (int q = 0; q < GATES; ++q) {
        const Vec<T> n = load(from.at + q * from.step, lanes), gd = load(gain.at(j, q)) * ds[q];
        sums_.of[2 * product] += gd;
        sums_.of[2 * product + 1] += gd * n;
        store(sums.at(j, q), load(sums.at(j, q)) + factor[product] * ds[q] * n);
      }
    }
  }

  // After it: its part of the two sums, and what it sends to z_prev and z_below.
  void end_block(int64_t b, int64_t block, T* parts) {
    T* norm = norm_part(b, block);
    for (int i = 0; i < 2 * PRODUCTS; ++i) norm[i] = sum<T>(sums_.of[i]);
    parts[Cells::GATES_TO_Z_PREV] += norm[2 * TOP_DOWN + 1];
    parts[Cells::GATES_TO_Z_BELOW] += norm[2 * BOTTOM_UP + 1];
  }

  // From the gradient of s to that of each product, own units, in place for the recurrent one.
  void products(int64_t b) {
    const int64_t l = at_.layer[b];
    const T factor[PRODUCTS] = {1, at_.zp[b], at_.zb[b]};
    for (const int product : {TOP_DOWN, BOTTOM_UP, RECURRENT})
      if (p_.layers[l].weight[product] && factor[product] != 0) product_gradients(l, b, product, factor[product]);
  }

  // Add the own units' gradients of a layer's gains.
  void add_gains(int64_t l) {
    const Range units = at_.own(p_.layers[l].size);
    for (int64_t i = l * PRODUCTS; i < (l + 1) * PRODUCTS; ++i)
      if (call_.gains[i]) gain_sums_[i].add_to(call_.gains[i], units.first, units.last);
  }

 private:
  void product_gradients(int64_t l, int64_t b, int product, T factor) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, slot = at_.slot[b];
    const T rstd = at_.statistics(l, slot, product)[0], n_detector = at_.statistics(l, slot, product)[1];
    const T gd_detector = layer.gain[product][GATES * H] * factor * at_.du[b];
    T total = 0, along = 0;
    for (int64_t block = 0; block < ceil_div(H, P); ++block) {
      total += norm_part(b, block)[2 * product];
      along += norm_part(b, block)[2 * product + 1];
    }
    const T mean = (factor * total + at_.kappa * gd_detector) / layer.rows();
    const T slope = (factor * along + at_.kappa * gd_detector * n_detector) / layer.rows();
    at_.detector[product][b] = rstd * (gd_detector - mean - n_detector * slope);
    if (thread_ == 0) call_.gains[l * PRODUCTS + product][GATES * H] += factor * at_.du[b] * n_detector;
    const T* ds = at_.product_gradient(l, RECURRENT, slot);
    const bool by_symbol = l == 0 && product == BOTTOM_UP && call_.symbols;
    T* dp = by_symbol ? call_.symbols + p_.tokens[at_.t[b] * B_ + b] * GATES * H
                      : at_.product_gradient(l, product, slot);
    const Range units = at_.own(H);
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

  T* norm_part(int64_t b, int64_t block) const {
    return call_.norm_parts + (b * call_.blocks + block) * 2 * PRODUCTS;
  }

  // The normalised product of the gates of units j.. : gate q is q * step numbers further on.
  struct Normalised {
    const T* at;
    int64_t step;
  };
  Normalised normalised(int64_t l, int64_t b, int product, int64_t j) const {
    const auto& layer = p_.layers[l];
    if (l == 0 && product == BOTTOM_UP && projected_)
      return {projected_ + p_.input_row(at_.t[b], b) * layer.rows() + j, layer.size};
    return {at_.saved[l].normalised[product] + (int64_t(at_.slot[b]) * layer.panels() + j / W) * P, W};
  }

  const BackwardCall<T, S>& call_;
  const Problem<T>& p_;
  Cells& at_;
  const int64_t B_;
  const int thread_;
  const T* projected_;
  std::vector<ByPanel<T>> gains_, gain_sums_;  // per layer and product; sums of the own units
  struct {
    Vec<T> of[2 * PRODUCTS];
  } sums_ = {};
};

}  // namespace hmrnn
