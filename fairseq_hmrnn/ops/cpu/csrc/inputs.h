// From tensors to what a call works on, and weights packed for many calls.
#pragma once

#include <utility>

#include "forward.h"
#include "gemm.h"

namespace hmrnn {

using Weights = std::vector<std::vector<MaybeTensor>>;  // per layer in the order of ops.types.LayerParameters

// LayerParameters: the weights of the products, the bias, the gains of the products, the detector's hidden layer.
constexpr int BIAS = PRODUCTS, GAINS = PRODUCTS + 1, HIDDEN_WEIGHT = GAINS + PRODUCTS, HIDDEN_BIAS = HIDDEN_WEIGHT + 1,
              HIDDEN_OUTPUT = HIDDEN_WEIGHT + 2, TENSORS = HIDDEN_WEIGHT + 3;

struct State {
  Tensors h, c;
  Tensor z;
};

// Weights in the layout of the forward product, for many calls with the same weights; all in one buffer, which large
// pages can hold.
struct PackedWeights {
  Buffer memory;
  bool low = false;              // pairs of bfloat16
  std::vector<int64_t> offsets;  // per layer and product, in elements; -1 where there is no weight

  template <class S>
  const S* panels(int64_t l, int product) const {
    const int64_t offset = offsets[l * PRODUCTS + product];
    return offset < 0 ? nullptr : memory.as<S>() + offset;
  }
};

struct Inputs {
  Tensor x;            // (T, B, input), or with `tokens` (symbols, input)
  Weights weights;
  State state;
  MaybeTensor tokens;  // (T, B) int64
  MaybeTensor valid, noise;
  std::optional<Tensors> masks;
  Options options;
  bool low = false;    // products of bfloat16 operands

  // Steps and samples.
  int64_t steps() const { return (tokens ? *tokens : x).size(0); }
  int64_t samples() const { return (tokens ? *tokens : x).size(1); }
};

inline void check_symbols(const int64_t* tokens, int64_t count, int64_t symbols) {
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK_INDEX(tokens[i] >= 0 && tokens[i] < symbols, "symbol ", tokens[i], " is not in a table of ", symbols);
}

template <class T>
const T* data(const MaybeTensor& tensor) {
  return tensor ? tensor->data_ptr<T>() : nullptr;
}

template <class T>
LayerWeights<T> layer_weights(const std::vector<MaybeTensor>& tensors) {
  LayerWeights<T> layer;
  layer.size = tensors[RECURRENT]->size(1);
  layer.bias = data<T>(tensors[BIAS]);
  for (int product = 0; product < PRODUCTS; ++product) {
    const auto& weight = tensors[product];
    layer.weight[product] = data<T>(weight);
    layer.columns[product] = weight ? weight->size(1) : 0;
    layer.gain[product] = data<T>(tensors[GAINS + product]);
  }
  layer.hidden_weight = data<T>(tensors[HIDDEN_WEIGHT]);
  layer.hidden_bias = data<T>(tensors[HIDDEN_BIAS]);
  layer.hidden_output = data<T>(tensors[HIDDEN_OUTPUT]);
  layer.detector_units = layer.hidden_output ? tensors[HIDDEN_OUTPUT]->numel() : 0;
  return layer;
}

template <class T>
Problem<T> make_problem(const Inputs& in) {
  Problem<T> problem;
  problem.T_ = in.steps();
  problem.B = in.samples();
  problem.L = int64_t(in.weights.size());
  problem.options = in.options;
  problem.x = in.x.data_ptr<T>();
  problem.tokens = data<int64_t>(in.tokens);
  problem.valid = in.valid ? in.valid->data_ptr<bool>() : nullptr;
  problem.noise = data<T>(in.noise);
  problem.z0 = in.state.z.data_ptr<T>();
  for (int64_t l = 0; l < problem.L; ++l) {
    problem.layers.push_back(layer_weights<T>(in.weights[l]));
    problem.layer_norm = problem.layers[l].gain[RECURRENT];
    problem.h0.push_back(in.state.h[l].template data_ptr<T>());
    problem.c0.push_back(in.state.c[l].template data_ptr<T>());
    problem.mask.push_back(in.masks ? (*in.masks)[l].template data_ptr<T>() : nullptr);
  }
  return problem;
}

// What the hidden layer of layer 1's detector makes of the rows of x (rows, input), before its bias: (rows, N);
// undefined without one.
template <class T>
Tensor input_terms(const T* x, int64_t rows, const LayerWeights<T>& layer, const at::TensorOptions& options) {
  const int64_t N = layer.detector_units, K = layer.columns[BOTTOM_UP], stride = layer.columns_read();
  if (!N) return {};
  Tensor terms = pooled({rows, N}, options);
  gemm<T, T>(rows, N, K, {x, K}, {layer.hidden_weight + stride - K, stride}, terms.data_ptr<T>(), N);
  return terms;
}

// Layer 1's products of its input with R rows of the weight and N of the hidden layer, (..., R + N), as two tensors,
// (., R) and (., N); the second is undefined where N is 0. own: the first is a copy in any case, to be normalised. A
// single row is contiguous without one.
inline std::pair<Tensor, Tensor> split_projected(const Tensor& given, int64_t R, int64_t N, bool own) {
  const Tensor rows = given.view({-1, R + N}), products = rows.narrow(1, 0, R);
  return {own ? products.clone(at::MemoryFormat::Contiguous) : products.contiguous(),
          N ? rows.narrow(1, R, N).contiguous() : Tensor()};
}

template <class T, class S>
PackedWeights pack_typed(const Weights& weights) {
  PackedWeights packed;
  packed.low = !std::is_same<S, T>::value;
  int64_t size = 0;
  for (const auto& tensors : weights)
    for (int product = 0; product < PRODUCTS; ++product) {
      const auto& weight = tensors[product];
      packed.offsets.push_back(weight ? size : -1);
      if (weight) size += ceil_div(tensors[RECURRENT]->size(1), LANES<T>) * elements<S>(weight->size(1)) * PANEL<T>;
    }
  packed.memory = buffer_of<S>(size);
  for (size_t l = 0; l < weights.size(); ++l)
    for (int product = 0; product < PRODUCTS; ++product) {
      const auto& weight = weights[l][product];
      if (!weight) continue;
      const int64_t H = weights[l][RECURRENT]->size(1), K = weight->size(1);
      S* to = packed.memory.as<S>() + packed.offsets[l * PRODUCTS + product];
      parallel_for(ceil_div(H, LANES<T>), 1, [&](int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; ++panel) pack_gates<T, S>(weight->data_ptr<T>(), H, K, panel, to);
      });
    }
  return packed;
}

}  // namespace hmrnn
