// Which symbol comes next, given logits and noise: what inference/sampler.py does in torch, for one sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace hmrnn {

struct Choice {
  double temperature = 1;
  int64_t top_k = 0;  // 0: all
  double top_p = 1;   // 1: all
  const float* noise = nullptr;  // (choices, B, V) of the Gumbel distribution; null: the most probable symbol
  const bool* never = nullptr;   // (V): symbols that are never chosen
};

class Chooser {
 public:
  explicit Chooser(const Choice& choice) : choice_(choice) {}

  // The largest of logits / temperature + noise among the symbols that the limits leave. noise: (V), of this step. NaN,
  // which has no place in an order, is never chosen; the caller says that it is there.
  template <class T>
  int64_t operator()(const T* logits, int64_t V, const float* noise) {
    scaled_.resize(V);
    for (int64_t v = 0; v < V; ++v)
      scaled_[v] = choice_.never[v] || std::isnan(logits[v]) ? -std::numeric_limits<float>::infinity()
                                                             : float(logits[v]) / float(choice_.temperature);
    if (noise && (choice_.top_k > 0 || choice_.top_p < 1)) return best_of_limited(noise);
    if (noise)
      for (int64_t v = 0; v < V; ++v) scaled_[v] += noise[v];
    return std::max_element(scaled_.begin(), scaled_.end()) - scaled_.begin();
  }

 private:
  int64_t best_of_limited(const float* noise) {
    const int64_t V = int64_t(scaled_.size());
    int64_t kept = choice_.top_k > 0 ? std::min(choice_.top_k, V) : V;
    order_.resize(V);
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(),
                      [&](int64_t a, int64_t b) { return scaled_[a] > scaled_[b]; });
    if (choice_.top_p < 1) kept = smallest_set(kept);
    return *std::max_element(order_.begin(), order_.begin() + kept, [&](int64_t a, int64_t b) {
      return scaled_[a] + noise[a] < scaled_[b] + noise[b];
    });
  }

  // How many of the first `count` in order_ it takes for a probability of top_p among them.
  int64_t smallest_set(int64_t count) const {
    const float most = scaled_[order_[0]];
    double total = 0, sum = 0;
    for (int64_t i = 0; i < count; ++i) total += std::exp(scaled_[order_[i]] - most);
    for (int64_t i = 0; i < count; ++i) {
      if (sum >= choice_.top_p * total) return i;
      sum += std::exp(scaled_[order_[i]] - most);
    }
    return count;
  }

  const Choice& choice_;
  std::vector<float> scaled_;
  std::vector<int64_t> order_;
};

}  // namespace hmrnn
