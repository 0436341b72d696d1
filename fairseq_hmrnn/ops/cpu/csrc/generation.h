// Several steps of generation in one call: a symbol in, the cells, the output module, the next symbol. Nothing between
// two steps touches Python or torch, whose code and data would push the weights out of the cache.
#pragma once

#include "choice.h"
#include "output.h"

namespace hmrnn {

template <class T, class S>
struct GenerationCall {
  ForwardCall<T, S> forward;  // T: the steps; tokens and valid point to the two below
  OutputWeights<T, S> output;
  Choice choice;
  int64_t given = 0;          // steps whose symbols are given; those after them read what was chosen
  int64_t* tokens = nullptr;  // (T, B): read
  bool* valid = nullptr;      // (T, B): not padding
  int64_t* chosen = nullptr;  // (T - given + 1, B): behind the last given step and those after it; null: none
  int64_t pad = 0;
  T *terms = nullptr, *features = nullptr, *logits = nullptr;  // (B, L, E + L), (T, B, E), (T, B, V)
};

template <class T, class S>
class GenerationWorker {
 public:
  GenerationWorker(const GenerationCall<T, S>& call, int thread, int threads, Barrier& barrier)
      : call_(call), p_(call.forward.problem), cells_(call.forward, thread, threads, barrier),
        output_(call.output, call.forward, call.terms, thread, threads, barrier), choose_(call.choice),
        own_(p_.B, thread, threads), barrier_(barrier) {}

  void run() {
    const int64_t E = call_.output.E, V = call_.output.V;
    cells_.start();
    for (int64_t t = 0; t < p_.T_; ++t) {
      cells_.advance(t, t + 1);
      T* logits = call_.logits + t * p_.B * V;
      output_.step(cells_, call_.features + t * p_.B * E, logits);
      if (!call_.chosen || t + 1 < call_.given) continue;
      for (int64_t b = own_.first; b < own_.last; ++b) choose(t, b, logits + b * V);
      barrier_.wait();
    }
    cells_.finish();
  }

 private:
  void choose(int64_t t, int64_t b, const T* logits) {
    const int64_t at = (t + 1 - call_.given) * p_.B + b, next = (t + 1) * p_.B + b, V = call_.output.V;
    const int64_t symbol = choose_(logits, V, call_.choice.noise ? call_.choice.noise + at * V : nullptr);
    call_.chosen[at] = symbol;
    if (t + 1 == p_.T_) return;
    call_.tokens[next] = symbol;
    call_.valid[next] = symbol != call_.pad;
  }

  const GenerationCall<T, S>& call_;
  const Problem<T>& p_;
  ForwardWorker<T, S> cells_;
  OutputWorker<T, S> output_;
  Chooser choose_;
  const Share own_;
  Barrier& barrier_;
};

}  // namespace hmrnn
