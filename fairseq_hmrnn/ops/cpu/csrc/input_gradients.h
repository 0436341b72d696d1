// Backwards through the products of a cell: from the gradients of the gates to the detector's row of the weights, to
// the inputs h of three layers, and to the boundaries that gate them.
#pragma once

#include "backward_call.h"

namespace hmrnn {

template <class T, class S>
class InputGradients {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  using Cells = BackwardCells<T, S>;
  using Range = typename Cells::Range;

 public:
  InputGradients(const BackwardCall<T, S>& call, Cells& at, int thread)
      : call_(call), p_(call.problem), at_(at), B_(p_.B), L_(p_.L), thread_(thread),
        scratch_(buffer_of<T>(p_.B * P)) {
    int64_t most = 0;
    for (const auto& layer : p_.layers) most = std::max(most, GATES * layer.size);
    zeros_.assign(most, 0);
  }

  // Write the panels of weights that have none.
  void pack() {
    for (int64_t l = 0; l < L_; ++l)
      for (int product = 0; product < PRODUCTS; ++product) {
        S* room = call_.to_pack[l * PRODUCTS + product];
        if (!room) continue;
        const auto& layer = p_.layers[l];
        const int64_t K = layer.columns[product], size = elements<S>(GATES * layer.size) * P, count = ceil_div(K, P);
        const Share share = at_.panels(K);
        for (int64_t panel = share.first; panel < share.last; ++panel)
          if (!call_.pack_last_only)
            pack_columns<T, S>(layer.weight[product], layer.size, K, panel, room + panel * size);
          else if (panel == count - 1)
            pack_columns<T, S>(layer.weight[product], layer.size, K, panel, room);
      }
  }

  // The detector's row of the weights gets its whole gradient, at every step.
  void detector_row_gradients(int64_t l, int product) {
    const auto& layer = p_.layers[l];
    const Range columns = at_.own(layer.columns[product]);
    const int64_t count = columns.last - columns.first;
    T* row = call_.rows[l * PRODUCTS + product] + columns.first;
    for (const int b : at_.here) {
      const T d = at_.detector[product][b];
      if (l == 0 && product == BOTTOM_UP && thread_ == 0) call_.x_detector[p_.input_row(at_.t[b], b)] += at_.kappa * d;
      if (d == 0) continue;
      const T* a = at_.input(at_.t[b], l, b, product) + columns.first;
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
    for (const int b : at_.here) {
      if (at_.kind[b] == Cells::FROZEN_STEP) continue;
      const T gate = product == TOP_DOWN ? at_.zp[b] : product == BOTTOM_UP ? at_.zb[b] : T(1);
      const bool through_detector = at_.kappa * at_.du[b] != 0 && !p_.layer_norm;
      if (at_.kind[b] == Cells::COPY) {
        if (dense)
          rows_.add(zeros_.data(), 1, b);
        else if (through_detector)
          alone_.push_back(b);
        continue;
      }
      const bool needed = product == BOTTOM_UP && call_.needs_boundary_gradient(at_.t[b], l - 1, b);
      if (gate != 0 || (!p_.layer_norm && (needed || dense)))
        rows_.add(at_.product_gradient(l, p_.layer_norm ? product : int(RECURRENT), at_.slot[b]), 1, b);
    }
    if (rows_.empty() && alone_.empty()) return;
    const int64_t K = layer.columns[product], size = elements<S>(GATES * layer.size);
    const Share share = at_.panels(K);
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

 private:
  // v: one panel of (weight, gate rows)^T times the product's gradient.
  void send(int64_t l, int product, int b, int64_t panel, const T* v) {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    const T* detector = layer.weight[product] + GATES * layer.size * K;
    // Without layer norm v is the gradient before the gate, which is applied here.
    const T gate = product == RECURRENT || p_.layer_norm ? T(1) : product == TOP_DOWN ? at_.zp[b] : at_.zb[b];
    const T through = at_.kappa * (p_.layer_norm ? at_.detector[product][b] : at_.du[b]);
    const int64_t target = product == RECURRENT ? l : product == TOP_DOWN ? l + 1 : l - 1;
    const T* mask = product == RECURRENT ? p_.mask[l] : nullptr;
    const T* a = at_.input(at_.t[b], l, b, product);
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
    if (product == TOP_DOWN && gate == 0 && at_.kind[b] == Cells::ACTIVE) return;  // closed_term has spoken for it
    const auto part = product == TOP_DOWN ? Cells::TOP_DOWN_TO_Z_PREV : Cells::BOTTOM_UP_TO_Z_BELOW;
    at_.boundary_part(0, b, panel)[part] = sum<T>(boundary);
  }

  const BackwardCall<T, S>& call_;
  const Problem<T>& p_;
  Cells& at_;
  const int64_t B_, L_;
  const int thread_;
  std::vector<T> zeros_;
  std::vector<int> alone_;  // samples without a product, whose detector alone sends a gradient
  Rows<T, S> rows_;
  Buffer scratch_;
};

}  // namespace hmrnn
