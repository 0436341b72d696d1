// The products of a call that do not wait for its loop: layer 1's bottom-up product before it, the gradients of weights
// and input after it.
#pragma once

#include <tuple>

#include "backward.h"
#include "gemm.h"
#include "inputs.h"

namespace hmrnn {

// The products of n rows with all rows of a weight (4H+1, K), the detector's in the precision of the sums: (n, 4H+1).
template <class T, class S>
Tensor product_of_rows(const Matrix<T>& rows, int64_t n, const Tensor& weight) {
  const int64_t R = weight.size(0), K = weight.size(1);
  const T* w = weight.data_ptr<T>();
  Tensor result = pooled({n, R}, weight.options());
  T* to = result.data_ptr<T>();
  gemm<T, S>(n, R - 1, K, rows, {w, K}, to, R);
  for (int64_t i = 0; i < n; ++i) to[i * R + R - 1] = dot(w + (R - 1) * K, rows.at(i), K);
  return result;
}

// What does not wait for the loop: layer 1's products with its input.
struct Projected {
  Tensor product, rstd;  // bottom-up: given, of every symbol, or of every step where the weight is not packed
  Tensor terms;          // of the hidden layer of its detector: given, of every symbol, or of every step
};

// given: both, as PackedLayers.project returns them.
template <class T, class S>
Projected project(const Inputs& in, const Problem<T>& p, const MaybeTensor& given, bool packed) {
  Projected found;
  auto& [projected, rstd, terms] = found;
  const auto& layer = p.layers[0];
  const int64_t K = layer.columns[BOTTOM_UP], R = layer.rows(), rows = in.tokens ? in.x.size(0) : p.T_ * p.B;
  if (given)
    std::tie(projected, terms) = split_projected(*given, R, layer.detector_units, p.layer_norm);
  else
    terms = input_terms(p.x, rows, layer, in.x.options());
  if (!given && (in.tokens || (!packed && rows >= 16)))
    projected = product_of_rows<T, S>({p.x, K}, rows, *in.weights[0][BOTTOM_UP]);
  if (projected.defined() && p.layer_norm) {
    rstd = at::empty({projected.size(0)}, in.x.options());
    normalise(projected.data_ptr<T>(), rstd.data_ptr<T>(), projected.size(0), R);
  }
  return found;
}

// The rows of a weight's gradient that belong to gates: (4H, columns) = sum over slots of gradient x input.
template <class T, class S>
void weight_gradient(const BackwardCall<T, S>& call, int64_t l, int product, int64_t table_size, T* grad) {
  const Problem<T>& p = call.problem;
  const SavedLayer& saved = call.saved->layers[l];
  const int64_t H = p.layers[l].size, R = GATES * H, K = p.layers[l].columns[product], B = p.B;
  if (l == 0 && product == BOTTOM_UP && call.symbols) {
    // Of symbols that were read: any other row may be NaN, which times a sum of 0 is NaN.
    std::vector<bool> is_read(table_size, false);
    for (int64_t slot = 0; slot < saved.slots(); ++slot)
      is_read[p.tokens[saved.step()[slot] * B + saved.sample()[slot]]] = true;
    std::vector<const T*> sums, rows;
    for (int64_t symbol = 0; symbol < table_size; ++symbol)
      if (is_read[symbol]) {
        sums.push_back(call.symbols + symbol * R);
        rows.push_back(p.x + symbol * K);
      }
    const Matrix<T> a{nullptr, 0, true, sums.data()}, b{nullptr, 0, true, rows.data()};
    return gemm<T, S>(R, K, int64_t(rows.size()), a, b, grad, K);
  }
  const T* gradients = call.products[l * PRODUCTS + (p.layer_norm ? product : int(RECURRENT))];
  const T* mask = product == RECURRENT ? p.mask[l] : nullptr;
  const int64_t source = product == RECURRENT ? l : product == TOP_DOWN ? l + 1 : l - 1;
  std::vector<const T*> ds, inputs;
  std::vector<T> gates;
  std::vector<int> samples;
  bool as_is = true;
  for (int64_t slot = 0; slot < saved.slots(); ++slot) {
    const int64_t t = saved.step()[slot], b = saved.sample()[slot];
    T gate = 1;
    if (product == TOP_DOWN) gate = call.saved_z[(t * p.L + l) * B + b];
    if (product == BOTTOM_UP && l > 0) gate = call.saved_z[((t + 1) * p.L + l - 1) * B + b];
    if (gate == 0) continue;
    if (p.layer_norm) gate = 1;  // the product's own gradient has it already
    as_is &= gate == 1;
    gates.push_back(gate);
    samples.push_back(int(b));
    ds.push_back(gradients + slot * R);
    if (source < 0)
      inputs.push_back(p.input(t, b));
    else if (product == BOTTOM_UP)
      inputs.push_back(call.hidden[source] + (t * B + b) * K);
    else
      inputs.push_back(t ? call.hidden[source] + ((t - 1) * B + b) * K : p.h0[source] + b * K);
  }
  const int64_t n = int64_t(ds.size());
  Buffer scaled, masked;
  if (!as_is) {
    scaled = buffer_of<T>(n * R);
    parallel_for(n, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t r = 0; r < R; ++r) scaled.as<T>()[i * R + r] = gates[i] * ds[i][r];
    });
  }
  if (mask) {
    masked = buffer_of<T>(n * K);
    parallel_for(n, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t k = 0; k < K; ++k) masked.as<T>()[i * K + k] = inputs[i][k] * mask[samples[i] * K + k];
    });
  }
  const Matrix<T> a = as_is ? Matrix<T>{nullptr, 0, true, ds.data()} : Matrix<T>{scaled.as<T>(), R, true};
  const Matrix<T> b = mask ? Matrix<T>{masked.as<T>(), K, true} : Matrix<T>{nullptr, 0, true, inputs.data()};
  gemm<T, S>(R, K, n, a, b, grad, K);
}

template <class T, class S>
Tensor input_gradient(const BackwardCall<T, S>& call, const Tensor& x, const Tensor& weight, const Tensor& detector) {
  const Problem<T>& p = call.problem;
  const SavedLayer& saved = call.saved->layers[0];
  const int64_t K = p.layers[0].columns[BOTTOM_UP], R = GATES * p.layers[0].size;
  Tensor grad = pooled_like(x);
  const int64_t rows = detector.numel();
  const std::vector<T> nothing(R, T(0));  // of a frozen step
  std::vector<const T*> ds;
  const T* gradients = call.products[p.layer_norm ? BOTTOM_UP : RECURRENT];
  for (int64_t i = 0; i < rows && !call.symbols; ++i)
    ds.push_back(saved.slot()[i] < 0 ? nothing.data() : gradients + saved.slot()[i] * R);
  const Matrix<T> a = call.symbols ? Matrix<T>{call.symbols, R} : Matrix<T>{nullptr, 0, false, ds.data()};
  gemm<T, S>(rows, K, R, a, {weight.data_ptr<T>(), K, true}, grad.template data_ptr<T>(), K);
  if (p.options.detector_grad_scale != 0) grad.view({rows, K}).addr_(detector, weight[R]);
  return grad;
}

// The gradient of a closed z_prev needs the top-down product that the forward pass left out. It is a function of h_above
// alone, which seldom changes: one product for every h_above that is asked for, all at once.
template <class T, class S>
Tensor closed_top_down(BackwardCall<T, S>& call, int64_t l, const Tensor& weight) {
  const Problem<T>& p = call.problem;
  const SavedLayer &layer = call.saved->layers[l], &above = call.saved->layers[l + 1];
  const int64_t B = p.B, K = p.layers[l + 1].size;
  std::vector<int> now(B, 0), row(above.slots() + B, -1);  // which h_above: b at the start, then B + its slot
  for (int64_t b = 0; b < B; ++b) now[b] = int(b);
  std::vector<bool> active_above(p.T_ * B, false), active(p.T_ * B, false);
  for (int64_t s = 0; s < above.slots(); ++s) active_above[above.step()[s] * B + above.sample()[s]] = true;
  for (int64_t s = 0; s < layer.slots(); ++s) active[layer.step()[s] * B + layer.sample()[s]] = true;
  std::vector<const T*> inputs;
  std::vector<int>& needed = call.closed_row[l];
  needed.assign(p.T_ * B, -1);
  for (int64_t t = 0; t < p.T_; ++t)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t i = t * B + b;
      if (active[i] && call.saved_z[(t * p.L + l) * B + b] == 0 && call.needs_boundary_gradient(t - 1, l, b)) {
        if (row[now[b]] < 0) {
          row[now[b]] = int(inputs.size());
          inputs.push_back(t ? call.hidden[l + 1] + (i - B) * K : p.h0[l + 1] + b * K);
        }
        needed[i] = row[now[b]];
      }
      if (active_above[i]) now[b] = int(B) + above.slot()[i];
    }
  const int64_t n = int64_t(inputs.size()), R = p.layers[l].rows();
  Tensor result = product_of_rows<T, S>({nullptr, 0, false, inputs.data()}, n, weight);
  if (p.layer_norm) {
    Buffer rstd = buffer_of<T>(std::max<int64_t>(n, 1));
    normalise(result.data_ptr<T>(), rstd.as<T>(), n, R);
  }
  return result;
}

}  // namespace hmrnn
