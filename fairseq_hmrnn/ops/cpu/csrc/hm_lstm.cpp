// Python's entry to the compiled recurrence: tensors in, tensors out. Arguments are checked in ops/hm_lstm.py and made
// contiguous in ops/cpu/recurrence.py.
#include <memory>

#include "backward.h"
#include "built_for.h"
#include "generate.h"
#include "inputs.h"
#include "layer_output.h"

namespace hmrnn {
namespace {

// Packing costs about as much as one step of some rows. Products of pairs are of packed weights alone.
template <class T, class S>
bool worth_packing(const Problem<T>& problem) {
  return !std::is_same<S, T>::value || (problem.B >= 4 && problem.T_ * problem.B >= 64);
}

void check_tokens(const Inputs& in) {
  if (!in.tokens) return;
  const int64_t* tokens = in.tokens->data_ptr<int64_t>();
  for (int64_t i = 0; i < in.tokens->numel(); ++i)
    TORCH_CHECK_INDEX(tokens[i] >= 0 && tokens[i] < in.x.size(0), "symbol ", tokens[i], " is not in a table of ",
                      in.x.size(0));
}

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

// Room for what the backward pass needs: at most every other step starts a run of COPY steps, and the lowest layer never
// copies.
template <class T>
class SavedRooms {
 public:
  explicit SavedRooms(const Problem<T>& p) : p_(p), rows_(p.T_ * p.B), u_(take<T>(rows_ * p.L)), z_(take<T>((rows_ + p.B) * p.L)) {
    for (int64_t l = 0; l < p.L; ++l) {
      const int64_t units = p.layers[l].panels() * LANES<T>, runs = most_runs(l);
      Layer layer;
      layer.index = take<int>(4 * rows_);
      layer.gates = take<T>(rows_ * units * SAVED);
      layer.copy_terms = take<T>(runs * units * COPY_TERMS);
      if (p.layer_norm) {
        for (int product = 0; product < PRODUCTS; ++product)
          if (p.layers[l].weight[product]) layer.normalised[product] = take<T>(rows_ * units * GATES);
        layer.statistics = take<T>(rows_ * PRODUCTS * 2);
        layer.copy_statistics = take<T>(runs * 2);
      }
      SavedRoom<T> room;
      room.slot = layer.index->template as<int>();
      room.step = room.slot + rows_;
      room.sample = room.slot + 2 * rows_;
      room.previous = room.slot + 3 * rows_;
      room.gates = layer.gates->template as<T>();
      room.copy_terms = layer.copy_terms->template as<T>();
      if (p.layer_norm) {
        for (int product = 0; product < PRODUCTS; ++product)
          if (layer.normalised[product]) room.normalised[product] = layer.normalised[product]->template as<T>();
        room.statistics = layer.statistics->template as<T>();
        room.copy_statistics = layer.copy_statistics->template as<T>();
      }
      buffers_.push_back(std::move(layer));
      rooms.push_back(room);
    }
  }

  template <class S>
  void into(ForwardCall<T, S>& call) {
    call.saved = &rooms;
    call.saved_u = u_->template as<T>();
    call.saved_z = z_->template as<T>();
  }

  // The part of it that was used, as tensors.
  Saved saved(const Tensor& like, const Tensor& projected, const Tensor& projected_rstd) {
    const auto numbers = like.options(), integers = numbers.dtype(at::kInt);
    Saved saved;
    saved.u = tensor_of(u_, {p_.T_, p_.L, p_.B}, numbers);
    saved.z = tensor_of(z_, {p_.T_ + 1, p_.L, p_.B}, numbers);
    saved.projected = projected;
    saved.projected_rstd = projected_rstd;
    for (int64_t l = 0; l < p_.L; ++l) {
      const Layer& from = buffers_[l];
      const int64_t slots = rooms[l].slots, copies = rooms[l].copies, panels = p_.layers[l].panels(), W = LANES<T>;
      SavedLayer to;
      to.index = tensor_of(from.index, {4, rows_}, integers);
      to.gates = tensor_of(from.gates, {slots, panels, SAVED, W}, numbers);
      to.copy_terms = tensor_of(from.copy_terms, {copies, panels, COPY_TERMS, W}, numbers);
      if (p_.layer_norm) {
        for (int product = 0; product < PRODUCTS; ++product)
          if (from.normalised[product] && !(l == 0 && product == BOTTOM_UP && projected.defined()))
            to.normalised[product] = tensor_of(from.normalised[product], {slots, panels, GATES, W}, numbers);
        to.statistics = tensor_of(from.statistics, {slots, PRODUCTS, 2}, numbers);
        to.copy_statistics = tensor_of(from.copy_statistics, {copies, 2}, numbers);
      }
      saved.layers.push_back(std::move(to));
    }
    return saved;
  }

  std::vector<SavedRoom<T>> rooms;

 private:
  using Shared = std::shared_ptr<Buffer>;
  struct Layer {
    Shared index, gates, copy_terms, normalised[PRODUCTS], statistics, copy_statistics;
  };

  template <class N>
  static Shared take(int64_t count) {
    return std::make_shared<Buffer>(buffer_of<N>(std::max<int64_t>(count, 1)));
  }
  int64_t most_runs(int64_t l) const { return l == 0 ? 0 : p_.options.skip ? (p_.T_ + 1) / 2 * p_.B : rows_; }

  const Problem<T>& p_;
  const int64_t rows_;
  Shared u_, z_;
  std::vector<Layer> buffers_;
};

// hidden, h and c of every layer, boundaries, boundary_probs, z, and in training what the backward pass needs.
using Result = std::tuple<Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, std::vector<MaybeTensor>>;

// Layer 1's bottom-up product where it does not wait for the loop: given, of every symbol, or of every step where the
// weight is not packed.
template <class T, class S>
std::pair<Tensor, Tensor> project(const Inputs& in, const Problem<T>& p, const MaybeTensor& given, bool packed) {
  Tensor projected, rstd;
  const int64_t K = p.layers[0].columns[BOTTOM_UP], R = p.layers[0].rows();
  if (given)
    projected = given->view({-1, R});
  else if (in.tokens || (!packed && p.T_ * p.B >= 16))
    projected = product_of_rows<T, S>({p.x, K}, in.tokens ? in.x.size(0) : p.T_ * p.B, *in.weights[0][BOTTOM_UP]);
  if (projected.defined() && p.layer_norm) {
    if (given) projected = projected.clone();
    rstd = at::empty({projected.size(0)}, in.x.options());
    normalise(projected.data_ptr<T>(), rstd.data_ptr<T>(), projected.size(0), R);
  }
  return {projected, rstd};
}

template <class T, class S>
Result forward_typed(const Inputs& in, bool training, const MaybeTensor& given, const PackedWeights* packed) {
  check_tokens(in);
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
  const auto [projected, rstd] = project<T, S>(in, p, given, pack || packed);
  watch.lap(LARGE_PRODUCTS);
  call.projected = pointer<T>(projected);
  call.projected_rstd = pointer<T>(rstd);
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
  if (training) rooms.emplace(p).into(call);

  run_team(team_size(call.most_panels, p.products_per_cell()), [&](int thread, int threads, Barrier& barrier) {
    ForwardWorker<T, S>(call, thread, threads, barrier).run();
  });
  std::vector<MaybeTensor> saved;
  if (training) saved = rooms->saved(in.x, projected, rstd).flat();
  return {hidden, h, c, boundaries, probs, z, saved};
}

// The rows of a weight's gradient that belong to gates: (4H, columns) = sum over slots of gradient x input.
template <class T, class S>
void weight_gradient(const BackwardCall<T, S>& call, int64_t l, int product, int64_t table_size, T* grad) {
  const Problem<T>& p = call.problem;
  const SavedLayer& saved = call.saved->layers[l];
  const int64_t H = p.layers[l].size, R = GATES * H, K = p.layers[l].columns[product], B = p.B;
  if (l == 0 && product == BOTTOM_UP && call.symbols)
    return gemm<T, S>(R, K, table_size, {call.symbols, R, true}, {p.x, K, true}, grad, K);
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
    at::parallel_for(0, n, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t r = 0; r < R; ++r) scaled.as<T>()[i * R + r] = gates[i] * ds[i][r];
    });
  }
  if (mask) {
    masked = buffer_of<T>(n * K);
    at::parallel_for(0, n, 16, [&](int64_t first, int64_t last) {
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

// Of x, z, h and c of every layer, the weights of every layer.
using Gradients = std::tuple<MaybeTensor, Tensor, Tensors, Tensors, std::vector<std::vector<MaybeTensor>>>;

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

  run_team(team_size(columns, p.products_per_cell()), [&](int thread, int threads, Barrier& barrier) {
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
  return {dx, dz, dh, dc, grads};
}

template <class T, class S>
Tensor multiply_typed(const Tensor& a, bool a_sums_over_rows, const Tensor& b, bool b_sums_over_rows) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.is_contiguous() && b.is_contiguous(), "contiguous matrices expected");
  const int64_t rows = a.size(a_sums_over_rows), K = a.size(!a_sums_over_rows), columns = b.size(b_sums_over_rows);
  TORCH_CHECK_VALUE(b.size(!b_sums_over_rows) == K, "sums over ", K, " and ", b.size(!b_sums_over_rows), " numbers");
  Tensor result = pooled({rows, columns}, a.options());
  gemm<T, S>(rows, columns, K, {a.data_ptr<T>(), a.size(1), a_sums_over_rows},
             {b.data_ptr<T>(), b.size(1), b_sums_over_rows}, result.data_ptr<T>(), columns);
  return result;
}

// f(T(), S()): the type of the numbers, and that of the operands of products. What fails for lack of memory, torch's
// allocator included, becomes Python's MemoryError.
template <class F>
auto dispatch(const Tensor& x, bool low, F f) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || (x.scalar_type() == at::kDouble && !low), "float32 or float64 expected");
  py::gil_scoped_release no_gil;
  const at::NoGradGuard no_grad;
  try {
    return low ? f(float(), Pair()) : x.scalar_type() == at::kFloat ? f(float(), float()) : f(double(), double());
  } catch (const c10::Error& error) {
    if (std::string(error.what()).find("allocate memory") != std::string::npos) throw std::bad_alloc();
    throw;
  }
}

}  // namespace
}  // namespace hmrnn

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace hmrnn;
  m.doc() = "The compiled HM-LSTM recurrence; call it through fairseq_hmrnn.ops.cpu.";
  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(m, "PackedWeights");
  py::class_<Inputs, std::shared_ptr<Inputs>>(m, "Inputs", "Contiguous arguments of one call, kept for its backward.")
      .def(py::init([](Tensor x, Weights weights, Tensors h, Tensors c, Tensor z, MaybeTensor tokens, MaybeTensor valid,
                       MaybeTensor noise, std::optional<Tensors> masks, double slope, int mode, bool nested, bool top,
                       double scale, bool skip, bool low) {
        return Inputs{x, weights, {h, c, z}, tokens, valid, noise, masks, {slope, scale, mode, nested, top, skip}, low};
      }));
  m.def("forward", [](const Inputs& in, bool training, const MaybeTensor& projected, const PackedWeights* packed) {
    return dispatch(in.x, in.low, [&](auto t, auto s) {
      return forward_typed<decltype(t), decltype(s)>(in, training, projected, packed);
    });
  });
  m.def("backward", [](const Inputs& in, const std::vector<MaybeTensor>& saved, const Tensors& hidden,
                       const std::vector<MaybeTensor>& grad_hidden, const std::vector<MaybeTensor>& grad_h,
                       const std::vector<MaybeTensor>& grad_c, const MaybeTensor& grad_boundaries,
                       const MaybeTensor& grad_probs, const MaybeTensor& grad_z, bool need_x, bool need_weights) {
    return dispatch(in.x, in.low, [&](auto t, auto s) {
      const Incoming incoming{grad_hidden, grad_h, grad_c, grad_boundaries, grad_probs, grad_z};
      return backward_typed<decltype(t), decltype(s)>(in, Saved::of(saved), hidden, incoming, need_x, need_weights);
    });
  });
  m.def("pack", [](const Weights& weights, bool low) {
    return dispatch(*weights[0][RECURRENT], low, [&](auto t, auto s) {
      return std::make_shared<PackedWeights>(pack_typed<decltype(t), decltype(s)>(weights));
    });
  });
  m.def("multiply", [](const Tensor& a, bool a_sums_over_rows, const Tensor& b, bool b_sums_over_rows, bool low) {
    return dispatch(a, low, [&](auto t, auto s) {
      return multiply_typed<decltype(t), decltype(s)>(a, a_sums_over_rows, b, b_sums_over_rows);
    });
  }, "The product of two matrices, of each of which the rows are summed along, or over.");
  m.def("layer_output", [](const Tensors& hidden, const Tensors& weights, const MaybeTensor& changed, bool low) {
    return dispatch(hidden[0], low, [&](auto t, auto s) {
      return LayerOutput<decltype(t), decltype(s)>(hidden, weights, changed).forward();
    });
  });
  m.def("layer_output_backward", [](const Tensor& grad, const Tensor& features, const Tensors& hidden,
                                    const Tensors& weights, const MaybeTensor& changed, const Tensors& saved, bool low) {
    return dispatch(hidden[0], low, [&](auto t, auto s) {
      return LayerOutput<decltype(t), decltype(s)>(hidden, weights, changed).backward(grad, features, saved);
    });
  });
  py::class_<Generation, std::shared_ptr<Generation>>(m, "Generation", "See fairseq_hmrnn.ops.cpu.generation.")
      .def(py::init([](Weights weights, std::shared_ptr<PackedWeights> packed, Tensor inputs, bool projected,
                       Tensors layers, Tensor weight, Tensor bias, double slope, int mode, bool nested, bool top,
                       int64_t pad) {
        return dispatch(inputs, packed->low, [&](auto t, auto s) {
          return begin_generation<decltype(t), decltype(s)>(weights, packed, inputs, projected, {layers, weight, bias},
                                                            {slope, 0, mode, nested, top}, pad);
        });
      }))
      .def("run", [](const Generation& generation, Tensors h, Tensors c, Tensor z, Tensor terms, Tensor copy_u,
                     Tensor tokens, int64_t given) {
        return dispatch(generation.inputs, generation.packed->low, [&](auto t, auto s) {
          return generate<decltype(t), decltype(s)>(generation, {{h, c, z}, terms, copy_u}, tokens, given, false, {}, {});
        });
      })
      .def("sample", [](const Generation& generation, Tensors h, Tensors c, Tensor z, Tensor terms, Tensor copy_u,
                        Tensor tokens, int64_t given, double temperature, int64_t top_k, double top_p, Tensor never,
                        const MaybeTensor& noise) {
        const Tensor barred = never.contiguous();
        const Choice choice{temperature, top_k, top_p, nullptr, barred.data_ptr<bool>()};
        return dispatch(generation.inputs, generation.packed->low, [&](auto t, auto s) {
          return generate<decltype(t), decltype(s)>(generation, {{h, c, z}, terms, copy_u}, tokens, given, true, choice,
                                                    noise);
        });
      });
  m.def("dot_pairs", [](const Tensor& a, const Tensor& b, bool portable) {
    const int64_t K = a.numel();
    std::vector<Pair> pairs(2 * elements<Pair>(K));
    Pair *x = pairs.data(), *w = x + elements<Pair>(K);
    make_pairs(a.data_ptr<float>(), K, x);
    make_pairs(b.data_ptr<float>(), K, w);
    Vec<float> sum{};
    for (int64_t i = 0; i < elements<Pair>(K); ++i) {
      const Vec<Pair> both = Vec<Pair>{} + w[i].bits;
      sum = portable ? multiply_add_portable(sum, x[i], both) : multiply_add(sum, x[i], both);
    }
    return sum[0];
  }, "The product of two float32 vectors rounded to bfloat16, as this processor computes it or as any would.");
  m.def("clear_buffers", [] { Pool::instance().clear(); }, "Frees the buffers kept for the next call.");
  m.def("buffer_bytes", [] { return Pool::instance().bytes(); }, "Bytes of buffers in use, and of those kept.");
  m.def("seconds", [] {
    py::dict seconds;
    const char* names[PHASES] = {"forward products", "forward cells", "backward products", "backward cells",
                                 "backward large products"};
    for (int phase = 0; phase < PHASES; ++phase) seconds[names[phase]] = phase_seconds()[phase].load();
    return seconds;
  }, "Seconds of the first thread in each part of all calls so far.");
}
