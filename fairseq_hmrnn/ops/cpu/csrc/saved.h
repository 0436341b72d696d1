// What the forward pass saves for the backward pass: the tensors that autograd keeps, and the room they are written to.
#pragma once

#include <algorithm>

#include "problem.h"

namespace hmrnn {

constexpr int FROZEN = -1;

// One layer of what the backward pass needs. A slot holds one active step of one sample; a copy slot holds one run of
// COPY steps of one sample, in which everything is constant. All of it plain tensors, so that autograd can keep them in
// its own way; the forward pass writes them through SavedRoom.
struct SavedLayer {
  Tensor index;             // (4, T B) int32: of each step its slot, copy slot or FROZEN; then of each slot its step, its
                            // sample, and the slot of the sample's active step before, -1 for the start state
  Tensor gates;             // (slots, panels, SAVED, LANES)
  Tensor copy_terms;        // (copy slots, panels, COPY_TERMS, LANES)
  Tensor normalised[PRODUCTS];  // (slots, panels, GATES, LANES): products, mean 0 and variance 1
  Tensor statistics;        // (slots, PRODUCTS, 2): 1 / deviation, the normalised detector row
  Tensor copy_statistics;   // (copy slots, 2): the same of the recurrent product

  static constexpr int TENSORS = 5 + PRODUCTS;

  template <class Visit>
  void visit(Visit visit) {
    for (Tensor* tensor : {&index, &gates, &copy_terms, &normalised[0], &normalised[1], &normalised[2], &statistics,
                           &copy_statistics})
      visit(*tensor);
  }
  int64_t slots() const { return gates.size(0); }
  int64_t steps() const { return index.size(1); }
  const int* slot() const { return index.data_ptr<int>(); }
  const int* step() const { return slot() + steps(); }
  const int* sample() const { return slot() + 2 * steps(); }
  const int* previous() const { return slot() + 3 * steps(); }
};

struct Saved {
  std::vector<SavedLayer> layers;
  Tensor u;  // (T, L, B) argument of the hard sigmoid
  Tensor z;  // (T + 1, L, B) boundaries of the state, z[0] of the start
  // Layer 1's bottom-up product of every step, or of every symbol, where it was computed for all at once:
  Tensor projected, projected_rstd;  // (., 4H+1), normalised with layer norm, and then (.)

  static constexpr int OWN = 4;

  template <class Visit>
  void visit(Visit visit) {
    for (Tensor* tensor : {&u, &z, &projected, &projected_rstd}) visit(*tensor);
    for (SavedLayer& layer : layers) layer.visit(visit);
  }

  // As autograd keeps it, and back.
  std::vector<MaybeTensor> flat() {
    std::vector<MaybeTensor> tensors;
    visit([&](Tensor& tensor) { tensors.push_back(tensor.defined() ? MaybeTensor(tensor) : std::nullopt); });
    return tensors;
  }
  static Saved of(const std::vector<MaybeTensor>& tensors) {
    Saved saved;
    saved.layers.resize((tensors.size() - OWN) / SavedLayer::TENSORS);
    size_t i = 0;
    saved.visit([&](Tensor& tensor) {
      if (tensors.at(i)) tensor = *tensors[i];
      ++i;
    });
    return saved;
  }
};

// Where one layer writes what the backward pass needs, as in SavedLayer, and how much of it.
template <class T>
struct SavedRoom {
  int *slot = nullptr, *step = nullptr, *sample = nullptr, *previous = nullptr;
  T *gates = nullptr, *copy_terms = nullptr, *normalised[PRODUCTS] = {}, *statistics = nullptr;
  T* copy_statistics = nullptr;
  int64_t slots = 0, copies = 0;
};

// Room for what the backward pass needs: at most every other step starts a run of COPY steps, and the lowest layer never
// copies.
template <class T>
class SavedRooms {
 public:
  explicit SavedRooms(const Problem<T>& p)
      : p_(p), rows_(p.T_ * p.B), u_(take<T>(rows_ * p.L)), z_(take<T>((rows_ + p.B) * p.L)) {
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

  T* u() const { return u_->template as<T>(); }
  T* z() const { return z_->template as<T>(); }

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

}  // namespace hmrnn
