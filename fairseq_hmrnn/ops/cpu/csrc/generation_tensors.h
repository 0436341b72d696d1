// Generation with tensors: the weights of a decoder as they were when it began, and runs of steps with them.
#pragma once

#include <atomic>
#include <memory>
#include <tuple>

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
  Tensor terms;          // (symbols, N): what the hidden layer of layer 1's detector makes of them; undefined without
  bool projected = false;
  Tensor rstd;           // (symbols) with projected and layer norm: then `inputs` is normalised
  PackedOutput output;
  Options options;
  int64_t pad = 0;
  mutable std::atomic<unsigned> calls{0};
};

// The state of a generation; all of it is changed in place.
struct GenerationState {
  State state;
  Tensor terms;   // (B, L, E + L), see OutputWorker
  Tensor copy_u;  // (B, L), see ForwardCall
};

// logits (T, B, V), features (T, B, E), boundaries and their probabilities (T, B, L), and any chosen symbols (., B).
using Generated = std::tuple<Tensor, Tensor, Tensor, Tensor, MaybeTensor>;

template <class T, class S>
PackedOutput pack_output(const OutputTensors& tensors) {
  PackedOutput packed;
  packed.tensors = tensors;
  Tensors matrices;
  for (const Tensor& layer : tensors.layers) matrices.push_back(layer.narrow(0, 0, tensors.weight.size(1)));
  matrices.push_back(tensors.weight);
  int64_t size = 0;
  for (const Tensor& matrix : matrices) {
    packed.offsets.push_back(size);
    size += ceil_div(matrix.size(0), PANEL<T>) * elements<S>(matrix.size(1)) * PANEL<T>;
  }
  packed.memory = buffer_of<S>(size);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const Tensor& matrix = matrices[i];
    const int64_t rows = matrix.size(0), K = matrix.size(1);
    S* to = packed.memory.as<S>() + packed.offsets[i];
    parallel_for(ceil_div(rows, PANEL<T>), 1, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) pack_rows<T, S>(matrix.data_ptr<T>(), rows, K, panel, to);
    });
  }
  return packed;
}

template <class T, class S>
std::shared_ptr<Generation> begin_generation(Weights weights, std::shared_ptr<PackedWeights> packed, Tensor inputs,
                                             bool projected, const OutputTensors& output, Options options,
                                             int64_t pad) {
  Tensor rstd, terms;
  const LayerWeights<T> lowest = layer_weights<T>(weights[0]);
  if (projected)
    std::tie(inputs, terms) = split_projected(inputs, lowest.rows(), lowest.detector_units, false);
  else
    terms = input_terms(inputs.data_ptr<T>(), inputs.size(0), lowest, inputs.options());
  if (projected && weights[0][GAINS]) {
    rstd = at::empty({inputs.size(0)}, inputs.options());
    normalise(inputs.data_ptr<T>(), rstd.data_ptr<T>(), inputs.size(0), inputs.size(1));
  }
  auto generation = std::make_shared<Generation>();
  generation->weights = weights;
  generation->packed = packed;
  generation->inputs = inputs;
  generation->terms = terms;
  generation->projected = projected;
  generation->rstd = rstd;
  generation->output = pack_output<T, S>(output);
  generation->options = options;
  generation->pad = pad;
  return generation;
}

template <class T, class S>
OutputWeights<T, S> output_weights(const PackedOutput& packed) {
  OutputWeights<T, S> weights;
  weights.V = packed.tensors.weight.size(0);
  weights.E = packed.tensors.weight.size(1);
  weights.bias = packed.tensors.bias.template data_ptr<T>();
  for (const int64_t offset : packed.offsets) weights.terms.push_back(packed.memory.as<S>() + offset);
  weights.softmax = weights.terms.back();
  weights.terms.pop_back();
  for (const Tensor& layer : packed.tensors.layers)
    weights.gates.push_back(layer.data_ptr<T>() + weights.E * layer.size(1));
  return weights;
}

// Buffers that the steps of one call fill besides the results; alive until they are done.
struct Room {
  std::vector<Buffer> buffers;
  Tensor valid, boundaries, probs;
};

// The recurrence's part of a call.
template <class T, class S>
Room prepare_cells(const Generation& generation, const GenerationState& reached, const Tensor& tokens,
                   ForwardCall<T, S>& call) {
  const auto like = generation.inputs.options();
  Problem<T>& p = call.problem;
  p = make_problem<T>({generation.inputs, generation.weights, reached.state, tokens, {}, {}, {}, generation.options});
  Room room;
  room.valid = tokens.ne(generation.pad);
  room.boundaries = at::zeros({p.T_, p.B, p.L}, like);
  room.probs = at::zeros_like(room.boundaries);
  p.valid = room.valid.data_ptr<bool>();
  if (generation.projected) call.projected = generation.inputs.data_ptr<T>();
  if (generation.projected && p.layer_norm) call.projected_rstd = generation.rstd.data_ptr<T>();
  call.input_terms = pointer<T>(generation.terms);
  if (p.has_detector_hidden()) {
    room.buffers.push_back(buffer_of<T>(p.B));
    call.hidden_terms = room.buffers.back().template as<T>();
  }
  for (int64_t l = 0; l < p.L; ++l) {
    room.buffers.push_back(buffer_of<T>(p.T_ * p.B * p.layers[l].size));
    call.hidden.push_back(room.buffers.back().template as<T>());
    call.h.push_back(reached.state.h[l].template data_ptr<T>());
    call.c.push_back(reached.state.c[l].template data_ptr<T>());
    call.masked.push_back(nullptr);
    for (int product = 0; product < PRODUCTS; ++product) {
      call.packed.push_back(generation.packed->template panels<S>(l, product));
      call.to_pack.push_back(nullptr);
    }
  }
  call.boundaries = room.boundaries.data_ptr<T>();
  call.boundary_probs = room.probs.data_ptr<T>();
  call.z = reached.state.z.data_ptr<T>();
  call.copy_u = reached.copy_u.data_ptr<T>();
  call.most_panels = p.most_panels();
  call.backwards = generation.calls++ % 2;
  if (p.layer_norm) {
    room.buffers.push_back(buffer_of<T>(PRODUCTS * p.B * call.most_panels * 2));
    call.statistics = room.buffers.back().template as<T>();
  }
  return room;
}

// The kernel reads and writes what was reached through bare pointers: everything must have the shape that it expects.
inline void check_reached(const Generation& generation, const GenerationState& reached, const Tensor& tokens) {
  const OutputTensors& output = generation.output.tensors;
  const int64_t B = tokens.size(1), L = int64_t(output.layers.size());
  const auto fits = [](const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.sizes() == shape, "a tensor of shape ", tensor.sizes(),
                " does not fit: contiguous ", shape, " expected");
  };
  TORCH_CHECK(int64_t(reached.state.h.size()) == L && int64_t(reached.state.c.size()) == L, "a state of ", L,
              " layers expected");
  for (int64_t l = 0; l < L; ++l)
    for (const Tensor& tensor : {reached.state.h[l], reached.state.c[l]}) fits(tensor, {B, output.layers[l].size(1)});
  fits(reached.state.z, {B, L});
  fits(reached.copy_u, {B, L});
  fits(reached.terms, {B, L, output.weight.size(1) + L});
}

// tokens (steps, B): changed in place from row `given` on.
template <class T, class S>
Generated generate(const Generation& generation, GenerationState reached, Tensor tokens, int64_t given, bool choose,
                   const Choice& choice, const MaybeTensor& noise) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.is_contiguous() && (!noise || noise->is_contiguous()),
              "contiguous tensors expected, tokens (T, B)");
  check_reached(generation, reached, tokens);
  const int64_t steps = tokens.size(0), B = tokens.size(1), symbols = generation.inputs.size(0);
  GenerationCall<T, S> call;
  const Room room = prepare_cells<T, S>(generation, reached, tokens, call.forward);
  call.output = output_weights<T, S>(generation.output);
  const int64_t E = call.output.E, V = call.output.V;
  const auto like = generation.inputs.options();
  Tensor features = at::empty({steps, B, E}, like), logits = at::empty({steps, B, V}, like);
  MaybeTensor chosen;
  call.choice = choice;
  call.choice.noise = data<float>(noise);
  call.given = given;
  call.tokens = tokens.data_ptr<int64_t>();
  call.valid = room.valid.data_ptr<bool>();
  if (choose) {
    const int64_t choices = steps - given + 1;
    TORCH_CHECK(V <= symbols, "a chosen symbol must be one that can be read");
    TORCH_CHECK(!noise || noise->numel() == choices * B * V, "noise of ", choices, " choices expected");
    chosen = at::empty({choices, B}, tokens.options());
    call.chosen = chosen->data_ptr<int64_t>();
  }
  call.pad = generation.pad;
  call.terms = reached.terms.data_ptr<T>();
  call.features = features.data_ptr<T>();
  call.logits = logits.data_ptr<T>();
  check_symbols(call.tokens, given * B, symbols);

  const int size = team_size(call.forward.most_panels, call.forward.problem.products_per_cell());
  run_team(size, [&](int thread, int threads, Barrier& barrier) {
    GenerationWorker<T, S>(call, thread, threads, barrier).run();
  });
  return {logits, features, room.boundaries, room.probs, chosen};
}

}  // namespace hmrnn
