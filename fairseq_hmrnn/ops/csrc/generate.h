// Generation with tensors: the weights of a decoder as they were when it began, and runs of steps with them.
#pragma once

#include <atomic>
#include <memory>

#include "generation.h"
#include "inputs.h"

namespace hmrnn {

// The output module and the softmax layer as tensors, to be packed.
struct OutputTensors {
  Tensors layers;       // (E + L, H_l): W_e[l], and the layer's columns in all gates
  Tensor weight, bias;  // (V, E), (V)
};

struct PackedOutput {
  Buffer memory;
  std::vector<int64_t> offsets;  // of every layer's W_e, then of the softmax layer
  OutputTensors tensors;         // for gates and bias, which are read as they are
};

struct Generation {
  Weights weights;
  std::shared_ptr<PackedWeights> packed;
  Tensor inputs;         // (symbols, input size); projected: layer 1's products of these, (symbols, 4H+1)
  bool projected = false;
  Tensor rstd;           // (symbols) with projected and layer norm: then `inputs` is normalised
  PackedOutput output;
  Options options;
  int64_t pad = 0;
  mutable std::atomic<unsigned> calls{0};
};

// What a generation has reached; all of it is changed in place.
struct Reached {
  State state;
  Tensor terms;   // (B, L, E + L), see OutputWorker
  Tensor copy_u;  // (B, L), see ForwardCall
};

// logits (T, B, V), features (T, B, E), boundaries and their probabilities (T, B, L), and any chosen symbols (., B).
using Generated = std::tuple<Tensor, Tensor, Tensor, Tensor, MaybeTensor>;

template <class T>
PackedOutput pack_output(const OutputTensors& tensors) {
  PackedOutput packed;
  packed.tensors = tensors;
  Tensors matrices;
  for (const Tensor& layer : tensors.layers) matrices.push_back(layer.narrow(0, 0, tensors.weight.size(1)));
  matrices.push_back(tensors.weight);
  int64_t size = 0;
  for (const Tensor& matrix : matrices) {
    packed.offsets.push_back(size);
    size += ceil_div(matrix.size(0), PANEL<T>) * matrix.size(1) * PANEL<T>;
  }
  packed.memory = buffer_of<T>(size);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const Tensor& matrix = matrices[i];
    const int64_t rows = matrix.size(0), K = matrix.size(1);
    T* to = packed.memory.as<T>() + packed.offsets[i];
    at::parallel_for(0, ceil_div(rows, PANEL<T>), 1, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) pack_rows(matrix.data_ptr<T>(), rows, K, panel, to);
    });
  }
  return packed;
}

template <class T>
std::shared_ptr<Generation> begin_generation(Weights weights, std::shared_ptr<PackedWeights> packed, Tensor inputs,
                                             bool projected, const OutputTensors& output, Options options,
                                             int64_t pad) {
  Tensor rstd;
  if (projected && weights[0][4]) {
    rstd = at::empty({inputs.size(0)}, inputs.options());
    normalise(inputs.data_ptr<T>(), rstd.data_ptr<T>(), inputs.size(0), inputs.size(1));
  }
  auto generation = std::make_shared<Generation>();
  generation->weights = weights;
  generation->packed = packed;
  generation->inputs = inputs;
  generation->projected = projected;
  generation->rstd = rstd;
  generation->output = pack_output<T>(output);
  generation->options = options;
  generation->pad = pad;
  return generation;
}

template <class T>
OutputWeights<T> output_weights(const PackedOutput& packed) {
  OutputWeights<T> weights;
  weights.V = packed.tensors.weight.size(0);
  weights.E = packed.tensors.weight.size(1);
  weights.bias = packed.tensors.bias.template data_ptr<T>();
  for (const int64_t offset : packed.offsets) weights.terms.push_back(packed.memory.as<T>() + offset);
  weights.softmax = weights.terms.back();
  weights.terms.pop_back();
  for (const Tensor& layer : packed.tensors.layers)
    weights.gates.push_back(layer.data_ptr<T>() + weights.E * layer.size(1));
  return weights;
}

// tokens (steps, B): changed in place from row `given` on.
template <class T>
Generated generate(const Generation& generation, Reached reached, Tensor tokens, int64_t given, bool choose,
                   const Choice& choice, const MaybeTensor& noise) {
  TORCH_CHECK(tokens.is_contiguous() && (!noise || noise->is_contiguous()), "contiguous tensors expected");
  const int64_t steps = tokens.size(0), B = tokens.size(1), symbols = generation.inputs.size(0);
  GenerationCall<T> call;
  ForwardCall<T>& forward = call.forward;
  Problem<T>& p = forward.problem;
  p = make_problem<T>({generation.inputs.unsqueeze(1), generation.weights, reached.state, {}, {}, {},
                       generation.options});
  p.T_ = steps;
  p.B = B;
  const auto like = generation.inputs.options();
  Tensor boundaries = at::zeros({steps, B, p.L}, like), probs = at::zeros_like(boundaries);
  Tensor valid = tokens.ne(generation.pad);
  p.valid = valid.data_ptr<bool>();
  forward.tokens = tokens.data_ptr<int64_t>();
  if (generation.projected) forward.projected = generation.inputs.data_ptr<T>();
  if (generation.projected && p.layer_norm) forward.projected_rstd = generation.rstd.data_ptr<T>();
  std::vector<Buffer> buffers;
  for (int64_t l = 0; l < p.L; ++l) {
    buffers.push_back(buffer_of<T>(steps * B * p.layers[l].size));
    forward.hidden.push_back(buffers.back().template as<T>());
    forward.h.push_back(reached.state.h[l].template data_ptr<T>());
    forward.c.push_back(reached.state.c[l].template data_ptr<T>());
    forward.masked.push_back(nullptr);
    for (int product = 0; product < PRODUCTS; ++product) {
      p.layers[l].packed[product] = generation.packed->template panels<T>(l, product);
      forward.to_pack.push_back(nullptr);
    }
  }
  forward.boundaries = boundaries.data_ptr<T>();
  forward.boundary_probs = probs.data_ptr<T>();
  forward.z = reached.state.z.data_ptr<T>();
  forward.copy_u = reached.copy_u.data_ptr<T>();
  forward.most_panels = most_panels(p);
  forward.backwards = generation.calls++ % 2;
  if (p.layer_norm) {
    buffers.push_back(buffer_of<T>(PRODUCTS * B * forward.most_panels * 2));
    forward.statistics = buffers.back().template as<T>();
  }
  call.output = output_weights<T>(generation.output);
  Tensor features = at::empty({steps, B, call.output.E}, like), logits = at::empty({steps, B, call.output.V}, like);
  MaybeTensor chosen;
  call.choice = choice;
  call.choice.noise = data<float>(noise);
  call.given = given;
  call.tokens = tokens.data_ptr<int64_t>();
  call.valid = valid.data_ptr<bool>();
  if (choose) {
    const int64_t choices = steps - given + 1;
    TORCH_CHECK(call.output.V <= symbols, "a chosen symbol must be one that can be read");
    TORCH_CHECK(!noise || noise->numel() == choices * B * call.output.V, "noise of ", choices, " choices expected");
    chosen = at::empty({choices, B}, tokens.options());
    call.chosen = chosen->data_ptr<int64_t>();
  }
  call.pad = generation.pad;
  call.terms = reached.terms.data_ptr<T>();
  call.features = features.data_ptr<T>();
  call.logits = logits.data_ptr<T>();
  for (int64_t i = 0; i < given * B; ++i)
    TORCH_CHECK(call.tokens[i] >= 0 && call.tokens[i] < symbols, "no symbol ", call.tokens[i]);

  run_team(team_size(forward.most_panels, p.products_per_cell()), [&](int thread, int threads, Barrier& barrier) {
    GenerationWorker<T>(call, thread, threads, barrier).run();
  });
  return {logits, features, boundaries, probs, chosen};
}

}  // namespace hmrnn
