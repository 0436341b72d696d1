// The forward pass: every thread walks through all cells, owns some hidden units of every layer, and decides the
// boundaries for itself (the detector's row is cheap), so that one barrier per cell is enough. Or, without a backward
// pass and with samples enough for all, every thread owns some samples, and waits for nobody.
//
// Samples do not wait for each other. Each walks through its own cells in order, (t, 1) to (t, L) and on to t + 1, and
// stops where one needs products; the layer where most of them wait goes next. So the weights of an upper layer, which
// few samples need at any one step, are read once for many.
#pragma once

#include <cmath>
#include <limits>

#include "detector_hidden.h"
#include "gate_products.h"
#include "stopwatch.h"

namespace hmrnn {

template <class T, class S>
class ForwardWorker {
  static constexpr int W = LANES<T>;
  using Cells = ForwardCells<T>;

 public:
  ForwardWorker(const ForwardCall<T, S>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.problem), B_(p_.B), L_(p_.L), training_(call.saved), thread_(thread), threads_(threads),
        samples_(call.by_samples ? Share(B_, thread, threads) : Share(B_, 0, 1)), barrier_(barrier), at_(B_, L_),
        products_(call, at_, thread, threads), hidden_(call, at_), z_(L_ * B_), u_(L_ * B_, 0), run_(L_ * B_, -1),
        slot_(L_ * B_, -1), parity_(L_ * B_, 0), slots_(L_, 0), copies_(L_, 0),
        watch_(thread == 0 && call.problem.B >= 4) {}
  ForwardWorker(const ForwardWorker&) = delete;  // products_ and hidden_ refer to at_

  void run() {
    start();
    advance(0, p_.T_);
    finish();
  }

  // Take all samples through steps [first, last), after `start` and the steps before.
  void advance(int64_t first, int64_t last) {
    at_.t.assign(B_, first);
    last_ = last;
    changed_.assign(L_ * B_, 0);
    for (int64_t b = samples_.first; b < samples_.last; ++b) walk(int(b));
    for (int64_t l = busiest(); l >= 0; l = busiest()) {
      gather(l);
      at_.members = gathered_;
      cell(l);
      for (const int b : gathered_) walk(b);
    }
  }

  // h of a layer now, and whether `advance` changed it.
  const T* h(int64_t l, int64_t b) const { return at_.h[l * B_ + b]; }
  bool changed(int64_t l, int64_t b) const { return changed_[l * B_ + b]; }

  // Read the start state.
  void start() {
    products_.pack();
    for (int64_t l = 0; l < L_; ++l)
      for (int64_t b = samples_.first; b < samples_.last; ++b) {
        const int64_t H = p_.layers[l].size;
        z_[l * B_ + b] = p_.z0[b * L_ + l];
        if (call_.copy_u) {
          u_[l * B_ + b] = call_.copy_u[b * L_ + l];
          run_[l * B_ + b] = std::isnan(u_[l * B_ + b]) ? -1 : 0;
        }
        at_.h[l * B_ + b] = at_.h_read[l * B_ + b] = p_.h0[l] + b * H;
        if (T* masked = call_.masked[l]) {
          at_.h_read[l * B_ + b] = masked + b * H;
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
      for (int64_t b = samples_.first; b < samples_.last; ++b)
        for (int64_t panel = own.first; panel < own.last; ++panel) {
          const int64_t at = b * layer.size + panel * W;
          const int lanes = layer.width(panel);
          store(call_.h[l] + at, load(at_.h[l * B_ + b] + panel * W, lanes), lanes);
          if (training_) store(call_.c[l] + at, previous_c(l, b, panel, lanes), lanes);
        }
    }
    if (tells())
      for (int64_t l = 0; l < L_; ++l) {
        if (training_) {
          (*call_.saved)[l].slots = slots_[l];
          (*call_.saved)[l].copies = copies_[l];
        }
        for (int64_t b = samples_.first; b < samples_.last; ++b) {
          const int64_t i = l * B_ + b;
          call_.z[b * L_ + l] = z_[i];
          if (call_.copy_u) call_.copy_u[b * L_ + l] = run_[i] < 0 ? std::numeric_limits<T>::quiet_NaN() : u_[i];
        }
      }
  }

 private:
  // The own units of a layer, as panels.
  Share share(const LayerWeights<T>& layer) const { return call_.own(layer, thread_, threads_); }
  int64_t own_first(const LayerWeights<T>& layer) const { return std::min(share(layer).first * W, layer.size); }
  int64_t own_last(const LayerWeights<T>& layer) const { return std::min(share(layer).last * W, layer.size); }

  // Whether this thread writes what all that have a sample know of it.
  bool tells() const { return thread_ == 0 || call_.by_samples; }

  // Wait for the other units of the same samples.
  void meet() {
    if (!call_.by_samples) barrier_.wait();
  }

  bool finished(int b) const { return at_.t[b] == last_; }

  // The layer where most samples wait, the lowest of several; -1 when all are done.
  int64_t busiest() {
    waiting_.assign(L_, 0);
    for (int64_t b = samples_.first; b < samples_.last; ++b)
      if (!finished(int(b))) ++waiting_[at_.layer[b]];
    const auto most = std::max_element(waiting_.begin(), waiting_.end());
    return *most ? most - waiting_.begin() : -1;
  }

  void gather(int64_t l) {
    gathered_.clear();
    for (int64_t b = samples_.first; b < samples_.last; ++b)
      if (!finished(int(b)) && at_.layer[b] == l) gathered_.push_back(int(b));
  }

  // One sample through the cells that need no products, to the first that does.
  void walk(int b) {
    while (!finished(b) && !arrive(b)) {
      at_.members.assign(1, b);
      cell(at_.layer[b]);
    }
  }

  // Decides what a sample does in the cell it has come to; returns whether that needs products.
  bool arrive(int b) {
    const int64_t l = at_.layer[b], i = l * B_ + b;
    at_.zp[b] = z_[i];
    at_.zb[b] = l ? z_[i - B_] : T(1);
    at_.kind[b] = Cells::FROZEN_STEP;
    if (!p_.is_valid(at_.t[b], b)) return false;
    const bool copy = at_.zp[b] == 0 && at_.zb[b] == 0 && !(training_ && p_.copy_has_gate_gradients());
    at_.kind[b] = !copy ? Cells::ACTIVE : run_[i] < 0 ? Cells::FRESH_COPY : Cells::KEPT_COPY;
    return at_.kind[b] == Cells::ACTIVE || (at_.kind[b] == Cells::FRESH_COPY && products_.copy_needs_products(l));
  }

  // One cell of layer l for all members, each at its own step.
  void cell(int64_t l) {
    classify(l);
    products_.select(l);
    const bool any = products_.any(), normalises = p_.layer_norm && any;
    shares_terms_ = any && threads_ > 1 && !call_.by_samples && hidden_.worth_sharing(l, normalises);
    if (normalises) products_.multiply_and_measure(l);
    if (shares_terms_) share_terms(l);
    if (normalises || shares_terms_) meet();
    if (normalises) {
      watch_.lap(FORWARD_PRODUCTS);
      products_.combine_statistics(l);
    }
    detect(l);
    watch_.lap(FORWARD_CELLS);
    if (any) update(l);
    leave(l);
    if (any) meet();
  }

  // Where each member's gates are kept.
  void classify(int64_t l) {
    for (const int b : at_.members) {
      const int64_t i = l * B_ + b;
      auto& kind = at_.kind[b];
      if (!p_.options.skip && kind == Cells::KEPT_COPY) kind = Cells::FRESH_COPY;
      if (kind == Cells::FRESH_COPY) run_[i] = copies_[l]++;
      if (kind == Cells::ACTIVE) run_[i] = -1;
      at_.slot[b] = kind == Cells::FROZEN_STEP ? FROZEN : kind == Cells::ACTIVE ? slots_[l]++ : run_[i];
    }
    if (training_ && thread_ == 0) remember(l);
  }

  void remember(int64_t l) {
    SavedRoom<T>& saved = (*call_.saved)[l];
    for (const int b : at_.members) {
      const int slot = at_.slot[b];
      saved.slot[at_.t[b] * B_ + b] = slot;
      if (at_.kind[b] != Cells::ACTIVE) continue;
      saved.step[slot] = int(at_.t[b]);
      saved.sample[slot] = b;
      saved.previous[slot] = slot_[l * B_ + b];
    }
  }

  // Whether a member's detector has anything to say: a nested one on a COPY step has not, but its own gradient depends
  // on what it would say.
  bool detects(int64_t l, int64_t b) const {
    return p_.has_detector(l) && (training_ || !p_.options.nested || at_.zb[b] != 0);
  }

  // Computes for a share of the members what the hidden layer of the detector adds to u. Those of a cell that needs
  // products have all come to do so themselves.
  void share_terms(int64_t l) {
    const Share share(int64_t(at_.members.size()), thread_, threads_);
    for (int64_t i = share.first; i < share.last; ++i) {
      const int b = at_.members[i];
      if (detects(l, b)) call_.hidden_terms[b] = hidden_.term(l, b);
    }
  }

  T detector(int64_t l, int64_t b) {
    const int64_t i = l * B_ + b;
    if (at_.kind[b] == Cells::KEPT_COPY) return u_[i];
    const auto& layer = p_.layers[l];
    T u = products_.detector_term(l, b, RECURRENT) + layer.bias[GATES * layer.size];
    if (layer.weight[TOP_DOWN] && at_.zp[b] != 0) u += at_.zp[b] * products_.detector_term(l, b, TOP_DOWN);
    if (at_.zb[b] != 0) u += at_.zb[b] * products_.detector_term(l, b, BOTTOM_UP);
    if (layer.detector_units) u += shares_terms_ ? call_.hidden_terms[b] : hidden_.term(l, b);
    return u_[i] = u;
  }

  // Equations (5) and (6) for all members of a cell.
  void detect(int64_t l) {
    for (const int b : at_.members) {
      if (at_.kind[b] != Cells::FROZEN_STEP) decide(l, b);
      if (training_ && thread_ == 0)
        call_.saved_z[((at_.t[b] + 1) * L_ + l) * B_ + b] = z_[l * B_ + b];
    }
  }

  void decide(int64_t l, int b) {
    const bool nested = p_.options.nested;
    const int64_t t = at_.t[b], i = l * B_ + b, out = (t * B_ + b) * L_ + l;
    z_[i] = 0;
    if (!detects(l, b)) return;
    const T u = detector(l, b);
    T z_tilde = p_.probability(u), z = p_.decide(z_tilde, t, b, l);
    if (nested) {
      z_tilde *= at_.zb[b];
      z *= at_.zb[b];
    }
    z_[i] = z;
    if (!tells()) return;
    call_.boundaries[out] = z;
    call_.boundary_probs[out] = z_tilde;
    if (training_) call_.saved_u[(t * L_ + l) * B_ + b] = u;
  }

  T* saved_gates(int64_t l, int64_t slot, int64_t panel) const {
    return (*call_.saved)[l].gates + (slot * p_.layers[l].panels() + panel) * SAVED * W;
  }

  // Equations (1) to (4) for the own units of all members.
  void update(int64_t l) {
    const Share own = share(p_.layers[l]);
    for (int64_t n = 0; n < own.size(); ++n) {
      const int64_t panel = products_.panel(l, n);
      if (l == 0 && call_.projected) products_.fetch_projected(panel);
      if (!p_.layer_norm) products_.multiply_all(l, panel);
      if (!p_.layer_norm) watch_.lap(FORWARD_PRODUCTS);
      for (size_t i = 0; i < at_.members.size(); ++i) {
        if (p_.layer_norm && i + 1 < at_.members.size())
          products_.fetch_products(at_.members[i + 1], panel - own.first);
        update(l, at_.members[i], panel, panel - own.first);
      }
      watch_.lap(FORWARD_CELLS);
    }
  }

  // The same for a panel of one.
  void update(int64_t l, int64_t b, int64_t panel, int64_t own_panel) {
    const auto kind = at_.kind[b];
    if (kind == Cells::FROZEN_STEP || kind == Cells::KEPT_COPY || (kind == Cells::FRESH_COPY && !training_)) return;
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, unit = panel * W, i = l * B_ + b;
    const int lanes = layer.width(panel);
    Vec<T> s[GATES];
    products_.pre_activation(l, b, panel, own_panel, s);
    const Gates<T> gates = activate<T>(s);
    const Vec<T> h_prev = load(at_.h[i] + unit, lanes), c_prev = previous_c(l, b, panel, lanes);
    if (kind == Cells::FRESH_COPY) {
      const int64_t at = at_.slot[b] * layer.panels() + panel;
      save_copy_terms<T>(gates, h_prev, c_prev, (*call_.saved)[l].copy_terms + at * COPY_TERMS * W);
      return;
    }
    const Cell<T> now = step<T>(gates, Operation<T>(at_.zp[b], at_.zb[b]), h_prev, c_prev);
    store(call_.hidden[l] + (at_.t[b] * B_ + b) * H + unit, now.h, lanes);
    if (T* masked = call_.masked[l])
      store(masked + ((parity_[i] ^ 1) * B_ + b) * H + unit, now.h * load(p_.mask[l] + b * H + unit, lanes), lanes);
    if (training_)
      save<T>(gates, now.c, saved_gates(l, at_.slot[b], panel));
    else
      store(call_.c[l] + b * H + unit, now.c, lanes);
  }

  // The members go on to their next cells.
  void leave(int64_t l) {
    const auto& layer = p_.layers[l];
    const int64_t first = own_first(layer), count = own_last(layer) - first, H = layer.size;
    for (const int b : at_.members) {
      T* row = call_.hidden[l] + (at_.t[b] * B_ + b) * H;
      const int64_t i = l * B_ + b;
      at_.layer[b] = l + 1 < L_ ? l + 1 : 0;
      if (at_.layer[b] == 0) ++at_.t[b];
      if (at_.kind[b] != Cells::ACTIVE) {
        if (count > 0) std::memcpy(row + first, at_.h[i] + first, count * sizeof(T));
        continue;
      }
      at_.h[i] = at_.h_read[i] = row;
      changed_[i] = 1;
      slot_[i] = at_.slot[b];
      if (T* masked = call_.masked[l]) {
        parity_[i] ^= 1;
        at_.h_read[i] = masked + (parity_[i] * B_ + b) * H;
      }
    }
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
  const Share samples_;  // its own
  Barrier& barrier_;

  ForwardCells<T> at_;
  GateProducts<T, S> products_;
  DetectorHidden<T, S> hidden_;
  std::vector<T> z_, u_;                  // (L, B): boundaries now; detector of the run of COPY steps
  std::vector<int> run_, slot_, parity_;  // (L, B): copy slot of the run; last active slot; half of `masked` in use
  std::vector<char> changed_;             // (L, B): since `advance` was called
  std::vector<int> slots_, copies_;       // (L): used so far
  bool shares_terms_ = false;             // whether call_.hidden_terms has those of the members
  int64_t last_ = 0;                      // the step before which `advance` stops
  std::vector<int> gathered_, waiting_;
  Stopwatch watch_;
};

}  // namespace hmrnn
