// What the gates of a cell are computed from: the products of weights with h of three layers, normalised if asked for,
// for the units that a thread owns and for the detector's row.
#pragma once

#include "forward_call.h"
#include "layer_norm.h"

namespace hmrnn {

template <class T, class S>
class GateProducts {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  using Cells = ForwardCells<T>;

 public:
  GateProducts(const ForwardCall<T, S>& call, const Cells& at, int thread, int threads)
      : call_(call), p_(call.problem), at_(at), B_(p_.B), L_(p_.L), training_(call.saved), thread_(thread),
        threads_(threads), backwards_(p_.L, call.backwards) {
    for (int product = 0; product < PRODUCTS; ++product) {
      mean_[product].resize(B_);
      rstd_[product].resize(B_);
      nu_[product].resize(B_);
    }
    int64_t most = 1;
    for (const auto& layer : p_.layers) most = std::max(most, share(layer).size());
    for (const auto& layer : p_.layers) {
      biases_.emplace_back(layer.bias, layer.size);
      for (int product = 0; p_.layer_norm && product < PRODUCTS; ++product)
        gains_.emplace_back(layer.gain[product], layer.size);
    }
    scratch_ = buffer_of<T>(B_ * P * (p_.layer_norm ? most * PRODUCTS : 1));
  }

  // Write the panels of weights that have none.
  void pack() {
    packed_.resize(L_ * PRODUCTS);
    for (int64_t l = 0; l < L_; ++l) {
      const auto& layer = p_.layers[l];
      const Share own(layer.panels(), thread_, threads_);
      for (int product = 0; product < PRODUCTS; ++product) {
        S* room = call_.to_pack[l * PRODUCTS + product];
        packed_[l * PRODUCTS + product] = room ? room : call_.packed[l * PRODUCTS + product];
        if (!room) continue;
        for (int64_t panel = own.first; panel < own.last; ++panel)
          pack_gates(layer.weight[product], layer.size, layer.columns[product], panel, room);
      }
    }
  }

  // Without the backward pass a COPY step needs its detector only, and that needs no gates without layer norm.
  bool copy_needs_products(int64_t l) const {
    return training_ || (p_.layer_norm && p_.has_detector(l) && !p_.options.nested);
  }

  // The rows that the products need for the members of a cell of layer l, whose kinds are known.
  void select(int64_t l) {
    const auto& layer = p_.layers[l];
    const bool dense = !p_.options.skip;
    for (auto& rows : rows_) rows.clear();
    for (const int b : at_.members) {
      const int64_t i = l * B_ + b;
      const T zp = at_.zp[b], zb = at_.zb[b];
      const bool active = at_.kind[b] == Cells::ACTIVE;
      if (!active && !(at_.kind[b] == Cells::FRESH_COPY && (dense || copy_needs_products(l)))) continue;
      // With layer norm a closed bottom-up term enters the gradient of its gate.
      const bool closed_too = dense || (training_ && p_.layer_norm && active);
      rows_[RECURRENT].add(at_.h_read[i], 1, b);
      if (layer.weight[TOP_DOWN] && (zp != 0 || dense)) rows_[TOP_DOWN].add(at_.h[i + B_], p_.layer_norm ? 1 : zp, b);
      if (l > 0 && (zb != 0 || closed_too)) rows_[BOTTOM_UP].add(at_.h[i - B_], p_.layer_norm ? 1 : zb, b);
      if (l == 0 && !call_.projected) rows_[BOTTOM_UP].add(p_.input(at_.t[b], b), 1, b);
    }
    if (!any()) return;
    backwards_[l] = !backwards_[l] && rows_[RECURRENT].size() <= ONE_PASS;  // more do not wait for memory
    for (int product = 0; product < PRODUCTS; ++product)
      if (!rows_[product].empty() && packed_[l * PRODUCTS + product])
        rows_[product].prepare(layer.columns[product]);
  }

  // Whether any member needs products.
  bool any() const { return !rows_[RECURRENT].empty(); }

  // The n-th of the own panels in the order in which this cell goes over them.
  int64_t panel(int64_t l, int64_t n) const { return share(p_.layers[l]).at(n, backwards_[l]); }

  // A sample's products with layer norm, written before the weights passed through the cache.
  void fetch_products(int b, int64_t own_panel) {
    for (int product = 0; product < PRODUCTS; ++product)
      for (int q = 0; !rows_[product].empty() && q < GATES; ++q)
        __builtin_prefetch(scratch(own_panel, product) + b * P + q * W);
  }

  // Layer 1's bottom-up products lie 4 H apart: asked for now, they are there after the recurrent product.
  void fetch_projected(int64_t panel) const {
    const auto& layer = p_.layers[0];
    for (const int b : at_.members)
      for (int q = 0; q < GATES; ++q) {
        const T* at = call_.projected_row(at_.t[b], b) + q * layer.size + panel * W;
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + W - 1, 0, 2);
      }
  }

  // All products of one panel, without layer norm.
  void multiply_all(int64_t l, int64_t panel) {
    for (int product = 0; product < PRODUCTS; ++product)
      if (!rows_[product].empty()) multiply(l, product, panel, product != RECURRENT, scratch_.template as<T>());
  }

  // Layer norm, first half: products of the own units, and their mean and squared deviation per panel.
  void multiply_and_measure(int64_t l) {
    const auto& layer = p_.layers[l];
    const Share own = share(layer);
    for (int64_t i = 0; i < own.size(); ++i)
      for (int product = 0; product < PRODUCTS; ++product) {
        if (rows_[product].empty()) continue;
        const int64_t panel = own.at(i, backwards_[l]);
        T* out = scratch(panel - own.first, product);
        multiply(l, product, panel, false, out);
        const int lanes = layer.width(panel);
        for (const int b : rows_[product].sample) measure(out + b * P, lanes, statistics(product, b, panel));
      }
  }

  // Layer norm, second half: mean and deviation over all 4H+1 rows, and the normalised detector row.
  void combine_statistics(int64_t l) {
    const auto& layer = p_.layers[l];
    for (int product = 0; product < PRODUCTS; ++product)
      for (int i = 0; i < rows_[product].size(); ++i) {
        const int b = rows_[product].sample[i];
        const T detector = detector_product(l, product, rows_[product].a[i]);
        const RowStatistics<T> found = combine(layer, statistics(product, b, 0), detector);
        mean_[product][b] = found.mean;
        rstd_[product][b] = found.rstd;
        nu_[product][b] = (detector - found.mean) * found.rstd;
      }
    if (l == 0 && call_.projected)
      for (const int b : at_.members) {
        rstd_[BOTTOM_UP][b] = call_.projected_rstd[p_.input_row(at_.t[b], b)];
        nu_[BOTTOM_UP][b] = call_.projected_row(at_.t[b], b)[GATES * layer.size];
      }
    if (training_ && thread_ == 0) remember_statistics(l);
  }

  // The detector's row of one product, with its gain and before its gate. Called for the recurrent and open products.
  T detector_term(int64_t l, int64_t b, int product) const {
    const auto& layer = p_.layers[l];
    if (p_.layer_norm) return layer.gain[product][GATES * layer.size] * nu_[product][b];
    const int64_t i = l * B_ + b;
    if (product == RECURRENT) return detector_product(l, product, at_.h_read[i]);
    if (product == TOP_DOWN) return detector_product(l, product, at_.h[i + B_]);
    if (l > 0) return detector_product(l, product, at_.h[i - B_]);
    if (call_.projected) return call_.projected_row(at_.t[b], b)[GATES * layer.size];
    return detector_product(l, product, p_.input(at_.t[b], b));
  }

  // s of eq. (1) for the units of a panel, from products in scratch_.
  void pre_activation(int64_t l, int64_t b, int64_t panel, int64_t own_panel, Vec<T> (&s)[GATES]) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, unit = panel * W;
    const int lanes = layer.width(panel);
    const T* projected = l == 0 && call_.projected ? call_.projected_row(at_.t[b], b) + unit : nullptr;
    for (int q = 0; q < GATES; ++q) s[q] = load(biases_[l].at(unit, q));
    if (!p_.layer_norm) {
      const T* row = scratch_.template as<T>() + b * P;
      for (int q = 0; q < GATES; ++q) s[q] += load(row + q * W);
      if (projected)
        for (int q = 0; q < GATES; ++q) s[q] += load(projected + q * H, lanes);
      return;
    }
    const T factor[PRODUCTS] = {1, at_.zp[b], at_.zb[b]};
    for (int product = 0; product < PRODUCTS; ++product) {
      if (!layer.weight[product]) continue;
      const bool given = product == BOTTOM_UP && projected;  // and kept as it is
      const bool keep = training_ && at_.kind[b] == Cells::ACTIVE && !given && (product != TOP_DOWN || at_.zp[b] != 0);
      if (factor[product] == 0 && !keep) continue;
      const ByPanel<T>& gain = gains_[l * PRODUCTS + product];
      const T* row = scratch(own_panel, product) + b * P;
      T* kept = keep ? (*call_.saved)[l].normalised[product] + (at_.slot[b] * layer.panels() + panel) * P : nullptr;
      for (int q = 0; q < GATES; ++q) {
        const Vec<T> n = given ? load(projected + q * H, lanes)
                               : (load(row + q * W) - mean_[product][b]) * rstd_[product][b];
        s[q] += factor[product] * load(gain.at(unit, q)) * n;
        if (keep) store(kept + q * W, n);
      }
    }
  }

 private:
  Share share(const LayerWeights<T>& layer) const { return call_.own(layer, thread_, threads_); }

  // One product of the rows with one panel, into `out` (B, PANEL).
  void multiply(int64_t l, int product, int64_t panel, bool add, T* out) {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    if (const S* packed = packed_[l * PRODUCTS + product])
      multiply_panel<T, S>(rows_[product], elements<S>(K), packed + panel * elements<S>(K) * P, P, add, out);
    else if constexpr (std::is_same<S, T>::value)
      multiply_gates<T>(rows_[product], K, layer.weight[product], layer.size, panel * W, layer.width(panel), add, out);
  }

  T* scratch(int64_t own_panel, int product) {
    return scratch_.template as<T>() + (own_panel * PRODUCTS + product) * B_ * P;
  }

  T* statistics(int product, int64_t b, int64_t panel) {
    return call_.statistics + ((product * B_ + b) * call_.most_panels + panel) * 2;
  }

  void remember_statistics(int64_t l) {
    SavedRoom<T>& saved = (*call_.saved)[l];
    for (const int b : at_.members) {
      if (at_.kind[b] == Cells::FRESH_COPY) {
        T* to = saved.copy_statistics + int64_t(at_.slot[b]) * 2;
        to[0] = rstd_[RECURRENT][b];
        to[1] = nu_[RECURRENT][b];
      }
      if (at_.kind[b] != Cells::ACTIVE) continue;
      T* to = saved.statistics + int64_t(at_.slot[b]) * PRODUCTS * 2;
      for (int product = 0; product < PRODUCTS; ++product) {
        to[2 * product] = rstd_[product][b];
        to[2 * product + 1] = nu_[product][b];
      }
    }
  }

  T detector_product(int64_t l, int product, const T* a) const {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    return dot(layer.weight[product] + GATES * layer.size * K, a, K);
  }

  const ForwardCall<T, S>& call_;
  const Problem<T>& p_;
  const Cells& at_;
  const int64_t B_, L_;
  const bool training_;
  const int thread_, threads_;

  std::vector<const S*> packed_;
  std::vector<char> backwards_;             // (L): the last pass over the panels
  std::vector<T> mean_[PRODUCTS], rstd_[PRODUCTS], nu_[PRODUCTS];  // (B): with layer norm
  std::vector<ByPanel<T>> biases_, gains_;  // per layer, and product
  Rows<T, S> rows_[PRODUCTS];
  Buffer scratch_;
};

}  // namespace hmrnn
