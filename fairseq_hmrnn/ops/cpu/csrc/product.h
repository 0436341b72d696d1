// Products of selected rows with one panel of a weight: 4 vectors of columns, kept in registers for a tile of rows.
//
// How rows are grouped into tiles never changes the order in which one row is summed: leaving rows out leaves the bits
// of the others alone.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "bfloat16.h"

namespace hmrnn {

constexpr int GATES = 4;  // rows of each unit in every weight, in the order of ops/types.py: f, i, o, g

template <class T>
constexpr int PANEL = GATES * LANES<T>;  // all gates of LANES units
static_assert(GATES == 4, "a panel is multiplied as four vectors: vectors_at_once, passes_of, multiply_tile, finish_row");

constexpr int CACHE_LINE = 64;  // bytes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors of a panel whose sums fit into registers for a tile of so many rows: a panel is passed over once or twice.
constexpr int vectors_at_once(int rows) { return 4 * rows <= TILE_SUMS ? 4 : 2; }
constexpr int passes_of(int rows) { return 4 / vectors_at_once(rows); }

// Rows of a product, at most, whose time is that of loading the weight from beyond the first cache: not worth widening.
constexpr int WAITING_ROWS = 3;

// Most rows that are one pass over a panel.
constexpr int ONE_PASS = TILE_SUMS / 4;

// Rows of the next tile where `left` of `all` are left, at least one. A full tile makes up for a second pass over the
// panel, but not where all rows still wait for memory or a few are left.
inline int rows_of_tile(int left, int all) {
  const bool two_passes = vectors_at_once(TILE_ROWS) < 4;
  if (two_passes && all > TILE_ROWS) return left == 4 ? 2 : std::min(left, TILE_ROWS);
  return int(ceil_div(left, ceil_div(left, std::min(TILE_ROWS, ONE_PASS))));
}

// The rows of one product: `a[i]` is read, `scale[i]` multiplies the result, which belongs to sample `sample[i]`.
template <class T, class S>
struct Rows {
  std::vector<const T*> a;
  std::vector<T> scale;
  std::vector<int> sample;

  void clear() {
    a.clear();
    scale.clear();
    sample.clear();
  }
  void add(const T* row, T factor, int b) {
    a.push_back(row);
    scale.push_back(factor);
    sample.push_back(b);
  }
  int size() const { return int(a.size()); }
  bool empty() const { return a.empty(); }

  // The rows as operands of products: as they are, or rounded. Called once all rows are there.
  void prepare(int64_t K) {
    tiles.assign(1, 0);
    passes = 0;
    while (tiles.back() < size()) {
      const int rows = rows_of_tile(size() - tiles.back(), size());
      passes += passes_of(rows);
      tiles.push_back(tiles.back() + rows);
    }
    if constexpr (std::is_same<S, T>::value) {
      operands = a;
    } else {
      const int64_t width = elements<S>(K) * FACTORS<S>;
      rounded.resize(size() * width);
      operands.resize(size());
      for (int i = 0; i < size(); ++i) {
        if constexpr (WIDENED<S>)
          make_factors(a[i], K, &rounded[i * width]);
        else
          make_pairs(a[i], K, &rounded[i * width]);
        operands[i] = &rounded[i * width];
      }
    }
  }

  std::vector<int> tiles;  // the first row of each, and the number of rows
  int passes = 0;          // of all tiles over a panel
  std::vector<const Factor<S>*> operands;
  std::vector<Factor<S>> rounded;
  std::vector<Vec<T>> partial;  // room for multiply_panel
};

// out (+)= scale * acc, for tiles of any size.
template <class T>
HMRNN_ONE_INSTANCE void finish_row(T* out, T scale, const Vec<T>* acc, bool add) {
  constexpr int W = LANES<T>;
  for (int v = 0; v < 4; ++v) store(out + v * W, add ? load(out + v * W) + scale * acc[v] : scale * acc[v]);
}

// The part of a weight that a pass fetches into the cache while it computes: for every k so many lines of the cache,
// `step` bytes after the last k's. `piece`: from this pass's part to the next one's.
struct Ahead {
  uintptr_t at;  // not a pointer, for it runs on beyond the weight
  int64_t step;
  int lines;
  int64_t piece;
};

// partial (M, 4 vectors) += a[k] w[k] for `count` elements of rows + k, of V vectors from w on.
template <class S, int M, int V, class T>
inline void multiply_vectors(const Factor<S>* const* rows, int64_t k, int64_t count, const S* w, int64_t ldw,
                             Ahead ahead, Vec<T>* partial) {
  constexpr int W = LANES<T>;
  const Factor<S>* a[M];
  Vec<T> acc[M][V];
  for (int i = 0; i < M; ++i) {
    a[i] = rows[i] + k * FACTORS<S>;
    for (int v = 0; v < V; ++v) acc[i][v] = partial[4 * i + v];
  }
  for (int64_t e = 0; e < count; ++e, w += ldw) {
    for (int i = 0; i < ahead.lines; ++i) __builtin_prefetch(reinterpret_cast<const void*>(ahead.at + i * CACHE_LINE));
    ahead.at += ahead.step;
    Vec<S> operand[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) operand[v] = load(w + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const auto x = element<S>(a[i], e);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[i][v] = multiply_add(acc[i][v], x, operand[v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) partial[4 * i + v] = acc[i][v];
}

template <class S, int M, int V, class T>
HMRNN_OWN_REGISTERS void multiply_some_vectors(const Factor<S>* const* rows, int64_t k, int64_t count, const S* w,
                                               int64_t ldw, Ahead ahead, Vec<T>* partial) {
  multiply_vectors<S, M, V, T>(rows, k, count, w, ldw, ahead, partial);
}

template <class S, int M, class T>
inline void multiply_tile(const Factor<S>* const* rows, int64_t k, int64_t count, const S* w, int64_t ldw, Ahead ahead,
                          Vec<T>* partial) {
  constexpr int V = vectors_at_once(M);
  if constexpr (V == 4)
    multiply_vectors<S, M, V, T>(rows, k, count, w, ldw, ahead, partial);
  else
    for (int v = 0; v < 4; v += V, ahead.at += ahead.piece)
      multiply_some_vectors<S, M, V, T>(rows, k, count, w + v * LANES<T>, ldw, ahead, partial + v);
}

template <class S, class T, int M = TILE_ROWS>
inline void multiply_tile(int rows_in_tile, const Factor<S>* const* rows, int64_t k, int64_t count, const S* w,
                          int64_t ldw, Ahead ahead, Vec<T>* partial) {
  if constexpr (M > 0) {
    if (rows_in_tile == M)
      multiply_tile<S, M, T>(rows, k, count, w, ldw, ahead, partial);
    else
      multiply_tile<S, T, M - 1>(rows_in_tile, rows, k, count, w, ldw, ahead, partial);
  }
}

// What pass `pass` of `passes` over a block of `count` elements fetches: of the next block a half or a quarter, or with a
// single pass what is 16 elements further on.
template <class S>
inline Ahead fetch_ahead(const S* w, int64_t ldw, int64_t count, int pass, int passes) {
  constexpr int64_t SIZE = sizeof(S), ELEMENT = 4 * VECTOR_BYTES;
  const auto at = reinterpret_cast<uintptr_t>(w);
  const int pieces = passes < 2 ? 1 : passes < 4 ? 2 : 4;
  const int64_t step = ELEMENT / pieces, piece = count * step;
  const int lines = int(ceil_div(step, CACHE_LINE));
  if (passes == 1) return {at + 16 * ldw * SIZE, ldw * SIZE, lines, 0};
  if (ldw != PANEL<S> || pass >= pieces) return {at, 0, 0, 0};
  return {at + count * ldw * SIZE + pass * piece, step, lines, piece};
}

// rows.partial += a w, as below. A block of w stays in the first cache while all tiles pass over it, and the next one is
// on its way.
template <class T, class S>
inline void multiply_blocks(Rows<T, S>& rows, int64_t E, const S* w, int64_t ldw) {
  const int tiles = int(rows.tiles.size()) - 1;
  const int64_t block = 16384 / (PANEL<T> * int64_t(sizeof(S)));
  for (int64_t k = 0; k < E; k += block) {
    const int64_t count = std::min(block, E - k);
    const S* from = w + k * ldw;
    for (int tile = 0, pass = 0; tile < tiles; ++tile) {
      const int first = rows.tiles[tile], size = rows.tiles[tile + 1] - first;
      multiply_tile<S, T>(size, &rows.operands[first], k, count, from, ldw,
                          fetch_ahead(from, ldw, count, pass, rows.passes), &rows.partial[4 * first]);
      pass += passes_of(size);
    }
  }
}

// The same of a packed w of pairs, of which each block is widened before the tiles pass over it.
template <class T, class S>
inline void multiply_widened(Rows<T, S>& rows, int64_t E, const S* w) {
  constexpr int64_t BLOCK = 8192 / (PANEL<T> * int64_t(sizeof(S)));
  alignas(CACHE_LINE) float wide[2 * BLOCK * PANEL<T>];
  for (int64_t k = 0; k < E; k += BLOCK) {
    const int64_t count = std::min(BLOCK, E - k);
    const S* from = w + k * PANEL<T>;
    widen(from, count, PANEL<T>, wide);
    const int64_t bytes = count * PANEL<T> * int64_t(sizeof(S));
    const int64_t step = bytes / (2 * count) / passes_of(rows.tiles[1]);  // by the first tile alone
    Ahead ahead{reinterpret_cast<uintptr_t>(from) + bytes, step, int(ceil_div(step, CACHE_LINE)), 2 * count * step};
    for (size_t tile = 0; tile + 1 < rows.tiles.size(); ++tile, ahead = {}) {
      const int first = rows.tiles[tile], last = rows.tiles[tile + 1];
      multiply_tile<float, T>(last - first, &rows.operands[first], 2 * k, 2 * count, wide, PANEL<T>, ahead,
                              &rows.partial[4 * first]);
    }
  }
}

// rows.partial += a w, as below.
template <class T, class S>
inline void multiply_all_blocks(Rows<T, S>& rows, int64_t E, const S* w, int64_t ldw) {
  if constexpr (WIDENED<S>)
    if (rows.size() > WAITING_ROWS) return multiply_widened(rows, E, w);
  multiply_blocks(rows, E, w, ldw);
}

// out[sample] (+)= scale * a w; a (E elements, see Rows::prepare), w (E, PANEL) with leading dimension ldw, PANEL for
// pairs, out (., PANEL).
template <class T, class S>
inline void multiply_panel(Rows<T, S>& rows, int64_t E, const S* w, int64_t ldw, bool add, T* out) {
  const int n = rows.size();
  rows.partial.assign(4 * n, Vec<T>{});
  // A weight that passes through the second cache leaves nothing there of what was written the last time.
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < 4; ++v) __builtin_prefetch(out + int64_t(rows.sample[i]) * PANEL<T> + v * LANES<T>, 1);
  multiply_all_blocks(rows, E, w, ldw);
  for (int i = 0; i < n; ++i)
    finish_row(out + int64_t(rows.sample[i]) * PANEL<T>, rows.scale[i], &rows.partial[4 * i], add);
}

// The same for the four gates of `width` units with the weight as it is, (4H+1, K): no packing, for few rows.
template <class T>
inline void multiply_gates(const Rows<T, T>& rows, int64_t K, const T* weight, int64_t H, int64_t unit, int width, bool add,
                           T* out) {
  constexpr int W = LANES<T>;
  for (int i = 0; i < rows.size(); ++i) {
    T* row = out + int64_t(rows.sample[i]) * PANEL<T>;
    for (int j = 0; j < width; ++j) {
      const T* w = weight + (unit + j) * K;
      const T* a = rows.a[i];
      Vec<T> acc[GATES][2] = {};
      int64_t k = 0;
      for (; k + 2 * W <= K; k += 2 * W) {
        const Vec<T> a0 = load(a + k), a1 = load(a + k + W);
#pragma GCC unroll 4
        for (int q = 0; q < GATES; ++q) {
          acc[q][0] += a0 * load(w + q * H * K + k);
          acc[q][1] += a1 * load(w + q * H * K + k + W);
        }
      }
      for (; k < K; k += W) {
        const int lanes = K - k < W ? int(K - k) : W;
        const Vec<T> a0 = load(a + k, lanes);
        for (int q = 0; q < GATES; ++q) acc[q][0] += a0 * load(w + q * H * K + k, lanes);
      }
      for (int q = 0; q < GATES; ++q) {
        const T value = rows.scale[i] * sum<T>(acc[q][0] + acc[q][1]);
        row[q * W + j] = add ? row[q * W + j] + value : value;
      }
    }
    for (int j = width; j < W; ++j)
      for (int q = 0; q < GATES; ++q) row[q * W + j] = 0;
  }
}

// `count` rows of K numbers side by side, for every element PANEL further on; what is missing to `width` rows is 0.
template <class T, class S>
inline void pack_side_by_side(const T* rows, int64_t count, int64_t width, int64_t K, S* packed) {
  const int64_t E = elements<S>(K);
  std::vector<S> operands;
  const S* from;
  if constexpr (std::is_same<S, T>::value) {
    from = rows;
  } else {
    operands.resize(count * E);
    for (int64_t r = 0; r < count; ++r) make_pairs(rows + r * K, K, &operands[r * E]);
    from = operands.data();
  }
  for (int64_t e = 0; e < E; ++e) {
    S* to = packed + e * PANEL<T>;
    for (int64_t r = 0; r < count; ++r) to[r] = from[r * E + e];
    std::fill(to + count, to + width, S{});
  }
}

// Panels of the forward product: panel p holds, for every element, the gates of LANES units. (P, E, GATES, LANES)
template <class T, class S>
inline void pack_gates(const T* weight, int64_t H, int64_t K, int64_t panel, S* packed) {
  constexpr int W = LANES<T>;
  const int64_t unit = panel * W;
  for (int q = 0; q < GATES; ++q)
    pack_side_by_side(weight + (q * H + unit) * K, std::min<int64_t>(W, H - unit), W, K,
                      packed + panel * elements<S>(K) * PANEL<T> + q * W);
}

// Panels of a matrix (rows, K): panel p holds, for every element, PANEL rows. (P, E, PANEL)
template <class T, class S>
inline void pack_rows(const T* matrix, int64_t rows, int64_t K, int64_t panel, S* packed) {
  const int64_t first = panel * PANEL<T>;
  pack_side_by_side(matrix + first * K, std::min<int64_t>(PANEL<T>, rows - first), PANEL<T>, K,
                    packed + panel * elements<S>(K) * PANEL<T>);
}

// Panels of the backward product: PANEL columns of the weight's 4H gate rows. (P, elements of 4H, PANEL)
template <class T, class S>
inline void pack_columns(const T* weight, int64_t H, int64_t K, int64_t panel, S* packed) {
  const int64_t column = panel * PANEL<T>, width = std::min<int64_t>(K - column, PANEL<T>);
  for (int64_t r = 0; r < GATES * H; r += Operand<S>::STEP, packed += PANEL<T>) {
    const T* row = weight + r * K + column;
    if constexpr (std::is_same<S, T>::value)
      std::memcpy(packed, row, width * sizeof(T));
    else
      make_pairs(row, row + K, width, width, packed);
    std::fill(packed + width, packed + PANEL<T>, S{});
  }
}

}  // namespace hmrnn
