// Large products: weight gradients, layer 1's projection, linear layers. Blocks of the first operand are packed for the
// second cache, the second operand once for all threads, and a tile of sums is kept in registers, as in product.h.
//
// Every element of the result is summed over k in one order, whatever the shapes around it and the number of threads.
#pragma once

#include "memory.h"
#include "product.h"
#include "team.h"

namespace hmrnn {

// One operand: rows of numbers, `stride` apart or wherever `row` says. Sums run along its rows, or over them.
template <class T>
struct Matrix {
  const T* data = nullptr;
  int64_t stride = 0;
  bool sum_over_rows = false;
  const T* const* row = nullptr;

  const T* at(int64_t r) const { return row ? row[r] : data + r * stride; }
};

constexpr int64_t GEMM_DEPTH = 288;  // most elements of k in a block: a panel of it is 72 KiB in float32

// Of the operand's `length` columns or rows, those that are not summed over, `count` from `first` on, for elements
// [k, k + depth) of the sum, depth at most GEMM_DEPTH, into rows of `width`, padded with 0. K: numbers summed over.
template <class T, class S>
void pack_operand(const Matrix<T>& m, int64_t length, int64_t first, int64_t count, int64_t width, int64_t k,
                  int64_t depth, int64_t K, S* to) {
  constexpr int STEP = Operand<S>::STEP;
  if (!m.sum_over_rows) {
    S room[GEMM_DEPTH];
    for (int64_t i = 0; i < count; ++i) {
      const T* row = m.at(first + i) + k * STEP;
      const S* from;
      if constexpr (STEP == 1) {
        from = row;
      } else {
        make_pairs(row, std::min(depth * STEP, K - k * STEP), room);
        from = room;
      }
      for (int64_t e = 0; e < depth; ++e) to[e * width + i] = from[e];
    }
  }
  for (int64_t e = 0; e < depth; ++e) {
    S* out = to + e * width;
    std::fill(out + count, out + width, S{});
    if (!m.sum_over_rows) continue;
    const int64_t row = (k + e) * STEP;
    const T* even = m.at(row) + first;
    if constexpr (STEP == 1) {
      if (count == TILE_ROWS)  // a size known to the compiler
        std::memcpy(out, even, TILE_ROWS * sizeof(T));
      else
        std::memcpy(out, even, count * sizeof(T));
    } else {
      make_pairs(even, row + 1 == K ? nullptr : m.at(row + 1) + first, count, length - first, out);
    }
  }
}

// sums (TILE_ROWS, PANEL) += a w for `depth` elements; a (depth, TILE_ROWS), w (depth, PANEL), of V vectors from sums and
// w on.
template <class S, int V, class T = typename Operand<S>::Sum>
inline void gemm_vectors(int64_t depth, const S* a, const S* w, T* sums) {
  constexpr int W = LANES<T>, M = TILE_ROWS;
  Vec<T> acc[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) acc[i][v] = load(sums + i * PANEL<T> + v * W);
  for (int64_t k = 0; k < depth; ++k, a += M, w += PANEL<T>) {
    Vec<S> operand[V];
    for (int v = 0; v < V; ++v) operand[v] = load(w + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const S x = a[i];
      for (int v = 0; v < V; ++v) acc[i][v] = multiply_add(acc[i][v], x, operand[v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) store(sums + i * PANEL<T> + v * W, acc[i][v]);
}

template <class S, class T = typename Operand<S>::Sum>
inline void gemm_tile(int64_t depth, const S* a, const S* w, T* sums) {
  constexpr int V = VECTORS_AT_ONCE<TILE_ROWS>;
  for (int v = 0; v < 4; v += V) gemm_vectors<S, V>(depth, a, w + v * LANES<T>, sums + v * LANES<T>);
}

template <class T, class S>
class Gemm {
  static constexpr int64_t P = PANEL<T>, M = TILE_ROWS;

 public:
  // c (rows, columns), `stride` apart = the sum over K of a b; a's result columns are c's rows.
  Gemm(int64_t rows, int64_t columns, int64_t K, const Matrix<T>& a, const Matrix<T>& b, T* c, int64_t stride)
      : rows_(rows), columns_(columns), K_(K), E_(elements<S>(K)), a_(a), b_(b), c_(c), stride_(stride),
        blocks_(ceil_div(E_, GEMM_DEPTH)), depth_(ceil_div(E_, std::max<int64_t>(blocks_, 1))),
        panels_(ceil_div(columns, P)) {}

  void run() {
    if (rows_ == 0 || columns_ == 0) return;
    packed_ = buffer_of<S>(panels_ * P * std::max<int64_t>(E_, 1));
    // Threads are worth waking for some 10 us of work each.
    const bool small = rows_ * columns_ * K_ < int64_t(1) << 20;
    parallel_for(blocks_ * panels_, small ? blocks_ * panels_ : 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) pack_panel(i / panels_, i % panels_);
    });
    choose_blocks();
    const int64_t across = ceil_div(panels_, wide_), down = ceil_div(ceil_div(rows_, M), high_);
    parallel_for(across * down, small ? across * down : 1, [&](int64_t first, int64_t last) {
      Buffer a = buffer_of<S>(high_ * M * GEMM_DEPTH), sums = buffer_of<T>(high_ * wide_ * M * P);
      for (int64_t i = first; i < last; ++i)
        job(i / across * high_, i % across * wide_, a.as<S>(), sums.as<T>());
    });
  }

 private:
  // Blocks are of equal depth, but for the last.
  int64_t depth(int64_t block) const { return std::min(depth_, E_ - block * depth_); }

  const S* panel(int64_t block, int64_t p) const {
    return packed_.as<S>() + (block * depth_ * panels_ + p * depth(block)) * P;
  }

  void pack_panel(int64_t block, int64_t p) {
    pack_operand<T, S>(b_, columns_, p * P, std::min(P, columns_ - p * P), P, block * depth_, depth(block), K_,
                       const_cast<S*>(panel(block, p)));
  }

  // Tiles and panels of one job: up to 96 x 512 sums, 192 KiB in float32; fewer where there would be too few jobs.
  void choose_blocks() {
    const int64_t needed = 4 * at::get_num_threads(), tiles = ceil_div(rows_, M);
    high_ = std::min<int64_t>(16, tiles);
    wide_ = std::min<int64_t>(8, panels_);
    while (ceil_div(panels_, wide_) * ceil_div(tiles, high_) < needed && (wide_ > 2 || high_ > 4)) {
      if (wide_ > 2)
        wide_ = ceil_div(wide_, 2);
      else
        high_ = ceil_div(high_, 2);
    }
  }

  void job(int64_t tile, int64_t first_panel, S* a, T* sums) {
    const int64_t tiles = std::min(high_, ceil_div(rows_, M) - tile), panels = std::min(wide_, panels_ - first_panel);
    std::fill_n(sums, tiles * panels * M * P, T(0));
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t k = block * depth_, d = depth(block);
      for (int64_t i = 0; i < tiles; ++i)
        pack_operand<T, S>(a_, rows_, (tile + i) * M, std::min(M, rows_ - (tile + i) * M), M, k, d, K_, a + i * M * d);
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t i = 0; i < tiles; ++i)
          gemm_tile<S>(d, a + i * M * d, panel(block, first_panel + p), sums + (p * tiles + i) * M * P);
    }
    for (int64_t i = 0; i < tiles * M && tile * M + i < rows_; ++i)
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t column = (first_panel + p) * P;
        std::memcpy(c_ + (tile * M + i) * stride_ + column, sums + ((p * tiles + i / M) * M + i % M) * P,
                    std::min(P, columns_ - column) * sizeof(T));
      }
  }

  const int64_t rows_, columns_, K_, E_;
  const Matrix<T> a_, b_;
  T* const c_;
  const int64_t stride_, blocks_, depth_, panels_;
  int64_t high_ = 1, wide_ = 1;
  Buffer packed_;
};

template <class T, class S>
void gemm(int64_t rows, int64_t columns, int64_t K, const Matrix<T>& a, const Matrix<T>& b, T* c, int64_t stride) {
  Gemm<T, S>(rows, columns, K, a, b, c, stride).run();
}

}  // namespace hmrnn
