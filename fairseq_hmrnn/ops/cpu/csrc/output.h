// The output module and the softmax layer for single steps: equations (7) and (8), then logits. A layer's term in both
// equations is a function of its h alone; it is kept, and computed again only where h has changed.
#pragma once

#include "forward.h"
#include "gated_sum.h"

namespace hmrnn {

template <class T, class S>
struct OutputWeights {
  std::vector<const S*> terms;  // per layer: W_e[l] in panels, (ceil(E / PANEL), H_l, PANEL)
  std::vector<const T*> gates;  // per layer: its columns in all gates, (L, H_l)
  const S* softmax = nullptr;   // panels, (ceil(V / PANEL), E, PANEL)
  const T* bias = nullptr;      // (V)
  int64_t E = 0, V = 0;
};

template <class T, class S>
class OutputWorker {
  static constexpr int64_t P = PANEL<T>;

 public:
  // terms (B, L, E + L), in and out: per layer its part of h_e, then of every gate. features (B, E): room for h_e.
  OutputWorker(const OutputWeights<T, S>& weights, const ForwardCall<T, S>& call, T* terms, int thread, int threads,
               Barrier& barrier)
      : weights_(weights), p_(call.problem), terms_(terms), thread_(thread), threads_(threads), barrier_(barrier),
        backwards_(!call.backwards), gates_(p_.L), parts_(p_.L), scratch_(buffer_of<T>(p_.B * P)) {}

  // After a step of `cells`: h_e into features (B, E), and logits (B, V). Ends with a barrier.
  void step(const ForwardWorker<T, S>& cells, T* features, T* logits) {
    for (int64_t l = 0; l < p_.L; ++l) update_terms(cells, l);
    barrier_.wait();
    for (int64_t b = 0; b < p_.B; ++b) combine(b, features + b * weights_.E);
    barrier_.wait();
    predict(features, logits);
    backwards_ = !backwards_;
    barrier_.wait();
  }

 private:
  int64_t width() const { return weights_.E + p_.L; }

  void update_terms(const ForwardWorker<T, S>& cells, int64_t l) {
    const int64_t H = p_.layers[l].size;
    rows_.clear();
    for (int b = 0; b < p_.B; ++b)
      if (cells.changed(l, b)) rows_.add(cells.h(l, b), 1, b);
    if (rows_.empty()) return;
    multiply(weights_.terms[l], weights_.E, H, [&](int b) { return terms_ + (b * p_.L + l) * width(); });
    for (int i = 0; i < rows_.size(); ++i)
      for (int64_t gate = thread_; gate < p_.L; gate += threads_)
        terms_[(rows_.sample[i] * p_.L + l) * width() + weights_.E + gate] =
            dot(weights_.gates[l] + gate * H, rows_.a[i], H);
  }

  // Products of rows_ with the own panels of a matrix (columns, K): into `columns` numbers at to(sample).
  template <class F>
  void multiply(const S* panels, int64_t columns, int64_t K, F to) {
    const Share own(ceil_div(columns, P), thread_, threads_);
    const int64_t E = elements<S>(K);
    if (own.size() > 0) rows_.prepare(K);
    for (int64_t i = 0; i < own.size(); ++i) {
      const int64_t panel = own.at(i, backwards_);
      multiply_panel<T, S>(rows_, E, panels + panel * E * P, P, false, scratch_.template as<T>());
      const int64_t count = std::min(P, columns - panel * P);
      for (const int b : rows_.sample)
        std::memcpy(to(b) + panel * P, scratch_.template as<T>() + b * P, count * sizeof(T));
    }
  }

  // The own units of h_e of one sample.
  void combine(int64_t b, T* features) {
    for (int64_t l = 0; l < p_.L; ++l) parts_[l] = terms_ + (b * p_.L + l) * width();
    open_gates(parts_, weights_.E, gates_.data());
    const Share own(ceil_div(weights_.E, LANES<T>), thread_, threads_);
    gated_sum(parts_, gates_.data(), own.first * LANES<T>, std::min(own.last * LANES<T>, weights_.E), features);
  }

  void predict(const T* features, T* logits) {
    const int64_t E = weights_.E, V = weights_.V;
    rows_.clear();
    for (int b = 0; b < p_.B; ++b) rows_.add(features + b * E, 1, b);
    multiply(weights_.softmax, V, E, [&](int b) { return logits + b * V; });
    const Share own(ceil_div(V, P), thread_, threads_);
    const int64_t first = own.first * P, last = std::min(own.last * P, V);
    for (int64_t b = 0; b < p_.B; ++b)
      if (first < last) add_scaled(logits + b * V + first, T(1), weights_.bias + first, last - first);
  }

  const OutputWeights<T, S>& weights_;
  const Problem<T>& p_;
  T* const terms_;
  const int thread_, threads_;
  Barrier& barrier_;
  bool backwards_;
  std::vector<T> gates_;
  std::vector<const T*> parts_;  // of the sample at hand: its layers' terms
  Rows<T, S> rows_;
  Buffer scratch_;
};

}  // namespace hmrnn
