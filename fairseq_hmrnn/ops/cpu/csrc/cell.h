// One cell of the recurrence for LANES units of one sample: equations (2) to (4), and their derivatives. To change the
// cell, see "Changing the cell" in ops/README.md.
#pragma once

#include "memory.h"
#include "product.h"

namespace hmrnn {

constexpr int SAVED = 5;       // vectors that the backward pass needs of an active step: f, i, o, g, c
constexpr int COPY_TERMS = 3;  // and of a run of COPY steps: factors of dc in dz' and dzb, and of -dh in both

// Vectors over the gate rows of a layer, panel by panel: (panels, GATES, LANES). Rows of one gate are H apart in a weight,
// often a power of two, and so many of them at once would share one set of the first cache.
template <class T>
class ByPanel {
  static constexpr int W = LANES<T>;

 public:
  // rows: (4H+1) numbers, or null for zeros.
  ByPanel(const T* rows, int64_t H) : H_(H), memory_(buffer_of<T>(ceil_div(H, W) * GATES * W)) {
    for (int64_t j = 0; j < H; j += W)
      for (int q = 0; q < GATES; ++q)
        store(at(j, q), rows ? load(rows + q * H + j, int(std::min<int64_t>(W, H - j))) : Vec<T>{});
  }
  // Gate q of units j, j a multiple of LANES, and those behind it.
  T* at(int64_t j, int q) const { return memory_.template as<T>() + j * GATES + q * W; }
  // Adds units [first, last) to rows.
  void add_to(T* rows, int64_t first, int64_t last) const {
    for (int64_t j = first; j < last; j += W)
      for (int q = 0; q < GATES; ++q) {
        T* to = rows + q * H_ + j;
        const int lanes = int(std::min<int64_t>(W, H_ - j));
        store(to, load(to, lanes) + load(at(j, q)), lanes);
      }
  }

 private:
  int64_t H_;
  Buffer memory_;
};

// How much of UPDATE, COPY and FLUSH a step does; 0 or 1 but for soft boundaries.
template <class T>
struct Operation {
  T update, copy, flush;
  Operation(T z_prev, T z_below)
      : update((1 - z_prev) * z_below), copy((1 - z_prev) * (1 - z_below)), flush(z_prev) {}
};

template <class T>
struct Gates {
  Vec<T> f, i, o, g;
};

// Equation (2): s holds the pre-activations of the four gates.
template <class T>
inline Gates<T> activate(const Vec<T> (&s)[GATES]) {
  return {sigmoid<T>(s[0]), sigmoid<T>(s[1]), sigmoid<T>(s[2]), tanh<T>(s[3])};
}

template <class T>
struct Cell {
  Vec<T> h, c;
};

// Equations (3) and (4).
template <class T>
inline Cell<T> step(const Gates<T>& gates, const Operation<T>& op, Vec<T> h_prev, Vec<T> c_prev) {
  const Vec<T> ig = gates.i * gates.g;
  const Vec<T> c = op.update * (gates.f * c_prev + ig) + op.copy * c_prev + op.flush * ig;
  return {op.copy * h_prev + (1 - op.copy) * (gates.o * tanh<T>(c)), c};
}

template <class T>
inline void save(const Gates<T>& gates, Vec<T> c, T* to) {
  constexpr int W = LANES<T>;
  const Vec<T> values[SAVED] = {gates.f, gates.i, gates.o, gates.g, c};
  for (int q = 0; q < SAVED; ++q) store(to + q * W, values[q]);
}

template <class T>
inline Vec<T> saved_c(const T* from) {
  return load(from + (SAVED - 1) * LANES<T>);
}

// The influence of the branches not taken on a COPY step's boundaries, constant over a run of COPY steps.
template <class T>
inline void save_copy_terms(const Gates<T>& gates, Vec<T> h_prev, Vec<T> c_prev, T* to) {
  constexpr int W = LANES<T>;
  const Vec<T> ig = gates.i * gates.g;
  store(to, ig - c_prev);
  store(to + W, ig + (gates.f - T(1)) * c_prev);
  store(to + 2 * W, h_prev - gates.o * tanh<T>(c_prev));
}

// The gradients of z' and zb at a COPY step, by unit.
template <class T>
struct BoundaryGradient {
  Vec<T> z_prev, z_below;
};

template <class T>
inline BoundaryGradient<T> copy_backward(const T* terms, Vec<T> dh, Vec<T> dc) {
  constexpr int W = LANES<T>;
  const Vec<T> other = dh * load(terms + 2 * W);
  return {dc * load(terms) - other, dc * load(terms + W) - other};
}

template <class T>
struct CellGradient {
  Vec<T> s[GATES], h_prev, c_prev;  // h_prev: of eq. (4) alone, not through the products
  BoundaryGradient<T> z;
};

// From the gradients of a step's h and c to those of all it read; `saved` as `save` left it. The sum in
// d.z.z_below is flushed + kept in `advance_backward` of triton/cell.py, which writes d.z with these two.
template <class T>
inline CellGradient<T> step_backward(const T* saved, const Operation<T>& op, T z_below, Vec<T> h_prev, Vec<T> c_prev,
                                     Vec<T> dh, Vec<T> dc) {
  constexpr int W = LANES<T>;
  const Vec<T> f = load(saved), i = load(saved + W), o = load(saved + 2 * W), g = load(saved + 3 * W);
  const Vec<T> tanh_c = tanh<T>(saved_c(saved)), ig = i * g;
  const Vec<T> dh_new = (1 - op.copy) * dh;
  const Vec<T> dc_all = dc + dh_new * o * (T(1) - tanh_c * tanh_c);
  const Vec<T> dig = (op.update + op.flush) * dc_all;
  const Vec<T> other = dh * (h_prev - o * tanh_c);
  CellGradient<T> d;
  d.s[0] = op.update * dc_all * c_prev * f * (T(1) - f);
  d.s[1] = dig * g * i * (T(1) - i);
  d.s[2] = dh_new * tanh_c * o * (T(1) - o);
  d.s[3] = dig * i * (T(1) - g * g);
  d.h_prev = op.copy * dh;
  d.c_prev = dc_all * (op.update * f + op.copy);
  d.z.z_prev = (1 - z_below) * (dc_all * (ig - c_prev) - other) - z_below * dc_all * f * c_prev;
  d.z.z_below = (1 - op.flush) * (dc_all * (ig + (f - T(1)) * c_prev) - other);
  return d;
}

}  // namespace hmrnn
