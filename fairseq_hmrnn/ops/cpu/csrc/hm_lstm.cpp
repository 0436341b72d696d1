// Python's entry to the compiled recurrence: tensors in, tensors out. Arguments are checked in ops/checks.py, and
// made contiguous in ops/autograd.py or, for packed weights, in ops/cpu/recurrence.py.
#include <memory>

#include "built_for.h"
#include "calls.h"
#include "generation_tensors.h"
#include "layer_output.h"

namespace hmrnn {
namespace {

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
  m.def("most_threads", [] { return TeamLimit::instance().most(wall_time()); },
        "The most threads of a call beside what other programs compute; 2147483647 where none was too many.");
  m.def("hold_threads", [](bool all) { TeamLimit::instance().hold(all); },
        "Whether calls take as many threads as torch has in any case.");
  py::class_<TeamLimit>(m, "TeamLimit", "How many threads, from times in nanoseconds, for tests.")
      .def(py::init<>())
      .def("most", &TeamLimit::most)
      .def("of", &TeamLimit::of)
      .def("learn", [](TeamLimit& limit, int size, int64_t elapsed, int64_t running, int64_t without_core,
                       int64_t now) {
        limit.learn(size, {elapsed, running, without_core}, now);
      });
  m.def("seconds", [] {
    py::dict seconds;
    const char* names[PHASES] = {"forward products", "forward cells", "backward products", "backward cells",
                                 "large products"};
    for (int phase = 0; phase < PHASES; ++phase) seconds[names[phase]] = phase_seconds()[phase].load();
    return seconds;
  }, "Seconds of the first thread in each part of all calls so far.");
}
