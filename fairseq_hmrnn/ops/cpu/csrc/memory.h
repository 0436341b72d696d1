// Large buffers that are handed from call to call: touching half a gigabyte anew costs more than the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hmrnn {

// Under a sanitizer (scripts/sanitize.sh) a buffer has the size asked for and is freed at once, so that every access
// outside of it is seen, and begins as NaN, so that whatever reads it before it is written shows in the results.
#ifdef HMRNN_SANITIZE
constexpr bool SANITIZE = true;
#else
constexpr bool SANITIZE = false;
#endif

// Buffers not in use. What is kept never exceeds, by more than a quarter, what was in use at the worst moment since the
// last `clear`. The backward pass over many short calls leaves tens of thousands of them, so that none of it may walk
// through all.
class Pool {
 public:
  struct Block {
    void* data;
    size_t size;
  };

  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: a graph may outlive static destructors
    return *pool;
  }

  Block take(size_t needed) {
    const size_t size = round_up(needed);
    std::lock_guard<std::mutex> lock(mutex_);
    const auto best = by_size_.lower_bound(size);  // the smallest that is large enough, but not twice as large
    Block block{nullptr, size};
    if (best != by_size_.end() && best->first < 2 * size) {
      block = remove(best);
    } else {
      shrink(size);
      block.data = allocate(size);
      if (!block.data) {  // what is kept for later may be what is missing now
        free_all();
        block.data = allocate(size);
      }
      if (!block.data) throw std::bad_alloc();
    }
    in_use_ += block.size;
    most_in_use_ = std::max(most_in_use_, in_use_);
    if (SANITIZE) std::memset(block.data, 0xff, block.size);
    return block;
  }

  void give(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= block.size;
    if (SANITIZE) return std::free(block.data);
    try {
      free_.push_front(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.data);
    }
    try {
      by_size_.emplace_hint(by_size_.lower_bound(block.size), block.size, free_.begin());
    } catch (const std::bad_alloc&) {
      free_.pop_front();
      return std::free(block.data);
    }
    kept_ += block.size;
    shrink(0);
  }

  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    free_all();
    most_in_use_ = in_use_;
  }

  // Bytes in use, and bytes kept for later.
  std::pair<int64_t, int64_t> bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {int64_t(in_use_), int64_t(kept_)};
  }

 private:
  using BySize = std::multimap<size_t, std::list<Block>::iterator>;

  // Few distinct sizes, so that batches of slightly different length share buffers.
  static size_t round_up(size_t size) {
    if (SANITIZE) return size;
    size_t step = 4096;
    while (step * 8 < size) step *= 2;
    return (size + step - 1) / step * step;
  }

  static void* allocate(size_t size) {
    const size_t huge_page = size_t(2) << 20;
    void* data = nullptr;
    if (posix_memalign(&data, size >= huge_page ? huge_page : 64, size) != 0) return nullptr;
#ifdef __linux__
    if (size >= huge_page) madvise(data, size, MADV_HUGEPAGE);
#endif
    return data;
  }

  // Frees what was unused the longest, so that `more` bytes can come into use.
  void shrink(size_t more) {
    const size_t most = std::max(most_in_use_, in_use_ + more);
    while (!free_.empty() && in_use_ + more + kept_ > most + most / 4) {
      // The last in the list is also the last of its size.
      std::free(remove(std::prev(by_size_.upper_bound(free_.back().size))).data);
    }
  }

  Block remove(BySize::iterator which) {
    const Block block = *which->second;
    free_.erase(which->second);
    by_size_.erase(which);
    kept_ -= block.size;
    return block;
  }

  void free_all() {
    for (const Block& block : free_) std::free(block.data);
    free_.clear();
    by_size_.clear();
    kept_ = 0;
  }

  std::mutex mutex_;
  std::list<Block> free_;  // what was given back last comes first
  BySize by_size_;         // the same, and in the same order among those of one size
  size_t in_use_ = 0, kept_ = 0, most_in_use_ = 0;
};

// Uninitialised memory of the pool, given back at the end of its life.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : block_(size ? Pool::instance().take(size) : Pool::Block{nullptr, 0}) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (block_.data) Pool::instance().give(block_);
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(block_.data);
  }

 private:
  void swap(Buffer& other) { std::swap(block_, other.block_); }
  Pool::Block block_{nullptr, 0};
};

template <class T>
Buffer buffer_of(int64_t count) {
  return Buffer(sizeof(T) * size_t(count));
}

}  // namespace hmrnn
