// Python's entry to the compiled recurrence: tensors in, tensors out. Arguments are checked in ops/dispatch.py and made
// contiguous in ops/cpu.py.
#include <memory>

#include "backward.h"
#include "generate.h"
#include "inputs.h"

namespace hmrnn {
namespace {

// Packing costs about as much as one step of some rows.
template <class T>
bool worth_packing(const Problem<T>& problem) {
  return problem.B >= 4 && problem.T_ * problem.B >= 64;
}

template <class T>
std::shared_ptr<Saved> make_saved(const Problem<T>& p) {
  auto saved = std::make_shared<Saved>();
  const int64_t rows = p.T_ * p.B;
  saved->u = buffer_of<T>(rows * p.L);
  saved->z = buffer_of<T>((rows + p.B) * p.L);
  for (int64_t l = 0; l < p.L; ++l) {
    SavedLayer layer;
    const int64_t panels = p.layers[l].panels() * LANES<T>;
    // At most every other step starts a run of COPY steps; the lowest layer never copies.
    const int64_t runs = l == 0 ? 0 : p.options.skip ? (p.T_ + 1) / 2 * p.B : rows;
    layer.slot.resize(rows);
    layer.gates = buffer_of<T>(rows * panels * 5);
    layer.coefficients = buffer_of<T>(runs * panels * 3);
    if (p.layer_norm) {
      for (int product = 0; product < PRODUCTS; ++product)
        if (p.layers[l].weight[product]) layer.normalised[product] = buffer_of<T>(rows * panels * 4);
      layer.statistics = buffer_of<T>(rows * PRODUCTS * 2);
      layer.copy_statistics = buffer_of<T>(runs * 2);
    }
    saved->layers.push_back(std::move(layer));
  }
  return saved;
}

using Result = std::tuple<Tensors, Tensor, Tensor, Tensors, Tensors, Tensor, std::shared_ptr<Saved>>;

template <class T>
Result forward_typed(const Inputs& in, bool training, const MaybeTensor& given, const PackedWeights* packed) {
  ForwardCall<T> call;
  call.problem = make_problem<T>(in);
  Problem<T>& p = call.problem;
  const int64_t rows = p.T_ * p.B;
  std::vector<Buffer> buffers;
  auto room = [&](int64_t count) {
    buffers.push_back(buffer_of<T>(count));
    return buffers.back().template as<T>();
  };

  Tensors hidden, h, c;
  for (int64_t l = 0; l < p.L; ++l) {
    hidden.push_back(at::empty({p.T_, p.B, p.layers[l].size}, in.x.options()));
    h.push_back(at::empty_like(in.state.h[l]));
    c.push_back(training ? at::empty_like(in.state.c[l]) : in.state.c[l].clone());
    call.hidden.push_back(hidden[l].template data_ptr<T>());
    call.h.push_back(h[l].template data_ptr<T>());
    call.c.push_back(c[l].template data_ptr<T>());
    call.masked.push_back(p.mask[l] ? room(2 * p.B * p.layers[l].size) : nullptr);
  }
  Tensor boundaries = at::zeros({p.T_, p.B, p.L}, in.x.options()), probs = at::zeros_like(boundaries);
  Tensor z = at::empty_like(in.state.z);
  call.boundaries = boundaries.data_ptr<T>();
  call.boundary_probs = probs.data_ptr<T>();
  call.z = z.data_ptr<T>();

  const bool pack = worth_packing(p) && !packed;
  TORCH_CHECK(!given || given->is_contiguous(), "projected must be contiguous");
  if (given && !p.layer_norm) {
    call.projected = given->data_ptr<T>();
  } else if (given || pack || (!packed && rows >= 16)) {
    const int64_t R = p.layers[0].rows();
    Tensor target = wrap<T>((buffers.push_back(buffer_of<T>(rows * R)), buffers.back()), {rows, R}, in.x);
    if (given)
      target.copy_(given->view({rows, R}));
    else
      at::mm_out(target, in.x.view({rows, -1}), in.weights[0][1]->t());
    if (p.layer_norm) {
      T* rstd = room(rows);
      normalise(target.data_ptr<T>(), rstd, rows, R);
      call.projected_rstd = rstd;
    }
    call.projected = target.data_ptr<T>();
  }
  for (int64_t l = 0; l < p.L; ++l)
    for (int product = 0; product < PRODUCTS; ++product) {
      auto& layer = p.layers[l];
      const bool used = layer.weight[product] && !(l == 0 && product == BOTTOM_UP && call.projected);
      if (packed && used) layer.packed[product] = packed->template panels<T>(l, product);
      call.to_pack.push_back(used && pack ? room(layer.panels() * layer.columns[product] * PANEL<T>) : nullptr);
    }
  call.most_panels = most_panels(p);
  if (p.layer_norm) call.statistics = room(PRODUCTS * p.B * call.most_panels * 2);
  std::shared_ptr<Saved> saved = training ? make_saved(p) : nullptr;
  call.saved = saved.get();

  run_team(team_size(call.most_panels, p.products_per_cell()), [&](int thread, int threads, Barrier& barrier) {
    ForwardWorker<T>(call, thread, threads, barrier).run();
  });
  return {hidden, boundaries, probs, h, c, z, saved};
}

// The rows of a weight's gradient that belong to gates: (4H, columns) = sum over slots of gradient x input.
template <class T>
void weight_gradient(const BackwardCall<T>& call, int64_t l, int product, const Tensor& x, Tensor grad) {
  const Problem<T>& p = call.problem;
  const SavedLayer& saved = call.saved->layers[l];
  const int64_t H = p.layers[l].size, K = p.layers[l].columns[product], B = p.B;
  const T* z = call.saved->z.template as<T>();
  std::vector<int64_t> slots;
  std::vector<T> gates;
  bool as_is = true;
  for (int64_t slot = 0; slot < saved.slots(); ++slot) {
    const int64_t t = saved.step[slot], b = saved.sample[slot];
    T gate = 1;
    if (product == TOP_DOWN) gate = z[(t * p.L + l) * B + b];
    if (product == BOTTOM_UP && l > 0) gate = z[((t + 1) * p.L + l - 1) * B + b];
    as_is &= gate == 1;
    if (gate == 0) continue;
    slots.push_back(slot);
    gates.push_back(p.layer_norm ? T(1) : gate);
  }
  const int64_t n = int64_t(slots.size());
  if (n == 0) {
    grad.zero_();
    return;
  }
  T* gradients = call.products[l * PRODUCTS + (p.layer_norm ? product : int(RECURRENT))];
  Buffer gathered, inputs = buffer_of<T>(n * K);
  if (!as_is) gathered = buffer_of<T>(n * 4 * H);
  const T* mask = product == RECURRENT ? p.mask[l] : nullptr;
  at::parallel_for(0, n, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t slot = slots[i], t = saved.step[slot], b = saved.sample[slot];
      const int64_t source = product == RECURRENT ? l : product == TOP_DOWN ? l + 1 : l - 1;
      const T* a;
      if (source < 0)
        a = p.x + (t * B + b) * K;
      else if (product == BOTTOM_UP)
        a = call.hidden[source] + (t * B + b) * K;
      else
        a = t ? call.hidden[source] + ((t - 1) * B + b) * K : p.h0[source] + b * K;
      T* to = inputs.as<T>() + i * K;
      if (mask)
        for (int64_t k = 0; k < K; ++k) to[k] = a[k] * mask[b * K + k];
      else
        std::memcpy(to, a, K * sizeof(T));
      if (as_is) continue;
      for (int64_t r = 0; r < 4 * H; ++r) gathered.as<T>()[i * 4 * H + r] = gates[i] * gradients[slot * 4 * H + r];
    }
  });
  Tensor ds = at::from_blob(as_is ? gradients : gathered.as<T>(), {n, 4 * H}, x.options());
  at::mm_out(grad, ds.t(), wrap<T>(inputs, {n, K}, x));
}

template <class T>
Tensor input_gradient(const BackwardCall<T>& call, const Tensor& x, const Tensor& weight, const Tensor& detector) {
  const Problem<T>& p = call.problem;
  const SavedLayer& saved = call.saved->layers[0];
  const int64_t H = p.layers[0].size, K = p.layers[0].columns[BOTTOM_UP], rows = p.T_ * p.B, n = saved.slots();
  const Tensor ds = at::from_blob(call.products[p.layer_norm ? BOTTOM_UP : RECURRENT], {n, 4 * H}, x.options());
  const Tensor gate_rows = weight.narrow(0, 0, 4 * H);
  Tensor index = at::empty({n}, x.options().dtype(at::kLong));
  for (int64_t i = 0; i < n; ++i) index.data_ptr<int64_t>()[i] = saved.step[i] * p.B + saved.sample[i];
  Tensor grad = at::zeros({rows, K}, x.options());
  if (n > 0) grad.index_copy_(0, index, at::mm(ds, gate_rows));
  if (p.options.detector_grad_scale != 0) grad.addr_(detector, weight[4 * H]);
  return grad.view_as(x);
}

// The gradient of a closed z_prev wants the top-down product that the forward pass left out. It is a function of h_above
// alone, which seldom changes: one product for every h_above that is asked for, all at once.
template <class T>
Tensor closed_top_down(BackwardCall<T>& call, int64_t l, const Tensor& weight, const Tensor& like) {
  const Problem<T>& p = call.problem;
  const SavedLayer &layer = call.saved->layers[l], &above = call.saved->layers[l + 1];
  const int64_t B = p.B, K = p.layers[l + 1].size;
  const T* z = call.saved->z.template as<T>();
  std::vector<int> now(B, 0), row(above.slots() + B, -1);  // which h_above: b at the start, then B + its slot
  for (int64_t b = 0; b < B; ++b) now[b] = int(b);
  std::vector<bool> active_above(p.T_ * B, false), active(p.T_ * B, false);
  for (int64_t s = 0; s < above.slots(); ++s) active_above[above.step[s] * B + above.sample[s]] = true;
  for (int64_t s = 0; s < layer.slots(); ++s) active[layer.step[s] * B + layer.sample[s]] = true;
  std::vector<const T*> inputs;
  std::vector<int>& wanted = call.closed_row[l];
  wanted.assign(p.T_ * B, -1);
  for (int64_t t = 0; t < p.T_; ++t)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t i = t * B + b;
      if (active[i] && z[(t * p.L + l) * B + b] == 0 && call.wants_boundary_gradient(t - 1, l, b)) {
        if (row[now[b]] < 0) {
          row[now[b]] = int(inputs.size());
          inputs.push_back(t ? call.hidden[l + 1] + (i - B) * K : p.h0[l + 1] + b * K);
        }
        wanted[i] = row[now[b]];
      }
      if (active_above[i]) now[b] = int(B) + above.slot[i];
    }
  const int64_t n = int64_t(inputs.size()), R = p.layers[l].rows();
  Buffer gathered = buffer_of<T>(std::max<int64_t>(n, 1) * K);
  for (int64_t i = 0; i < n; ++i) std::memcpy(gathered.as<T>() + i * K, inputs[i], K * sizeof(T));
  Tensor result = at::mm(at::from_blob(gathered.as<T>(), {n, K}, like.options()), weight.t());
  if (p.layer_norm) {
    Buffer rstd = buffer_of<T>(std::max<int64_t>(n, 1));
    normalise(result.data_ptr<T>(), rstd.as<T>(), n, R);
  }
  return result;
}

using Gradients = std::tuple<MaybeTensor, std::vector<std::vector<MaybeTensor>>, Tensors, Tensors, Tensor>;

template <class T>
Gradients backward_typed(const Inputs& in, const Saved& saved, const Tensors& hidden,
                         const std::vector<MaybeTensor>& grad_hidden, const MaybeTensor& grad_boundaries,
                         const MaybeTensor& grad_probs, const std::vector<MaybeTensor>& grad_h,
                         const std::vector<MaybeTensor>& grad_c, const MaybeTensor& grad_z, bool want_x,
                         bool want_weights) {
  BackwardCall<T> call;
  call.problem = make_problem<T>(in);
  call.saved = &saved;
  const Problem<T>& p = call.problem;
  std::vector<Buffer> buffers;
  auto room = [&](int64_t count) {
    buffers.push_back(buffer_of<T>(count));
    return buffers.back().template as<T>();
  };
  auto start = [](const MaybeTensor& grad, const Tensor& like) {
    return grad ? grad->clone(at::MemoryFormat::Contiguous) : at::zeros_like(like);
  };

  const bool pack = worth_packing(p);
  call.pack_last_only = !pack;
  Tensors dh, dc;
  std::vector<std::vector<MaybeTensor>> grads;
  int64_t columns = 1;
  for (int64_t l = 0; l < p.L; ++l) {
    const auto& layer = p.layers[l];
    const int64_t H = layer.size, slots = saved.layers[l].slots();
    dh.push_back(start(grad_h[l], in.state.h[l]));
    dc.push_back(start(grad_c[l], in.state.c[l]));
    call.dh.push_back(dh[l].template data_ptr<T>());
    call.dc.push_back(dc[l].template data_ptr<T>());
    call.hidden.push_back(hidden[l].template data_ptr<T>());
    call.grad_hidden.push_back(data<T>(grad_hidden[l]));
    grads.emplace_back(7);
    grads[l][3] = at::zeros_like(*in.weights[l][3]);
    call.biases.push_back(grads[l][3]->template data_ptr<T>());
    for (int product = 0; product < PRODUCTS; ++product) {
      const auto& weight = in.weights[l][TENSOR_OF_PRODUCT[product]];
      const int64_t K = layer.columns[product];
      columns = std::max(columns, ceil_div(K, PANEL<T>));
      const bool own_products = weight && (product == RECURRENT || p.layer_norm);
      call.products.push_back(own_products ? room(std::max<int64_t>(slots, 1) * 4 * H) : nullptr);
      call.rows.push_back(nullptr);
      call.gains.push_back(nullptr);
      if (weight) {
        auto& grad = grads[l][TENSOR_OF_PRODUCT[product]] = at::empty_like(*weight);
        call.rows.back() = grad->template data_ptr<T>() + 4 * H * K;
        std::fill_n(call.rows.back(), K, T(0));
      }
      if (p.layer_norm && weight) {
        auto& grad = grads[l][4 + TENSOR_OF_PRODUCT[product]] = at::zeros_like(*in.weights[l][4 + TENSOR_OF_PRODUCT[product]]);
        call.gains.back() = grad->template data_ptr<T>();
      }
      const bool in_loop = weight && !(l == 0 && product == BOTTOM_UP);
      const int64_t panels = pack ? ceil_div(K, PANEL<T>) : K % PANEL<T> ? 1 : 0;
      call.to_pack.push_back(in_loop && panels ? room(panels * 4 * H * PANEL<T>) : nullptr);
      call.weights.push_back(call.to_pack.back());
    }
  }
  Tensor dz = start(grad_z, in.state.z);
  call.dz = dz.data_ptr<T>();
  call.grad_boundaries = data<T>(grad_boundaries);
  call.grad_probs = data<T>(grad_probs);
  Tensor x_detector = at::zeros({p.T_ * p.B}, in.x.options());
  call.x_detector = x_detector.data_ptr<T>();
  Tensors closed;
  call.closed.assign(p.L, nullptr);
  call.closed_row.resize(p.L);
  for (int64_t l = 0; l + 1 < p.L; ++l) {
    closed.push_back(closed_top_down(call, l, *in.weights[l][2], in.x));
    call.closed[l] = closed[l].template data_ptr<T>();
  }
  const int size = team_size(columns, p.products_per_cell());
  call.boundary_parts = room(3 * size * p.B * 2);
  call.norm_parts = room(size * p.B * 2 * PRODUCTS);

  run_team(size, [&](int thread, int threads, Barrier& barrier) {
    BackwardWorker<T>(call, thread, threads, barrier).run();
  });

  if (want_weights)
    for (int64_t l = 0; l < p.L; ++l)
      for (int product = 0; product < PRODUCTS; ++product)
        if (auto& grad = grads[l][TENSOR_OF_PRODUCT[product]])
          weight_gradient(call, l, product, in.x, grad->narrow(0, 0, 4 * p.layers[l].size));
  MaybeTensor dx;
  if (want_x) dx = input_gradient(call, in.x, *in.weights[0][1], x_detector);
  return {dx, grads, dh, dc, dz};
}

template <class F>
auto dispatch(const Tensor& x, F f) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "float32 or float64 expected");
  py::gil_scoped_release no_gil;
  const at::NoGradGuard no_grad;
  return x.scalar_type() == at::kFloat ? f(float()) : f(double());
}

}  // namespace
}  // namespace hmrnn

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace hmrnn;
  m.doc() = "The compiled HM-LSTM recurrence; call it through fairseq_hmrnn.ops.cpu.";
  py::class_<Saved, std::shared_ptr<Saved>>(m, "Saved", "What the backward pass needs of one forward pass.");
  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(m, "PackedWeights");
  py::class_<Inputs, std::shared_ptr<Inputs>>(m, "Inputs", "Contiguous arguments of one call, kept for its backward.")
      .def(py::init([](Tensor x, Weights weights, Tensors h, Tensors c, Tensor z, MaybeTensor valid, MaybeTensor noise,
                       std::optional<Tensors> masks, double slope, int mode, bool nested, bool top, double scale,
                       bool skip) {
        return Inputs{x, weights, {h, c, z}, valid, noise, masks, {slope, scale, mode, nested, top, skip}};
      }));
  m.def("forward", [](const Inputs& in, bool training, const MaybeTensor& projected, const PackedWeights* packed) {
    return dispatch(in.x, [&](auto type) { return forward_typed<decltype(type)>(in, training, projected, packed); });
  });
  m.def("backward", [](const Inputs& in, const Saved& saved, const Tensors& hidden,
                       const std::vector<MaybeTensor>& grad_hidden, const MaybeTensor& grad_boundaries,
                       const MaybeTensor& grad_probs, const std::vector<MaybeTensor>& grad_h,
                       const std::vector<MaybeTensor>& grad_c, const MaybeTensor& grad_z, bool want_x,
                       bool want_weights) {
    return dispatch(in.x, [&](auto type) {
      return backward_typed<decltype(type)>(in, saved, hidden, grad_hidden, grad_boundaries, grad_probs, grad_h, grad_c,
                                            grad_z, want_x, want_weights);
    });
  });
  m.def("pack", [](const Weights& weights) {
    return dispatch(*weights[0][0],
                    [&](auto type) { return std::make_shared<PackedWeights>(pack_typed<decltype(type)>(weights)); });
  });
  py::class_<Generation, std::shared_ptr<Generation>>(m, "Generation", "See fairseq_hmrnn.ops.cpu_generation.")
      .def(py::init([](Weights weights, std::shared_ptr<PackedWeights> packed, Tensor inputs, bool projected,
                       Tensors layers, Tensor weight, Tensor bias, double slope, int mode, bool nested, bool top,
                       int64_t pad) {
        return dispatch(inputs, [&](auto type) {
          return begin_generation<decltype(type)>(weights, packed, inputs, projected,
                                                  {layers, weight, bias}, {slope, 0, mode, nested, top}, pad);
        });
      }))
      .def("run", [](const Generation& generation, Tensors h, Tensors c, Tensor z, Tensor terms, Tensor copy_u,
                     Tensor tokens, int64_t given) {
        return dispatch(generation.inputs, [&](auto type) {
          return generate<decltype(type)>(generation, {{h, c, z}, terms, copy_u}, tokens, given, false, {}, {});
        });
      })
      .def("sample", [](const Generation& generation, Tensors h, Tensors c, Tensor z, Tensor terms, Tensor copy_u,
                        Tensor tokens, int64_t given, double temperature, int64_t top_k, double top_p, Tensor never,
                        const MaybeTensor& noise) {
        const Choice choice{temperature, top_k, top_p, nullptr, never.data_ptr<bool>()};
        return dispatch(generation.inputs, [&](auto type) {
          return generate<decltype(type)>(generation, {{h, c, z}, terms, copy_u}, tokens, given, true, choice, noise);
        });
      });
  m.def("clear_buffers", [] { Pool::instance().clear(); }, "Frees the buffers kept for the next call.");
  m.def("buffer_bytes", [] { return std::make_pair(Pool::instance().bytes_in_use(), Pool::instance().bytes_kept()); });
}
