// One call of the recurrence: tensors in, a team of workers, tensors out.
#pragma once

#include <limits>
#include <tuple>

#include "large_products.h"

namespace hmrnn {

constexpr int64_t SAMPLES_EACH = 16;  // from which on threads own samples: fewer read weights for too few rows

// Packing costs about as much as one step of some rows. Products of pairs are of packed weights alone.
template <class T, class S>
bool worth_packing(const Problem<T>& problem) {
  return !std::is_same<S, T>::value || (problem.B >= 4 && problem.T_ * problem.B >= 64);
}

// hidden, h and c of every layer, boundaries, boundary_probs, z, and in training what the backward pass needs.
using Result = std::tuple<Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, std::vector<MaybeTensor>>;

template <class T, class S>
Result forward_typed(const Inputs& in, bool training, const MaybeTensor& given, const PackedWeights* packed) {
  if (in.tokens) check_symbols(in.tokens->data_ptr<int64_t>(), in.tokens->numel(), in.x.size(0));
  TORCH_CHECK_VALUE(in.steps() * in.samples() <= std::numeric_limits<int>::max(), "steps are counted in 32 bits: ",
                    in.steps(), " of ", in.samples(), " samples are too many for one call");
  TORCH_CHECK(!given || given->is_contiguous(), "projected must be contiguous");
  TORCH_CHECK(!packed || packed->low == !(std::is_same<S, T>::value), "the packed weights are of another precision");
  ForwardCall<T, S> call;
  call.problem = make_problem<T>(in);
  Problem<T>& p = call.problem;
  std::vector<Buffer> buffers;
  auto room = [&](auto type, int64_t count) {
    buffers.push_back(buffer_of<decltype(type)>(count));
    return buffers.back().template as<decltype(type)>();
  };

  Tensors hidden, h, c;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t H = p.layers[l].size;
    hidden.push_back(pooled({p.T_, p.B, H}, in.x.options()));
    h.push_back(at::empty_like(in.state.h[l]));
    c.push_back(training ? at::empty_like(in.state.c[l]) : in.state.c[l].clone());
    call.hidden.push_back(hidden[l].template data_ptr<T>());
    call.h.push_back(h[l].template data_ptr<T>());
    call.c.push_back(c[l].template data_ptr<T>());
    call.masked.push_back(p.mask[l] ? room(T(), 2 * p.B * H) : nullptr);
  }
  Tensor boundaries = at::zeros({p.T_, p.B, p.L}, in.x.options()), probs = at::zeros_like(boundaries);
  Tensor z = at::empty_like(in.state.z);
  call.boundaries = boundaries.data_ptr<T>();
  call.boundary_probs = probs.data_ptr<T>();
  call.z = z.data_ptr<T>();

  const bool pack = worth_packing<T, S>(p) && !packed;
  Stopwatch watch(p.B >= 4);
  const auto [projected, rstd, terms] = project<T, S>(in, p, given, pack || packed);
  watch.lap(LARGE_PRODUCTS);
  call.projected = pointer<T>(projected);
  call.projected_rstd = pointer<T>(rstd);
  call.input_terms = pointer<T>(terms);
  if (p.has_detector_hidden()) call.hidden_terms = room(T(), p.B);
  for (int64_t l = 0; l < p.L; ++l)
    for (int product = 0; product < PRODUCTS; ++product) {
      const auto& layer = p.layers[l];
      const bool used = layer.weight[product] && !(l == 0 && product == BOTTOM_UP && call.projected);
      const int64_t size = layer.panels() * elements<S>(layer.columns[product]) * PANEL<T>;
      call.packed.push_back(packed && used ? packed->template panels<S>(l, product) : nullptr);
      call.to_pack.push_back(used && pack ? room(S(), size) : nullptr);
    }
  call.most_panels = p.most_panels();
  if (p.layer_norm) call.statistics = room(T(), PRODUCTS * p.B * call.most_panels * 2);
  std::optional<SavedRooms<T>> rooms;
  if (training) {
    rooms.emplace(p);
    call.saved = &rooms->rooms;
    call.saved_u = rooms->u();
    call.saved_z = rooms->z();
  }

  int team = team_size(call.most_panels, p.products_per_cell());
  if (!training && p.B >= SAMPLES_EACH * at::get_num_threads()) {
    team = team_size(p.B / SAMPLES_EACH, p.products_per_cell() * p.T_);
    call.by_samples = team > 1;
  }
  run_team(team, [&](int thread, int threads, Barrier& barrier) {
    ForwardWorker<T, S>(call, thread, threads, barrier).run();
  });
  std::vector<MaybeTensor> saved;
  if (training) saved = rooms->saved(in.x, projected, rstd).flat();
  return {hidden, h, c, boundaries, probs, z, saved};
}

// Of x, z, h and c of every layer, the weights of every layer. Those of detectors' hidden layers are left to the
// caller, from the gradient of u (L, T, B), which is absent where nothing is to be done, and z as in Saved.
using Gradients =
    std::tuple<MaybeTensor, Tensor, Tensors, Tensors, std::vector<std::vector<MaybeTensor>>, MaybeTensor, Tensor>;

// The gradients of the results of a call; absent: 0.
struct Incoming {
  std::vector<MaybeTensor> hidden, h, c;
  MaybeTensor boundaries, probs, z;
};

// The gradients of weights, gains and biases: as tensors, 0 where the loop adds to them, and where the loop finds them.
template <class T, class S>
std::vector<std::vector<MaybeTensor>> make_weight_gradients(const Weights& weights, BackwardCall<T, S>& call) {
  const Problem<T>& p = call.problem;
  std::vector<std::vector<MaybeTensor>> grads;
  for (int64_t l = 0; l < p.L; ++l) {
    grads.emplace_back(TENSORS);
    grads[l][BIAS] = at::zeros_like(*weights[l][BIAS]);
    call.biases.push_back(grads[l][BIAS]->template data_ptr<T>());
    for (int product = 0; product < PRODUCTS; ++product) {
      const int64_t K = p.layers[l].columns[product];
      call.rows.push_back(nullptr);
      call.gains.push_back(nullptr);
      if (!weights[l][product]) continue;
      grads[l][product] = pooled_like(*weights[l][product]);
      call.rows.back() = grads[l][product]->template data_ptr<T>() + GATES * p.layers[l].size * K;
      std::fill_n(call.rows.back(), K, T(0));
      if (!p.layer_norm) continue;
      grads[l][GAINS + product] = at::zeros_like(*weights[l][GAINS + product]);
      call.gains.back() = grads[l][GAINS + product]->template data_ptr<T>();
    }
  }
  return grads;
}

template <class T, class S>
Gradients backward_typed(const Inputs& in, const Saved& saved, const Tensors& hidden, const Incoming& grad,
                         bool need_x, bool need_weights) {
  BackwardCall<T, S> call;
  call.problem = make_problem<T>(in);
  call.keep(saved);
  const Problem<T>& p = call.problem;
  std::vector<Buffer> buffers;
  auto room = [&](auto type, int64_t count) {
    buffers.push_back(buffer_of<decltype(type)>(std::max<int64_t>(count, 1)));
    return buffers.back().template as<decltype(type)>();
  };
  auto start = [](const MaybeTensor& from, const Tensor& like) {
    return from ? from->clone(at::MemoryFormat::Contiguous) : at::zeros_like(like);
  };

  const bool pack = worth_packing<T, S>(p);
  call.pack_last_only = !pack;
  Tensors dh, dc;
  auto grads = make_weight_gradients(in.weights, call);
  int64_t columns = 1;
  for (int64_t l = 0; l < p.L; ++l) {
    const auto& layer = p.layers[l];
    const int64_t R = GATES * layer.size, slots = saved.layers[l].slots();
    dh.push_back(start(grad.h[l], in.state.h[l]));
    dc.push_back(start(grad.c[l], in.state.c[l]));
    call.dh.push_back(dh[l].template data_ptr<T>());
    call.dc.push_back(dc[l].template data_ptr<T>());
    call.hidden.push_back(hidden[l].template data_ptr<T>());
    call.grad_hidden.push_back(data<T>(grad.hidden[l]));
    call.blocks = std::max(call.blocks, ceil_div(layer.size, PANEL<T>));
    for (int product = 0; product < PRODUCTS; ++product) {
      const int64_t K = layer.columns[product];
      const bool lowest = l == 0 && product == BOTTOM_UP;
      const bool own_products = layer.weight[product] && (product == RECURRENT || p.layer_norm) && !(lowest && in.tokens);
      call.products.push_back(own_products ? room(T(), slots * R) : nullptr);
      const int64_t panels = pack ? ceil_div(K, PANEL<T>) : K % PANEL<T> ? 1 : 0;
      const bool in_loop = layer.weight[product] && !lowest && panels;
      columns = std::max(columns, ceil_div(K, PANEL<T>));
      call.to_pack.push_back(in_loop ? room(S(), panels * elements<S>(R) * PANEL<T>) : nullptr);
      call.weights.push_back(call.to_pack.back());
    }
  }
  if (in.tokens) {
    const int64_t count = in.x.size(0) * GATES * p.layers[0].size;
    call.symbols = room(T(), count);
    std::fill_n(call.symbols, count, T(0));
  }
  Tensor dz = start(grad.z, in.state.z);
  call.dz = dz.data_ptr<T>();
  call.grad_boundaries = data<T>(grad.boundaries);
  call.grad_probs = data<T>(grad.probs);
  Tensor x_detector = at::zeros({in.tokens ? in.x.size(0) : p.T_ * p.B}, in.x.options());
  call.x_detector = x_detector.data_ptr<T>();
  MaybeTensor du;
  if (need_weights && p.has_detector_hidden()) {
    du = at::zeros({p.L, p.T_, p.B}, in.x.options());
    call.du = du->template data_ptr<T>();
  }
  Stopwatch watch(p.B >= 4);
  Tensors closed;
  call.closed.assign(p.L, nullptr);
  call.closed_row.resize(p.L);
  for (int64_t l = 0; l + 1 < p.L; ++l) {
    closed.push_back(closed_top_down(call, l, *in.weights[l][TOP_DOWN]));
    call.closed[l] = closed[l].template data_ptr<T>();
  }
  watch.lap(LARGE_PRODUCTS);
  call.boundary_parts = room(T(), 3 * p.B * call.blocks * BackwardWorker<T, S>::parts());
  call.norm_parts = room(T(), p.B * call.blocks * 2 * PRODUCTS);

  run_team(team_size(columns, p.products_per_cell(true)), [&](int thread, int threads, Barrier& barrier) {
    BackwardWorker<T, S>(call, thread, threads, barrier).run();
  });

  Stopwatch large(p.B >= 4);
  if (need_weights)
    for (int64_t l = 0; l < p.L; ++l)
      for (int product = 0; product < PRODUCTS; ++product)
        if (auto& weight = grads[l][product])
          weight_gradient(call, l, product, in.x.size(0), weight->template data_ptr<T>());
  MaybeTensor dx;
  if (need_x) dx = input_gradient(call, in.x, *in.weights[0][BOTTOM_UP], x_detector);
  large.lap(LARGE_PRODUCTS);
  return {dx, dz, dh, dc, grads, du, saved.z};
}

}  // namespace hmrnn
