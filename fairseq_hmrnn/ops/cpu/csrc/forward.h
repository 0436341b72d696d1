// The forward pass: every thread walks through all cells, owns some hidden units of every layer, and decides the
// boundaries for itself (the detector's row is cheap), so that one barrier per cell is enough.
//
// Samples do not wait for each other. Each walks through its own cells in order, (t, 1) to (t, L) and on to t + 1, and
// stops where one needs products; the layer where most of them wait goes next. So the weights of an upper layer, which
// few samples need at any one step, are read once for many.
#pragma once

#include <cmath>
#include <limits>

#include "layer_norm.h"
#include "problem.h"
#include "saved.h"
#include "stopwatch.h"
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
  bool backwards = false;            // which way the last pass before this call went over a weight, see Share::at

  const T* projected_row(int64_t t, int64_t b) const {
    return projected + problem.input_row(t, b) * problem.layers[0].rows();
  }
};

template <class T, class S>
class ForwardWorker {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  enum Kind { FROZEN_STEP, KEPT_COPY, FRESH_COPY, ACTIVE };

 public:
  ForwardWorker(const ForwardCall<T, S>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.problem), B_(p_.B), L_(p_.L), training_(call.saved), thread_(thread), threads_(threads),
        barrier_(barrier), watch_(thread == 0 && call.problem.B >= 4) {
    const int64_t n = L_ * B_;
    z_.resize(n);
    h_.resize(n);
    h_read_.resize(n);
    run_.assign(n, -1);
    u_.assign(n, 0);
    slot_.assign(n, -1);
    parity_.assign(n, 0);
    t_.assign(B_, 0);
    layer_.assign(B_, 0);
    kind_.resize(B_);
    zp_.resize(B_);
    zb_.resize(B_);
    new_slot_.resize(B_);
    backwards_.assign(L_, call.backwards);
    slots_.assign(L_, 0);
    copies_.assign(L_, 0);
    for (int product = 0; product < PRODUCTS; ++product) {
      mean_[product].resize(B_);
      rstd_[product].resize(B_);
      nu_[product].resize(B_);
    }
    int64_t most = 1;
    for (const auto& layer : p_.layers) most = std::max(most, share(layer).size());
    for (const auto& layer : p_.layers) {
      biases_.emplace_back(layer.bias, layer.size);
      for (int product = 0; product < PRODUCTS; ++product) gains_.emplace_back(layer.gain[product], layer.size);
    }
    scratch_ = buffer_of<T>(B_ * P * (p_.layer_norm ? most * PRODUCTS : 1));
  }

  void run() {
    start();
    advance(0, p_.T_);
    finish();
  }

  // Take all samples through steps [first, last), after `start` and the steps before.
  void advance(int64_t first, int64_t last) {
    t_.assign(B_, first);
    last_ = last;
    changed_.assign(L_ * B_, 0);
    for (int b = 0; b < B_; ++b) walk(b);
    for (int64_t l = busiest(); l >= 0; l = busiest()) {
      gather(l);
      members_ = gathered_;
      cell(l);
      for (const int b : gathered_) walk(b);
    }
  }

  // h of a layer now, and whether `advance` changed it.
  const T* h(int64_t l, int64_t b) const { return h_[l * B_ + b]; }
  bool changed(int64_t l, int64_t b) const { return changed_[l * B_ + b]; }

  // Read the start state.
  void start() {
    pack();
    for (int64_t l = 0; l < L_; ++l)
      for (int64_t b = 0; b < B_; ++b) {
        const int64_t H = p_.layers[l].size;
        z_[l * B_ + b] = p_.z0[b * L_ + l];
        if (call_.copy_u) {
          u_[l * B_ + b] = call_.copy_u[b * L_ + l];
          run_[l * B_ + b] = std::isnan(u_[l * B_ + b]) ? -1 : 0;
        }
        h_[l * B_ + b] = h_read_[l * B_ + b] = p_.h0[l] + b * H;
        if (T* masked = call_.masked[l]) {
          h_read_[l * B_ + b] = masked + b * H;
          for (int64_t j = own_first(p_.layers[l]); j < own_last(p_.layers[l]); ++j)
            masked[b * H + j] = p_.mask[l][b * H + j] * p_.h0[l][b * H + j];
        }
      }
    if (training_ && thread_ == 0) std::copy(z_.begin(), z_.end(), call_.saved_z);
    barrier_.wait();
    watch_.lap(FORWARD_PRODUCTS);
  }

  // Write the final state.
  void finish() {
    for (int64_t l = 0; l < L_; ++l) {
      const auto& layer = p_.layers[l];
      const Share own = share(layer);
      for (int64_t b = 0; b < B_; ++b)
        for (int64_t panel = own.first; panel < own.last; ++panel) {
          const int64_t at = b * layer.size + panel * W;
          const int lanes = layer.width(panel);
          store(call_.h[l] + at, load(h_[l * B_ + b] + panel * W, lanes), lanes);
          if (training_) store(call_.c[l] + at, previous_c(l, b, panel, lanes), lanes);
        }
    }
    if (thread_ == 0)
      for (int64_t l = 0; l < L_; ++l) {
        if (training_) {
          (*call_.saved)[l].slots = slots_[l];
          (*call_.saved)[l].copies = copies_[l];
        }
        for (int64_t b = 0; b < B_; ++b) {
          const int64_t i = l * B_ + b;
          call_.z[b * L_ + l] = z_[i];
          if (call_.copy_u) call_.copy_u[b * L_ + l] = run_[i] < 0 ? std::numeric_limits<T>::quiet_NaN() : u_[i];
        }
      }
  }

 private:
  Share share(const LayerWeights<T>& layer) const { return Share(layer.panels(), thread_, threads_); }
  int64_t own_first(const LayerWeights<T>& layer) const { return std::min(share(layer).first * W, layer.size); }
  int64_t own_last(const LayerWeights<T>& layer) const { return std::min(share(layer).last * W, layer.size); }

  void pack() {
    packed_.resize(L_ * PRODUCTS);
    for (int64_t l = 0; l < L_; ++l) {
      const auto& layer = p_.layers[l];
      const Share own = share(layer);
      for (int product = 0; product < PRODUCTS; ++product) {
        S* room = call_.to_pack[l * PRODUCTS + product];
        packed_[l * PRODUCTS + product] = room ? room : call_.packed[l * PRODUCTS + product];
        if (!room) continue;
        for (int64_t panel = own.first; panel < own.last; ++panel)
          pack_gates(layer.weight[product], layer.size, layer.columns[product], panel, room);
      }
    }
  }

  bool finished(int b) const { return t_[b] == last_; }

  // The layer where most samples wait, the lowest of several; -1 when all are done.
  int64_t busiest() {
    waiting_.assign(L_, 0);
    for (int64_t b = 0; b < B_; ++b)
      if (!finished(b)) ++waiting_[layer_[b]];
    const auto most = std::max_element(waiting_.begin(), waiting_.end());
    return *most ? most - waiting_.begin() : -1;
  }

  void gather(int64_t l) {
    gathered_.clear();
    for (int b = 0; b < B_; ++b)
      if (!finished(b) && layer_[b] == l) gathered_.push_back(b);
  }

  // One sample through the cells that need no products, to the first that does.
  void walk(int b) {
    while (!finished(b) && !arrive(b)) {
      members_.assign(1, b);
      cell(layer_[b]);
    }
  }

  // Decides what a sample does in the cell it has come to; returns whether that needs products.
  bool arrive(int b) {
    const int64_t l = layer_[b], i = l * B_ + b;
    zp_[b] = z_[i];
    zb_[b] = l ? z_[i - B_] : T(1);
    kind_[b] = FROZEN_STEP;
    if (!p_.is_valid(t_[b], b)) return false;
    const bool copy = zp_[b] == 0 && zb_[b] == 0 && !(training_ && p_.copy_has_gate_gradients());
    kind_[b] = !copy ? ACTIVE : run_[i] < 0 ? FRESH_COPY : KEPT_COPY;
    return kind_[b] == ACTIVE || (kind_[b] == FRESH_COPY && copy_needs_products(l));
  }

  // Without the backward pass a COPY step needs its detector only, and that needs no gates without layer norm.
  bool copy_needs_products(int64_t l) const {
    return training_ || (p_.layer_norm && p_.has_detector(l) && !p_.options.nested);
  }

  // One cell of layer l for all members, each at its own step.
  void cell(int64_t l) {
    classify(l);
    const bool any = !rows_[RECURRENT].empty();
    if (any) backwards_[l] = !backwards_[l] && rows_[RECURRENT].size() <= TILE_ROWS;  // more do not wait for memory
    for (int product = 0; any && product < PRODUCTS; ++product)
      if (!rows_[product].empty() && packed_[l * PRODUCTS + product])
        rows_[product].prepare(p_.layers[l].columns[product]);
    if (p_.layer_norm && any) {
      multiply_and_measure(l);
      barrier_.wait();
      watch_.lap(FORWARD_PRODUCTS);
      combine_statistics(l);
    }
    detect(l);
    watch_.lap(FORWARD_CELLS);
    const auto& layer = p_.layers[l];
    const Share own = share(layer);
    for (int64_t n = 0; any && n < own.size(); ++n) {
      const int64_t panel = own.at(n, backwards_[l]);
      if (l == 0 && call_.projected) fetch_projected(panel);
      if (!p_.layer_norm) multiply_all(l, panel);
      if (!p_.layer_norm) watch_.lap(FORWARD_PRODUCTS);
      for (size_t i = 0; i < members_.size(); ++i) {
        if (p_.layer_norm && i + 1 < members_.size()) fetch_products(members_[i + 1], panel - own.first);
        update(l, members_[i], panel, panel - own.first);
      }
      watch_.lap(FORWARD_CELLS);
    }
    const int64_t first = own_first(layer), count = own_last(layer) - first, H = layer.size;
    for (const int b : members_) {
      T* row = call_.hidden[l] + (t_[b] * B_ + b) * H;
      const int64_t i = l * B_ + b;
      layer_[b] = l + 1 < L_ ? l + 1 : 0;
      if (layer_[b] == 0) ++t_[b];
      if (kind_[b] != ACTIVE) {
        if (count > 0) std::memcpy(row + first, h_[i] + first, count * sizeof(T));
        continue;
      }
      h_[i] = h_read_[i] = row;
      changed_[i] = 1;
      slot_[i] = new_slot_[b];
      if (T* masked = call_.masked[l]) {
        parity_[i] ^= 1;
        h_read_[i] = masked + (parity_[i] * B_ + b) * H;
      }
    }
    if (any) barrier_.wait();
  }

  // A sample's products with layer norm, written before the weights passed through the cache.
  void fetch_products(int b, int64_t own_panel) {
    for (int product = 0; product < PRODUCTS; ++product)
      for (int q = 0; !rows_[product].empty() && q < GATES; ++q)
        __builtin_prefetch(scratch(own_panel, product) + b * P + q * W);
  }

  // Layer 1's bottom-up products lie 4 H apart: asked for now, they are there after the recurrent product.
  void fetch_projected(int64_t panel) const {
    const auto& layer = p_.layers[0];
    for (const int b : members_)
      for (int q = 0; q < GATES; ++q) {
        const T* at = call_.projected_row(t_[b], b) + q * layer.size + panel * W;
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + W - 1, 0, 2);
      }
  }

  // Where each member's gates are kept, and which rows the products need for it.
  void classify(int64_t l) {
    const auto& layer = p_.layers[l];
    const bool dense = !p_.options.skip;
    for (auto& rows : rows_) rows.clear();
    for (const int b : members_) {
      const int64_t i = l * B_ + b;
      const T zp = zp_[b], zb = zb_[b];
      if (dense && kind_[b] == KEPT_COPY) kind_[b] = FRESH_COPY;
      if (kind_[b] == FRESH_COPY) run_[i] = copies_[l]++;
      if (kind_[b] == ACTIVE) run_[i] = -1;
      new_slot_[b] = kind_[b] == FROZEN_STEP ? FROZEN : kind_[b] == ACTIVE ? slots_[l]++ : run_[i];
      const bool products = kind_[b] == ACTIVE || (kind_[b] == FRESH_COPY && (dense || copy_needs_products(l)));
      if (!products) continue;
      // With layer norm a closed bottom-up term enters the gradient of its gate.
      const bool closed_too = dense || (training_ && p_.layer_norm && kind_[b] == ACTIVE);
      rows_[RECURRENT].add(h_read_[i], 1, b);
      if (layer.weight[TOP_DOWN] && (zp != 0 || dense)) rows_[TOP_DOWN].add(h_[i + B_], p_.layer_norm ? 1 : zp, b);
      if (l > 0 && (zb != 0 || closed_too)) rows_[BOTTOM_UP].add(h_[i - B_], p_.layer_norm ? 1 : zb, b);
      if (l == 0 && !call_.projected) rows_[BOTTOM_UP].add(p_.input(t_[b], b), 1, b);
    }
    if (training_ && thread_ == 0) remember(l);
  }

  void remember(int64_t l) {
    SavedRoom<T>& saved = (*call_.saved)[l];
    for (const int b : members_) {
      const int slot = new_slot_[b];
      saved.slot[t_[b] * B_ + b] = slot;
      if (kind_[b] != ACTIVE) continue;
      saved.step[slot] = int(t_[b]);
      saved.sample[slot] = b;
      saved.previous[slot] = slot_[l * B_ + b];
    }
  }

  // One product of the rows with one panel, into `out` (B, PANEL).
  void multiply(int64_t l, int product, int64_t panel, bool add, T* out) {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    if (const S* packed = packed_[l * PRODUCTS + product])
      multiply_panel<T, S>(rows_[product], elements<S>(K), packed + panel * elements<S>(K) * P, P, add, out);
    else if constexpr (std::is_same<S, T>::value)
      multiply_gates<T>(rows_[product], K, layer.weight[product], layer.size, panel * W, layer.width(panel), add, out);
  }

  void multiply_all(int64_t l, int64_t panel) {
    for (int product = 0; product < PRODUCTS; ++product)
      if (!rows_[product].empty()) multiply(l, product, panel, product != RECURRENT, scratch_.template as<T>());
  }

  T* scratch(int64_t own_panel, int product) {
    return scratch_.template as<T>() + (own_panel * PRODUCTS + product) * B_ * P;
  }

  T* statistics(int product, int64_t b, int64_t panel) {
    return call_.statistics + ((product * B_ + b) * call_.most_panels + panel) * 2;
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
      for (const int b : members_) {
        rstd_[BOTTOM_UP][b] = call_.projected_rstd[p_.input_row(t_[b], b)];
        nu_[BOTTOM_UP][b] = call_.projected_row(t_[b], b)[GATES * layer.size];
      }
    if (training_ && thread_ == 0) remember_statistics(l);
  }

  void remember_statistics(int64_t l) {
    SavedRoom<T>& saved = (*call_.saved)[l];
    for (const int b : members_) {
      if (kind_[b] == FRESH_COPY) {
        T* to = saved.copy_statistics + int64_t(new_slot_[b]) * 2;
        to[0] = rstd_[RECURRENT][b];
        to[1] = nu_[RECURRENT][b];
      }
      if (kind_[b] != ACTIVE) continue;
      T* to = saved.statistics + int64_t(new_slot_[b]) * PRODUCTS * 2;
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

  // The detector's term of one product, gate included. Called for open terms only, or for all without `skip`.
  T detector_term(int64_t l, int64_t b, int product) const {
    const auto& layer = p_.layers[l];
    if (p_.layer_norm) return layer.gain[product][GATES * layer.size] * nu_[product][b];
    const int64_t i = l * B_ + b;
    if (product == RECURRENT) return detector_product(l, product, h_read_[i]);
    if (product == TOP_DOWN) return detector_product(l, product, h_[i + B_]);
    if (l > 0) return detector_product(l, product, h_[i - B_]);
    if (call_.projected) return call_.projected_row(t_[b], b)[GATES * layer.size];
    return detector_product(l, product, p_.input(t_[b], b));
  }

  T detector(int64_t l, int64_t b) {
    const int64_t i = l * B_ + b;
    if (kind_[b] == KEPT_COPY) return u_[i];
    const auto& layer = p_.layers[l];
    T u = detector_term(l, b, RECURRENT) + layer.bias[GATES * layer.size];
    if (layer.weight[TOP_DOWN] && zp_[b] != 0) u += zp_[b] * detector_term(l, b, TOP_DOWN);
    if (zb_[b] != 0) u += zb_[b] * detector_term(l, b, BOTTOM_UP);
    return u_[i] = u;
  }

  // Equations (5) and (6) for all members of a cell.
  void detect(int64_t l) {
    for (const int b : members_) {
      if (kind_[b] != FROZEN_STEP) decide(l, b);
      if (training_ && thread_ == 0)
        call_.saved_z[((t_[b] + 1) * L_ + l) * B_ + b] = z_[l * B_ + b];
    }
  }

  void decide(int64_t l, int b) {
    const bool nested = p_.options.nested;
    const int64_t t = t_[b], i = l * B_ + b, out = (t * B_ + b) * L_ + l;
    z_[i] = 0;
    // A nested detector on a COPY step has nothing to say, but its own gradient depends on what it would say.
    if (!p_.has_detector(l) || (nested && zb_[b] == 0 && !training_)) return;
    const T u = detector(l, b);
    T z_tilde = p_.probability(u), z = p_.decide(z_tilde, t, b, l);
    if (nested) {
      z_tilde *= zb_[b];
      z *= zb_[b];
    }
    z_[i] = z;
    if (thread_ != 0) return;
    call_.boundaries[out] = z;
    call_.boundary_probs[out] = z_tilde;
    if (training_) call_.saved_u[(t * L_ + l) * B_ + b] = u;
  }

  T* saved_gates(int64_t l, int64_t slot, int64_t panel) const {
    return (*call_.saved)[l].gates + (slot * p_.layers[l].panels() + panel) * SAVED * W;
  }

  // s of eq. (1) for the units of a panel, from products in scratch_.
  void pre_activation(int64_t l, int64_t b, int64_t panel, int64_t own_panel, Vec<T> (&s)[GATES]) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, unit = panel * W;
    const int lanes = layer.width(panel);
    const T* projected = l == 0 && call_.projected ? call_.projected_row(t_[b], b) + unit : nullptr;
    for (int q = 0; q < GATES; ++q) s[q] = load(biases_[l].at(unit, q));
    if (!p_.layer_norm) {
      const T* row = scratch_.template as<T>() + b * P;
      for (int q = 0; q < GATES; ++q) s[q] += load(row + q * W);
      if (projected)
        for (int q = 0; q < GATES; ++q) s[q] += load(projected + q * H, lanes);
      return;
    }
    const T factor[PRODUCTS] = {1, zp_[b], zb_[b]};
    for (int product = 0; product < PRODUCTS; ++product) {
      if (!layer.weight[product]) continue;
      const bool given = product == BOTTOM_UP && projected;  // and kept as it is
      const bool keep = training_ && kind_[b] == ACTIVE && !given && (product != TOP_DOWN || zp_[b] != 0);
      if (factor[product] == 0 && !keep) continue;
      const ByPanel<T>& gain = gains_[l * PRODUCTS + product];
      const T* row = scratch(own_panel, product) + b * P;
      T* kept = keep ? (*call_.saved)[l].normalised[product] + (new_slot_[b] * layer.panels() + panel) * P : nullptr;
      for (int q = 0; q < GATES; ++q) {
        const Vec<T> n = given ? load(projected + q * H, lanes)
                               : (load(row + q * W) - mean_[product][b]) * rstd_[product][b];
        s[q] += factor[product] * load(gain.at(unit, q)) * n;
        if (keep) store(kept + q * W, n);
      }
    }
  }

  // Equations (1) to (4) for the units of a panel of one sample.
  void update(int64_t l, int64_t b, int64_t panel, int64_t own_panel) {
    if (kind_[b] == FROZEN_STEP || kind_[b] == KEPT_COPY || (kind_[b] == FRESH_COPY && !training_)) return;
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, unit = panel * W, i = l * B_ + b;
    const int lanes = layer.width(panel);
    Vec<T> s[GATES];
    pre_activation(l, b, panel, own_panel, s);
    const Gates<T> gates = activate<T>(s);
    const Vec<T> h_prev = load(h_[i] + unit, lanes), c_prev = previous_c(l, b, panel, lanes);
    if (kind_[b] == FRESH_COPY) {
      const int64_t at = new_slot_[b] * layer.panels() + panel;
      save_copy_terms<T>(gates, h_prev, c_prev, (*call_.saved)[l].copy_terms + at * COPY_TERMS * W);
      return;
    }
    const Cell<T> now = step<T>(gates, Operation<T>(zp_[b], zb_[b]), h_prev, c_prev);
    store(call_.hidden[l] + (t_[b] * B_ + b) * H + unit, now.h, lanes);
    if (T* masked = call_.masked[l])
      store(masked + ((parity_[i] ^ 1) * B_ + b) * H + unit, now.h * load(p_.mask[l] + b * H + unit, lanes), lanes);
    if (training_)
      save<T>(gates, now.c, saved_gates(l, new_slot_[b], panel));
    else
      store(call_.c[l] + b * H + unit, now.c, lanes);
  }

  Vec<T> previous_c(int64_t l, int64_t b, int64_t panel, int lanes) const {
    if (!training_) return load(call_.c[l] + b * p_.layers[l].size + panel * W, lanes);
    const int slot = slot_[l * B_ + b];
    if (slot < 0) return load(p_.c0[l] + b * p_.layers[l].size + panel * W, lanes);
    return saved_c<T>(saved_gates(l, slot, panel));
  }

  const ForwardCall<T, S>& call_;
  const Problem<T>& p_;
  const int64_t B_, L_;
  const bool training_;
  const int thread_, threads_;
  Barrier& barrier_;

  std::vector<const S*> packed_;
  std::vector<T> z_, u_;                  // (L, B): boundaries now; detector of the run of COPY steps
  std::vector<const T*> h_, h_read_;      // (L, B): rows of h now, and what the recurrent product reads (masked)
  std::vector<int> run_, slot_, parity_;  // (L, B): copy slot of the run; last active slot; half of `masked` in use
  std::vector<char> changed_, backwards_; // (L, B): since `advance` was called; (L): the last pass over the panels
  std::vector<int> slots_, copies_;       // (L): used so far
  std::vector<int64_t> t_, layer_;        // (B): the cell that each sample has come to
  int64_t last_ = 0;                      // the step before which `advance` stops
  std::vector<int> members_, gathered_, waiting_;
  std::vector<Kind> kind_;                // (B): in that cell, as all below
  std::vector<T> zp_, zb_, mean_[PRODUCTS], rstd_[PRODUCTS], nu_[PRODUCTS];
  std::vector<int> new_slot_;
  std::vector<ByPanel<T>> biases_, gains_;  // per layer, and product
  Rows<T, S> rows_[PRODUCTS];
  Buffer scratch_;
  Stopwatch watch_;
};

}  // namespace hmrnn
