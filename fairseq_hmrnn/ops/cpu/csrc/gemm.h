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

// Columns that a tile computes at once.
template <class T>
constexpr int GEMM_PANEL = vectors_at_once(TILE_ROWS) * LANES<T>;

// Most elements of k in a block. A panel of it is 72 KiB in float32 where a tile has four vectors of 16 numbers, 18 where
// it has two of 8.
template <class S>
constexpr int64_t GEMM_DEPTH = 288 / FACTORS<S>;

constexpr int GEMM_TILES = 16;  // most tiles of one job, one below the other

// Packs `count` of the operand's `length` columns or rows, those that are not summed over, from `first` on, for elements
// [k, k + depth) of the sum, as tiles read them: (panels of WIDTH, factors of `depth` elements, WIDTH), padded with 0.
// K: numbers summed over.
template <int WIDTH, class T, class S>
class Packing {
  using F = Factor<S>;
  static constexpr int STEP = Operand<S>::STEP;
  static constexpr int MOST_COLUMNS = std::max<int>(GEMM_TILES * TILE_ROWS, GEMM_PANEL<T>);  // of a job or a panel

 public:
  Packing(const Matrix<T>& m, int64_t length, int64_t first, int64_t count, int64_t k, int64_t depth, int64_t K, F* to)
      : m_(m), length_(length), first_(first), count_(count), k_(k), depth_(depth), K_(K), to_(to) {}

  void run() const {
    if (m_.sum_over_rows)
      for (int64_t e = 0; e < depth_; ++e) pack_across(e);
    else
      for (int64_t i = 0; i < ceil_div(count_, WIDTH) * WIDTH; ++i) pack_along(i);
  }

 private:
  F* at(int64_t panel, int64_t factor) const { return to_ + (panel * depth_ * FACTORS<S> + factor) * WIDTH; }

  // Element e of all columns. Rows may be anywhere, so that the processor does not fetch them ahead by itself.
  void pack_across(int64_t e) const {
    const int64_t row = (k_ + e) * STEP;
    for (int64_t next = row + 4 * STEP; next < std::min(row + 5 * STEP, K_); ++next)
      for (int64_t i = 0; i < count_; i += CACHE_LINE / int64_t(sizeof(T))) __builtin_prefetch(m_.at(next) + first_ + i);
    const T* even = m_.at(row) + first_;
    const T* odd = STEP == 1 || row + 1 == K_ ? nullptr : m_.at(row + 1) + first_;
    if constexpr (STEP == 1) {
      spread(even, e);
    } else {
      alignas(CACHE_LINE) F room[MOST_COLUMNS];
      if constexpr (WIDENED<S>) {
        round_row(odd, count_, length_ - first_, room);
        spread(room, 2 * e);
        round_row(even, count_, length_ - first_, room);
        spread(room, 2 * e + 1);
      } else {
        make_pairs(even, odd, count_, length_ - first_, room);
        spread(room, e);
      }
    }
  }

  // One factor of all columns over the panels.
  void spread(const F* from, int64_t factor) const {
    int64_t panel = 0;
    for (; (panel + 1) * WIDTH <= count_; ++panel, from += WIDTH) std::memcpy(at(panel, factor), from, WIDTH * sizeof(F));
    if (const int64_t left = count_ - panel * WIDTH) {
      F* to = at(panel, factor);
      std::fill(std::copy_n(from, left, to), to + WIDTH, F{});
    }
  }

  // All elements of row i; beyond the last row 0.
  void pack_along(int64_t i) const {
    const int64_t count = depth_ * FACTORS<S>;
    F* to = at(i / WIDTH, 0) + i % WIDTH;
    if (i >= count_) {
      for (int64_t f = 0; f < count; ++f) to[f * WIDTH] = F{};
      return;
    }
    const T* row = m_.at(first_ + i) + k_ * STEP;
    const int64_t numbers = std::min(depth_ * STEP, K_ - k_ * STEP);
    F room[GEMM_DEPTH<S> * FACTORS<S>];
    const F* from = room;
    if constexpr (STEP == 1)
      from = row;
    else if constexpr (WIDENED<S>)
      make_factors(row, numbers, room);
    else
      make_pairs(row, numbers, room);
    for (int64_t f = 0; f < count; ++f) to[f * WIDTH] = from[f];
  }

  const Matrix<T>& m_;
  const int64_t length_, first_, count_, k_, depth_, K_;
  F* const to_;
};

// sums (TILE_ROWS, GEMM_PANEL) += a w for `depth` elements; a (depth, TILE_ROWS), w (depth, GEMM_PANEL).
template <class S, class T = typename Operand<S>::Sum>
HMRNN_OWN_REGISTERS void gemm_tile(int64_t depth, const S* a, const S* w, T* sums) {
  constexpr int W = LANES<T>, M = TILE_ROWS, V = vectors_at_once(M);
  Vec<T> acc[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) acc[i][v] = load(sums + (i * V + v) * W);
  for (int64_t k = 0; k < depth; ++k, a += M, w += V * W) {
    Vec<S> operand[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) operand[v] = load(w + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const S x = a[i];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[i][v] = multiply_add(acc[i][v], x, operand[v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) store(sums + (i * V + v) * W, acc[i][v]);
}

template <class T, class S>
class Gemm {
  using F = Factor<S>;
  static constexpr int64_t P = GEMM_PANEL<T>, M = TILE_ROWS, DEPTH = GEMM_DEPTH<S>;

 public:
  // c (rows, columns), `stride` apart = the sum over K of a b; a's result columns are c's rows.
  Gemm(int64_t rows, int64_t columns, int64_t K, const Matrix<T>& a, const Matrix<T>& b, T* c, int64_t stride)
      : rows_(rows), columns_(columns), K_(K), E_(elements<S>(K)), a_(a), b_(b), c_(c), stride_(stride),
        blocks_(ceil_div(E_, DEPTH)), depth_(ceil_div(E_, std::max<int64_t>(blocks_, 1))),
        panels_(ceil_div(columns, P)) {}

  void run() {
    if (rows_ == 0 || columns_ == 0) return;
    packed_ = buffer_of<F>(panels_ * P * FACTORS<S> * std::max<int64_t>(E_, 1));
    // Threads are worth waking for some 10 us of work each.
    const bool small = rows_ * columns_ * K_ < int64_t(1) << 20;
    parallel_for(blocks_ * panels_, small ? blocks_ * panels_ : 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) pack_panel(i / panels_, i % panels_);
    });
    choose_blocks();
    const int64_t across = ceil_div(panels_, wide_), down = ceil_div(ceil_div(rows_, M), high_);
    parallel_for(across * down, small ? across * down : 1, [&](int64_t first, int64_t last) {
      Buffer a = buffer_of<F>(high_ * M * DEPTH * FACTORS<S>), sums = buffer_of<T>(high_ * wide_ * M * P);
      for (int64_t i = first; i < last; ++i)
        job(i / across * high_, i % across * wide_, a.as<F>(), sums.as<T>());
    });
  }

 private:
  // Blocks are of equal depth, but for the last.
  int64_t depth(int64_t block) const { return std::min(depth_, E_ - block * depth_); }

  const F* panel(int64_t block, int64_t p) const {
    return packed_.as<F>() + (block * depth_ * panels_ + p * depth(block)) * P * FACTORS<S>;
  }

  void pack_panel(int64_t block, int64_t p) {
    Packing<P, T, S>(b_, columns_, p * P, std::min(P, columns_ - p * P), block * depth_, depth(block), K_,
                     const_cast<F*>(panel(block, p)))
        .run();
  }

  // Tiles and panels of one job: up to 96 rows by 32 vectors, 192 KiB in float32 where these have 16 numbers; fewer where
  // there would be too few jobs.
  void choose_blocks() {
    const int64_t needed = 4 * at::get_num_threads(), tiles = ceil_div(rows_, M);
    high_ = std::min<int64_t>(GEMM_TILES, tiles);
    wide_ = std::min<int64_t>(32 / vectors_at_once(M), panels_);
    while (ceil_div(panels_, wide_) * ceil_div(tiles, high_) < needed && (wide_ > 2 || high_ > 4)) {
      if (wide_ > 2)
        wide_ = ceil_div(wide_, 2);
      else
        high_ = ceil_div(high_, 2);
    }
  }

  void job(int64_t tile, int64_t first_panel, F* a, T* sums) {
    const int64_t tiles = std::min(high_, ceil_div(rows_, M) - tile), panels = std::min(wide_, panels_ - first_panel);
    std::fill_n(sums, tiles * panels * M * P, T(0));
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t k = block * depth_, d = depth(block);
      Packing<M, T, S>(a_, rows_, tile * M, std::min(tiles * M, rows_ - tile * M), k, d, K_, a).run();
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t i = 0; i < tiles; ++i)
          gemm_tile<F>(d * FACTORS<S>, a + i * M * d * FACTORS<S>, panel(block, first_panel + p),
                       sums + (p * tiles + i) * M * P);
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
