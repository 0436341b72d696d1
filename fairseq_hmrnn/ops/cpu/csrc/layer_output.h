// The gated output module over a sequence, equations (7) and (8), and its gradients. A layer's term is a function of its
// h alone, so it is computed once for every h: not again where COPY keeps it. What a run of COPY steps sends to a weight
// is summed before it is multiplied; what it sends to h is not, for the boundaries feel it step by step.
#pragma once

#include "gated_sum.h"
#include "inputs.h"

namespace hmrnn {

// The rows of one layer's distinct h, and which of them every step reads.
struct DistinctRows {
  std::vector<int64_t> first;  // of every distinct h, the step that has it
  std::vector<int64_t> row;    // (steps): its index in `first`
};

// changed: (T, B, L), whether a step's h is another than that of the step before it.
inline DistinctRows distinct_rows(const bool* changed, int64_t T_, int64_t B, int64_t L, int64_t l) {
  DistinctRows rows;
  rows.row.resize(T_ * B);
  for (int64_t i = 0; i < T_ * B; ++i) {
    if (i < B || !changed || changed[i * L + l]) {
      rows.row[i] = int64_t(rows.first.size());
      rows.first.push_back(i);
    } else {
      rows.row[i] = rows.row[i - B];
    }
  }
  return rows;
}

template <class T>
std::vector<const T*> row_pointers(const T* matrix, int64_t width, const std::vector<int64_t>& rows) {
  std::vector<const T*> pointers;
  for (const int64_t row : rows) pointers.push_back(matrix + row * width);
  return pointers;
}

template <class T, class S>
class LayerOutput {
  static constexpr int W = LANES<T>;

 public:
  // hidden: per layer (T, B, H). weights: per layer (E + L, H), W_e and below it the layer's columns in all gates.
  LayerOutput(const Tensors& hidden, const Tensors& weights, const MaybeTensor& changed)
      : hidden_(hidden), weights_(weights), L_(int64_t(hidden.size())), T_(hidden[0].size(0)), B_(hidden[0].size(1)),
        N_(T_ * B_), E_(weights[0].size(0) - L_), R_(E_ + L_) {
    for (int64_t l = 0; l < L_; ++l)
      rows_.push_back(distinct_rows(data<bool>(changed), T_, B_, L_, l));
  }

  // h_e (B, T, E), and what the backward pass needs: gates (T B, L), then per layer the terms (distinct, E + L).
  std::pair<Tensor, Tensors> forward() const {
    const auto like = hidden_[0].options();
    Tensor features = pooled({B_, T_, E_}, like), gates = pooled({N_, L_}, like);
    Tensors saved = {gates};
    for (int64_t l = 0; l < L_; ++l) {
      const int64_t H = weights_[l].size(1), n = int64_t(rows_[l].first.size());
      const auto pointers = row_pointers(hidden_[l].template data_ptr<T>(), H, rows_[l].first);
      Tensor terms = pooled({n, R_}, like);
      gemm<T, S>(n, R_, H, {nullptr, 0, false, pointers.data()}, {weights_[l].template data_ptr<T>(), H},
                 terms.template data_ptr<T>(), R_);
      saved.push_back(terms);
    }
    parallel_for(N_, 64, [&](int64_t first, int64_t last) {
      std::vector<const T*> terms(L_);
      for (int64_t i = first; i < last; ++i) {
        for (int64_t l = 0; l < L_; ++l) terms[l] = term(saved, l, i);
        T* const opened = gates.template data_ptr<T>() + i * L_;
        open_gates(terms, E_, opened);
        gated_sum(terms, opened, 0, E_, features.template data_ptr<T>() + at(i) * E_);
      }
    });
    return {features, saved};
  }

  // Gradients of hidden and of the weights, from that of h_e (B, T, E).
  std::pair<Tensors, Tensors> backward(const Tensor& grad, const Tensor& features, const Tensors& saved) const {
    Tensors hidden, weights;
    Buffer steps = buffer_of<T>(N_ * R_), behind = buffer_of<T>(N_ * E_), gate_sums = buffer_of<T>(N_ * L_);
    parallel_for(N_, 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        T* step = behind.as<T>() + i * E_;
        before_relu(grad.template data_ptr<T>() + at(i) * E_, features.template data_ptr<T>() + at(i) * E_, step);
        gate_gradients(i, step, saved, gate_sums.as<T>() + i * L_);
      }
    });
    for (int64_t l = 0; l < L_; ++l) {
      const int64_t H = weights_[l].size(1), n = int64_t(rows_[l].first.size());
      parallel_for(N_, 64, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
          term_gradient(i, l, behind.as<T>() + i * E_, saved[0], gate_sums.as<T>() + i * L_, steps.as<T>() + i * R_);
      });
      hidden.push_back(pooled_like(hidden_[l]));
      gemm<T, S>(N_, H, R_, {steps.as<T>(), R_}, {weights_[l].template data_ptr<T>(), H, true},
                 hidden[l].template data_ptr<T>(), H);
      if (n < N_) sum_runs(l, steps.as<T>());
      const auto inputs = row_pointers(hidden_[l].template data_ptr<T>(), H, rows_[l].first);
      const auto sums = row_pointers<T>(steps.as<T>(), R_, rows_[l].first);
      weights.push_back(pooled_like(weights_[l]));
      gemm<T, S>(R_, H, n, {nullptr, 0, true, sums.data()}, {nullptr, 0, true, inputs.data()},
                 weights[l].template data_ptr<T>(), H);
    }
    return {hidden, weights};
  }

 private:
  // The row of h_e that belongs to step and sample i of hidden: models are batch-first behind the recurrence.
  int64_t at(int64_t i) const { return i % B_ * T_ + i / B_; }

  const T* term(const Tensors& saved, int64_t l, int64_t i) const {
    return saved[1 + l].template data_ptr<T>() + rows_[l].row[i] * R_;
  }

  // The gradient of the sums that the gates are sigmoids of.
  void gate_gradients(int64_t i, const T* grad, const Tensors& saved, T* sums) const {
    for (int64_t l = 0; l < L_; ++l) {
      Vec<T> along{};
      for (int64_t e = 0; e < E_; e += W) {
        const int lanes = int(std::min<int64_t>(W, E_ - e));
        along += load(grad + e, lanes) * load(term(saved, l, i) + e, lanes);
      }
      const T gate = saved[0].template data_ptr<T>()[i * L_ + l];
      sums[l] = sum<T>(along) * gate * (1 - gate);
    }
  }

  // One step's gradient of one layer's term.
  void term_gradient(int64_t i, int64_t l, const T* grad, const Tensor& gates, const T* sums, T* to) const {
    const T gate = gates.data_ptr<T>()[i * L_ + l];
    for (int64_t e = 0; e < E_; e += W) {
      const int lanes = int(std::min<int64_t>(W, E_ - e));
      store(to + e, gate * load(grad + e, lanes), lanes);
    }
    std::copy(sums, sums + L_, to + E_);
  }

  // The gradient of the sum that h_e is ReLU of.
  void before_relu(const T* grad, const T* features, T* to) const {
    for (int64_t e = 0; e < E_; e += W) {
      const int lanes = int(std::min<int64_t>(W, E_ - e));
      store(to + e, load(features + e, lanes) > T(0) ? load(grad + e, lanes) : Vec<T>{}, lanes);
    }
  }

  // Adds to the first step of each run what its other steps have.
  void sum_runs(int64_t l, T* steps) const {
    const int64_t blocks = ceil_div(R_, PANEL<T>);
    parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
      const int64_t from = first * PANEL<T>, to = std::min(last * PANEL<T>, R_);
      for (int64_t i = 0; i < N_; ++i) {
        const int64_t run = rows_[l].first[rows_[l].row[i]];
        if (run != i) add_scaled(steps + run * R_ + from, T(1), steps + i * R_ + from, to - from);
      }
    });
  }

  const Tensors &hidden_, &weights_;
  const int64_t L_, T_, B_, N_, E_, R_;
  std::vector<DistinctRows> rows_;
};

}  // namespace hmrnn
