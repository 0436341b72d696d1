// The backward pass, by hand (ops/README.md derives it): every thread owns some units of every layer. A cell has two
// halves with a barrier between: gradients of the gates, and their products with the weights. What reaches a boundary is
// summed over the threads at the barrier of the sample's next cell.
//
// As in the forward pass samples do not wait for each other, but at active cells, which need products: a round takes all
// samples through their COPY cells, one each, or the samples of one layer through an active one.
#pragma once

#include "problem.h"
#include "team.h"

namespace hmrnn {

template <class T>
struct BackwardCall {
  Problem<T> problem;
  const Saved* saved = nullptr;
  std::vector<const T*> hidden;       // (T, B, H) per layer
  std::vector<const T*> grad_hidden;  // the same, or null
  const T *grad_boundaries = nullptr, *grad_probs = nullptr;  // (T, B, L) or null
  std::vector<T*> dh, dc;             // (B, H): in, of the final state; out, of the start state
  T* dz = nullptr;                    // (B, L), likewise
  // Per layer and product. products: (slots, 4H) gradient of the product's gate rows; without layer norm there is one
  // for all three, before the gates z_prev and z_below. rows: (columns) gradient of the weight's detector row.
  std::vector<T*> products, rows, gains;
  std::vector<T*> biases;             // (4H+1)
  T* x_detector = nullptr;            // (T, B): factor on layer 1's detector row in the gradient of x
  std::vector<const T*> weights;      // per layer and product: panels by pack_columns, or null
  std::vector<T*> to_pack;            // room for them (all panels or, with `pack_last_only`, the last one)
  bool pack_last_only = false;
  T* boundary_parts = nullptr;        // (3, threads, B, 2)
  T* norm_parts = nullptr;            // (threads, B, 2 * PRODUCTS)
  // Per layer: the top-down product, normalised with layer norm, of every h_above that some closed gate asks for,
  // (., 4H+1), and which of its rows each step asks for, (T, B), -1 for none.
  std::vector<const T*> closed;
  std::vector<std::vector<int>> closed_row;

  bool inside(T u) const {
    const T p = (T(problem.options.slope) * u + 1) / 2;
    return p >= 0 && p <= 1;
  }
  T u(int64_t t, int64_t l, int64_t b) const {
    return saved->u.template as<T>()[(t * problem.L + l) * problem.B + b];
  }
  // Whether anything depends on the gradient of z at (t, l), t = -1 being the start state.
  bool wants_boundary_gradient(int64_t t, int64_t l, int64_t b) const {
    if (t < 0 || !problem.is_valid(t, b)) return true;
    return problem.has_detector(l) && (problem.options.nested || inside(u(t, l, b)));
  }
};

template <class T>
class BackwardWorker {
  static constexpr int W = LANES<T>;
  static constexpr int64_t P = PANEL<T>;
  enum Kind { FROZEN_STEP, COPY, ACTIVE };

 public:
  BackwardWorker(const BackwardCall<T>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.problem), B_(p_.B), L_(p_.L), kappa_(T(p_.options.detector_grad_scale)),
        z_(call.saved->z.template as<T>()), thread_(thread), threads_(threads), barrier_(barrier), carry_(L_ * B_),
        from_above_(B_, 0), zp_extra_(B_, 0), zb_extra_(B_, 0), kind_(B_), slot_(B_), zp_(B_), zb_(B_), du_(B_),
        t_(B_, p_.T_ - 1), layer_(B_, L_ - 1), cells_(B_, 0), scratch_(buffer_of<T>(B_ * P)) {
    for (auto& d : detector_) d.resize(B_);
    int64_t most = 0;
    for (const auto& layer : p_.layers) most = std::max(most, 4 * layer.size);
    zeros_.assign(most, 0);
  }

  void run() {
    for (int64_t l = 0; l < L_; ++l)
      for (int64_t b = 0; b < B_; ++b) carry_[l * B_ + b] = call_.dz[b * L_ + l];
    pack();
    for (int b = 0; b < B_; ++b) arrive(b);
    while (gather()) round();
    barrier_.wait();
    for (int b = 0; b < B_; ++b) collect_boundary_gradients(b);
    if (thread_ == 0)
      for (int64_t l = 0; l < L_; ++l)
        for (int64_t b = 0; b < B_; ++b) call_.dz[b * L_ + l] = carry_[l * B_ + b];
  }

 private:
  struct Range {
    int64_t first, last;
  };

  Share panels(int64_t units) const { return Share(ceil_div(units, P), thread_, threads_); }
  Range own(int64_t units) const {
    const Share share = panels(units);
    return {std::min(share.first * P, units), std::min(share.last * P, units)};
  }

  void pack() {
    for (int64_t l = 0; l < L_; ++l)
      for (int product = 0; product < PRODUCTS; ++product) {
        T* room = call_.to_pack[l * PRODUCTS + product];
        if (!room) continue;
        const auto& layer = p_.layers[l];
        const int64_t K = layer.columns[product], size = 4 * layer.size * P, count = ceil_div(K, P);
        const Share share = panels(K);
        for (int64_t panel = share.first; panel < share.last; ++panel)
          if (!call_.pack_last_only)
            pack_columns(layer.weight[product], layer.size, K, panel, room + panel * size);
          else if (panel == count - 1)
            pack_columns(layer.weight[product], layer.size, K, panel, room);
      }
  }

  bool finished(int b) const { return t_[b] < 0; }

  // What a sample does in the cell it has come to.
  void arrive(int b) {
    const int64_t t = t_[b], l = layer_[b];
    if (finished(b)) return;
    zp_[b] = z_[(t * L_ + l) * B_ + b];
    zb_[b] = l ? z_[((t + 1) * L_ + l - 1) * B_ + b] : T(1);
    slot_[b] = call_.saved->layers[l].slot[t * B_ + b];
    const bool copy = zp_[b] == 0 && zb_[b] == 0 && !p_.copy_has_gate_gradients();
    kind_[b] = !p_.is_valid(t, b) ? FROZEN_STEP : copy ? COPY : ACTIVE;
  }

  // The members of the next round: samples in any cell that is not active, else those of the layer where most wait, the
  // highest of several. False when all are done.
  bool gather() {
    members_.clear();
    waiting_.assign(L_, 0);
    for (int b = 0; b < B_; ++b) {
      if (finished(b)) continue;
      ++waiting_[layer_[b]];
      if (kind_[b] != ACTIVE) members_.push_back(b);
    }
    if (!members_.empty()) return true;
    const int64_t l = L_ - 1 - (std::max_element(waiting_.rbegin(), waiting_.rend()) - waiting_.rbegin());
    for (int b = 0; b < B_; ++b)
      if (!finished(b) && layer_[b] == l) members_.push_back(b);
    return !members_.empty();
  }

  void round() {
    const bool active = kind_[members_[0]] == ACTIVE;
    for (const int b : members_) gate_gradients(b);
    barrier_.wait();
    for (const int b : members_) {
      if (cells_[b] > 0) collect_boundary_gradients(b);
      detector_gradients(b);
    }
    if (p_.layer_norm && active) {
      for (const int b : members_) norm_gradients(b);
      barrier_.wait();
    }
    for (int64_t l = 0; l < L_; ++l) {
      here_.clear();
      for (const int b : members_)
        if (layer_[b] == l) here_.push_back(b);
      for (int product = 0; product < PRODUCTS; ++product) {
        if (here_.empty() || !p_.layers[l].weight[product]) continue;
        detector_row_gradients(l, product);
        if (product != BOTTOM_UP || l > 0) input_gradients(l, product);
      }
    }
    for (const int b : members_) {
      ++cells_[b];
      if (layer_[b]-- == 0) {
        layer_[b] = L_ - 1;
        --t_[b];
      }
      arrive(b);
    }
  }

  // What the sample's cell `ago` cells before this one sends to z_prev and z_below, by thread.
  T* boundary_part(int ago, int thread, int64_t b) const {
    return call_.boundary_parts + ((((cells_[b] - ago) % 3) * threads_ + thread) * B_ + b) * 2;
  }
  T* norm_part(int thread, int64_t b) const { return call_.norm_parts + (thread * B_ + b) * 2 * PRODUCTS; }

  const T* h_prev(int64_t t, int64_t l, int64_t b) const {
    const int64_t H = p_.layers[l].size;
    return t ? call_.hidden[l] + ((t - 1) * B_ + b) * H : p_.h0[l] + b * H;
  }
  // What a product reads: h' (not yet masked), h_above or h_below.
  const T* input(int64_t t, int64_t l, int64_t b, int product) const {
    if (product == RECURRENT) return h_prev(t, l, b);
    if (product == TOP_DOWN) return h_prev(t, l + 1, b);
    if (l == 0) return p_.x + (t * B_ + b) * p_.layers[0].columns[BOTTOM_UP];
    return call_.hidden[l - 1] + (t * B_ + b) * p_.layers[l - 1].size;
  }
  T* product_gradient(int64_t l, int product, int64_t slot) const {
    return call_.products[l * PRODUCTS + product] + slot * 4 * p_.layers[l].size;
  }
  const T* statistics(int64_t l, int64_t slot, int product) const {
    return call_.saved->layers[l].statistics.template as<T>() + (slot * PRODUCTS + product) * 2;
  }

  // First half: for the own units of a sample.
  void gate_gradients(int64_t b) {
    const int64_t l = layer_[b], H = p_.layers[l].size;
    const Range units = own(H);
    T* parts = boundary_part(0, thread_, b);
    parts[0] = parts[1] = 0;
    if (const T* grad = call_.grad_hidden[l])
      add_scaled(call_.dh[l] + b * H + units.first, T(1), grad + (t_[b] * B_ + b) * H + units.first,
                 units.last - units.first);
    if (kind_[b] == COPY) copy_gradients(l, b, units, parts);
    if (kind_[b] == ACTIVE) active_gradients(t_[b], l, b, units, parts);
  }

  // On a COPY step h and c pass, and so do their gradients; the boundaries feel the branches not taken.
  void copy_gradients(int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const T* coefficients =
        call_.saved->layers[l].coefficients.template as<T>() + int64_t(slot_[b]) * layer.panels() * 3 * W;
    Vec<T> zp{}, zb{};
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, layer.size - j));
      const T* at = coefficients + j * 3;
      const Vec<T> dh = load(call_.dh[l] + b * layer.size + j, lanes);
      const Vec<T> dc = load(call_.dc[l] + b * layer.size + j, lanes);
      const Vec<T> other = dh * load(at + 2 * W);
      zp += dc * load(at) - other;
      zb += dc * load(at + W) - other;
    }
    parts[0] += sum<T>(zp);
    parts[1] += sum<T>(zb);
  }

  void active_gradients(int64_t t, int64_t l, int64_t b, Range units, T* parts) {
    const auto& layer = p_.layers[l];
    const SavedLayer& saved = call_.saved->layers[l];
    const int64_t H = layer.size, slot = slot_[b], before = saved.previous[slot];
    const T* gates = saved.gates.template as<T>();
    const T zp = zp_[b], zb = zb_[b], open = (1 - zp) * zb, copy = (1 - zp) * (1 - zb);
    const T* h_before = h_prev(t, l, b);
    T* ds_row = product_gradient(l, RECURRENT, slot);
    const T* closed = closed_term(t, l, b);
    Vec<T> zp_sum{}, zb_sum{};
    norm_sums_ = {};
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      const T* at = gates + (slot * layer.panels() + j / W) * 5 * W;
      const Vec<T> f = load(at), in = load(at + W), o = load(at + 2 * W), g = load(at + 3 * W);
      const Vec<T> tanh_c = tanh<T>(load(at + 4 * W));
      const Vec<T> c_prev = before < 0 ? load(p_.c0[l] + b * H + j, lanes)
                                       : load(gates + (before * layer.panels() + j / W) * 5 * W + 4 * W);
      T *dh_at = call_.dh[l] + b * H + j, *dc_at = call_.dc[l] + b * H + j;
      const Vec<T> dh = load(dh_at, lanes), ig = in * g;
      const Vec<T> dh_new = (1 - copy) * dh;
      const Vec<T> dc = load(dc_at, lanes) + dh_new * o * (T(1) - tanh_c * tanh_c);
      const Vec<T> dig = (open + zp) * dc;
      const Vec<T> ds[4] = {open * dc * c_prev * f * (T(1) - f), dig * g * in * (T(1) - in),
                            dh_new * tanh_c * o * (T(1) - o), dig * in * (T(1) - g * g)};
      const Vec<T> other = dh * (load(h_before + j, lanes) - o * tanh_c);
      zp_sum += (1 - zb) * (dc * (ig - c_prev) - other) - zb * dc * f * c_prev;
      zb_sum += (1 - zp) * (dc * (ig + (f - T(1)) * c_prev) - other);
      store(dh_at, copy * dh, lanes);
      store(dc_at, dc * (open * f + copy), lanes);
      T* bias = call_.biases[l] + j;
      for (int q = 0; q < 4; ++q) {
        store(ds_row + q * H + j, ds[q], lanes);
        store(bias + q * H, load(bias + q * H, lanes) + ds[q], lanes);
        if (!closed) continue;
        const Vec<T> sent = ds[q] * load(closed + q * H + j, lanes);
        zp_sum += p_.layer_norm ? sent * load(layer.gain[TOP_DOWN] + q * H + j, lanes) : sent;
      }
      if (p_.layer_norm) gain_gradients(l, b, j, lanes, ds);
    }
    parts[0] += sum<T>(zp_sum);
    parts[1] += sum<T>(zb_sum);
    if (!p_.layer_norm) return;
    T* norm = norm_part(thread_, b);
    for (int i = 0; i < 2 * PRODUCTS; ++i) norm[i] = sum<T>(norm_sums_.of[i]);
    parts[0] += norm[2 * TOP_DOWN + 1];
    parts[1] += norm[2 * BOTTOM_UP + 1];
  }

  // Layer norm: gradients of the gains, and the two sums over rows that the normalisation sends back.
  void gain_gradients(int64_t l, int64_t b, int64_t j, int lanes, const Vec<T> (&ds)[4]) {
    const auto& layer = p_.layers[l];
    const T factor[PRODUCTS] = {1, zp_[b], zb_[b]};
    for (int product = 0; product < PRODUCTS; ++product) {
      if (!layer.weight[product] || (product == TOP_DOWN && zp_[b] == 0)) continue;
      const T* n_at = call_.saved->layers[l].normalised[product].template as<T>() +
                      (int64_t(slot_[b]) * layer.panels() + j / W) * P;
      T* grad = call_.gains[l * PRODUCTS + product] + j;
      for (int q = 0; q < 4; ++q) {
        const int64_t r = q * layer.size;
        const Vec<T> n = load(n_at + q * W), gd = load(layer.gain[product] + r + j, lanes) * ds[q];
        norm_sums_.of[2 * product] += gd;
        norm_sums_.of[2 * product + 1] += gd * n;
        store(grad + r, load(grad + r, lanes) + factor[product] * ds[q] * n, lanes);
      }
    }
  }

  // Sums over the threads what the sample's cell before this one sent to z_prev and z_below.
  void collect_boundary_gradients(int64_t b) {
    const bool top = layer_[b] == L_ - 1;
    const int64_t l = top ? 0 : layer_[b] + 1;
    if (!p_.is_valid(top ? t_[b] + 1 : t_[b], b)) return;
    T zp = zp_extra_[b], zb = zb_extra_[b];
    for (int thread = 0; thread < threads_; ++thread) {
      const T* parts = boundary_part(1, thread, b);
      zp += parts[0];
      zb += parts[1];
    }
    carry_[l * B_ + b] = zp;
    from_above_[b] = zb;
  }

  // The closed top-down term that the gradient of z_prev asks for, or null.
  const T* closed_term(int64_t t, int64_t l, int64_t b) const {
    if (!call_.closed[l]) return nullptr;
    const int row = call_.closed_row[l][t * B_ + b];
    return row < 0 ? nullptr : call_.closed[l] + row * p_.layers[l].rows();
  }

  // Straight-through: du, and what the detector sends to the boundaries it reads other than through the products.
  void detector_gradients(int64_t b) {
    const int64_t t = t_[b], l = layer_[b];
    const auto& layer = p_.layers[l];
    const int64_t row = 4 * layer.size, at = (t * B_ + b) * L_ + l;
    du_[b] = zp_extra_[b] = zb_extra_[b] = 0;
    for (auto& d : detector_) d[b] = 0;
    if (kind_[b] == FROZEN_STEP || !p_.has_detector(l)) return;
    T dz = carry_[l * B_ + b] + (l + 1 < L_ ? from_above_[b] : T(0));
    if (call_.grad_boundaries) dz += call_.grad_boundaries[at];
    T dz_tilde = call_.grad_probs ? call_.grad_probs[at] : T(0);
    const T u = call_.u(t, l, b);
    if (p_.options.nested) {
      const T z_tilde = p_.probability(u);
      zb_extra_[b] = dz * p_.decide(z_tilde, t, b, l) + dz_tilde * z_tilde;
      dz *= zb_[b];
      dz_tilde *= zb_[b];
    }
    const T du = du_[b] = call_.inside(u) ? T(p_.options.slope) / 2 * (dz + dz_tilde) : T(0);
    if (thread_ == 0) call_.biases[l][row] += du;
    const T* closed = closed_term(t, l, b);
    if (!p_.layer_norm) {
      detector_[RECURRENT][b] = du;
      detector_[TOP_DOWN][b] = zp_[b] * du;
      detector_[BOTTOM_UP][b] = zb_[b] * du;
      if (closed) zp_extra_[b] += kappa_ * du * closed[row];
    } else if (kind_[b] == ACTIVE) {
      if (closed)
        zp_extra_[b] += kappa_ * du * layer.gain[TOP_DOWN][row] * closed[row];
      else if (zp_[b] != 0 && layer.weight[TOP_DOWN])
        zp_extra_[b] += kappa_ * du * layer.gain[TOP_DOWN][row] * statistics(l, slot_[b], TOP_DOWN)[1];
      zb_extra_[b] += kappa_ * du * layer.gain[BOTTOM_UP][row] * statistics(l, slot_[b], BOTTOM_UP)[1];
    } else {
      const T* copy = call_.saved->layers[l].copy_statistics.template as<T>() + 2 * int64_t(slot_[b]);
      detector_[RECURRENT][b] = copy[0] * layer.gain[RECURRENT][row] * du;
      if (thread_ == 0) call_.gains[l * PRODUCTS + RECURRENT][row] += du * copy[1];
    }
  }

  // Layer norm: from the gradient of s to that of each product, own units, in place for the recurrent one.
  void norm_gradients(int64_t b) {
    const int64_t l = layer_[b];
    const T factor[PRODUCTS] = {1, zp_[b], zb_[b]};
    for (const int product : {TOP_DOWN, BOTTOM_UP, RECURRENT})
      if (p_.layers[l].weight[product] && factor[product] != 0) norm_gradient(l, b, product, factor[product]);
  }

  void norm_gradient(int64_t l, int64_t b, int product, T factor) {
    const auto& layer = p_.layers[l];
    const int64_t H = layer.size, slot = slot_[b];
    const T rstd = statistics(l, slot, product)[0], n_detector = statistics(l, slot, product)[1];
    const T gd_detector = layer.gain[product][4 * H] * factor * du_[b];
    T total = 0, along = 0;
    for (int thread = 0; thread < threads_; ++thread) {
      total += norm_part(thread, b)[2 * product];
      along += norm_part(thread, b)[2 * product + 1];
    }
    const T mean = (factor * total + kappa_ * gd_detector) / layer.rows();
    const T slope = (factor * along + kappa_ * gd_detector * n_detector) / layer.rows();
    detector_[product][b] = rstd * (gd_detector - mean - n_detector * slope);
    if (thread_ == 0) call_.gains[l * PRODUCTS + product][4 * H] += factor * du_[b] * n_detector;
    const T* n_row = call_.saved->layers[l].normalised[product].template as<T>() + slot * layer.panels() * P;
    const T* ds = product_gradient(l, RECURRENT, slot);
    T* dp = product_gradient(l, product, slot);
    const Range units = own(H);
    for (int64_t j = units.first; j < units.last; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      for (int q = 0; q < 4; ++q) {
        const int64_t r = q * H + j;
        const Vec<T> n = load(n_row + j / W * P + q * W);
        const Vec<T> gd = factor * load(layer.gain[product] + r, lanes) * load(ds + r, lanes);
        store(dp + r, rstd * (gd - mean - n * slope), lanes);
      }
    }
  }

  // The detector's row of the weights gets its whole gradient, at every step.
  void detector_row_gradients(int64_t l, int product) {
    const auto& layer = p_.layers[l];
    const Range columns = own(layer.columns[product]);
    const int64_t count = columns.last - columns.first;
    T* row = call_.rows[l * PRODUCTS + product] + columns.first;
    for (const int b : here_) {
      const T d = detector_[product][b];
      if (l == 0 && product == BOTTOM_UP && thread_ == 0) call_.x_detector[t_[b] * B_ + b] = kappa_ * d;
      if (d == 0) continue;
      const T* a = input(t_[b], l, b, product) + columns.first;
      const T* mask = product == RECURRENT ? p_.mask[l] : nullptr;
      if (!mask)
        add_scaled(row, d, a, count);
      else
        for (int64_t k = 0; k < count; ++k) row[k] += d * a[k] * mask[b * layer.size + columns.first + k];
    }
  }

  // Second half: what one product sends to its input, for the own columns, and with it to the boundary that gates it.
  void input_gradients(int64_t l, int product) {
    const auto& layer = p_.layers[l];
    const bool dense = !p_.options.skip;
    rows_.clear();
    alone_.clear();
    for (const int b : here_) {
      if (kind_[b] == FROZEN_STEP) continue;
      const T gate = product == TOP_DOWN ? zp_[b] : product == BOTTOM_UP ? zb_[b] : T(1);
      const bool through_detector = kappa_ * du_[b] != 0 && !p_.layer_norm;
      if (kind_[b] == COPY) {
        if (dense)
          rows_.add(zeros_.data(), 1, b);
        else if (through_detector)
          alone_.push_back(b);
        continue;
      }
      const bool wanted = product == BOTTOM_UP && call_.wants_boundary_gradient(t_[b], l - 1, b);
      if (gate != 0 || (!p_.layer_norm && (wanted || dense)))
        rows_.add(product_gradient(l, p_.layer_norm ? product : int(RECURRENT), slot_[b]), 1, b);
    }
    if (rows_.empty() && alone_.empty()) return;
    const int64_t K = layer.columns[product], size = 4 * layer.size;
    const Share share = panels(K);
    T* out = scratch_.template as<T>();
    for (int64_t panel = share.first; panel < share.last; ++panel) {
      const bool last = panel == ceil_div(K, P) - 1;
      const T* packed = call_.weights[l * PRODUCTS + product];
      if (call_.pack_last_only && !(last && packed))
        multiply_panel<T>(rows_, size, layer.weight[product] + panel * P, K, false, out);
      else
        multiply_panel<T>(rows_, size, packed + (call_.pack_last_only ? 0 : panel * size * P), P, false, out);
      for (const int b : rows_.sample) send(l, product, b, panel, out + b * P);
      for (const int b : alone_) {
        std::fill_n(out + b * P, P, T(0));
        send(l, product, b, panel, out + b * P);
      }
    }
  }

  // v: one panel of (weight, gate rows)^T times the product's gradient.
  void send(int64_t l, int product, int b, int64_t panel, const T* v) {
    const auto& layer = p_.layers[l];
    const int64_t K = layer.columns[product];
    const T* detector = layer.weight[product] + 4 * layer.size * K;
    // Without layer norm v is the gradient before the gate, which is applied here.
    const T gate = product == RECURRENT || p_.layer_norm ? T(1) : product == TOP_DOWN ? zp_[b] : zb_[b];
    const T through = kappa_ * (p_.layer_norm ? detector_[product][b] : du_[b]);
    const int64_t target = product == RECURRENT ? l : product == TOP_DOWN ? l + 1 : l - 1;
    const T* mask = product == RECURRENT ? p_.mask[l] : nullptr;
    const T* a = input(t_[b], l, b, product);
    Vec<T> boundary{};
    for (int64_t k = panel * P, i = 0; i < P && k < K; i += W, k += W) {
      const int lanes = int(std::min<int64_t>(W, K - k));
      const Vec<T> value = load(v + i) + through * load(detector + k, lanes);
      T* to = call_.dh[target] + b * K + k;
      boundary += value * load(a + k, lanes);
      const Vec<T> sent = mask ? value * load(mask + b * K + k, lanes) : gate * value;
      store(to, load(to, lanes) + sent, lanes);
    }
    if (product == RECURRENT || p_.layer_norm) return;
    if (product == TOP_DOWN && gate == 0 && kind_[b] == ACTIVE) return;  // closed_term has spoken for it
    boundary_part(0, thread_, b)[product == TOP_DOWN ? 0 : 1] += sum<T>(boundary);
  }

  const BackwardCall<T>& call_;
  const Problem<T>& p_;
  const int64_t B_, L_;
  const T kappa_;
  const T* z_;
  const int thread_, threads_;
  Barrier& barrier_;

  std::vector<T> carry_;                           // (L, B): gradient of z of the state
  std::vector<T> from_above_, zp_extra_, zb_extra_;  // (B), as all below: gradients of boundaries
  std::vector<Kind> kind_;
  std::vector<int> slot_;
  std::vector<T> zp_, zb_, du_;
  std::vector<int64_t> t_, layer_, cells_;  // the cell that each sample has come to, and how many it has been through
  std::vector<int> members_, here_, waiting_;
  std::vector<T> detector_[PRODUCTS];  // gradient of the detector row of each product
  std::vector<T> zeros_;
  std::vector<int> alone_;
  Rows<T> rows_;
  Buffer scratch_;
  struct {
    Vec<T> of[2 * PRODUCTS];
  } norm_sums_ = {};
};

}  // namespace hmrnn
