// The one way kernels use threads. `threads` comes from torch.get_num_threads(); 1 means no other thread is involved.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/simd.hpp"
#include "cpu/threads.hpp"

namespace pyrecon::PYRECON_ISA {

// In how many shares n items are split: at most one per thread, none with fewer than `grain` items, at least one.
PYRECON_INLINE int share_count(int threads, int64_t n, int64_t grain) {
  const int64_t shares = grain > 0 ? n / grain : n;
  return static_cast<int>(shares < 1 ? 1 : shares < threads ? shares : threads);
}

// body(share, begin, end) over [0, n) in `shares` contiguous parts, one thread each. For a fixed number of shares the
// parts are the same in every run, so sums kept per share and added in order are too. With n = 0 share 0 runs, empty.
template <class Body>
PYRECON_INLINE void parallel_shares(int shares, int64_t n, const Body& body) {
  if (shares <= 1) return body(0, int64_t{0}, n);
  const auto share = [&](int s) { body(s, n * s / shares, n * (s + 1) / shares); };
  run_shares(shares, [](const void* f, int s) { (*static_cast<const decltype(share)*>(f))(s); }, &share);
}

// body(begin, end) over [0, n) in contiguous shares, one per thread; no thread gets fewer than `grain` items. With n =
// 0 nothing runs: a body may divide by sizes that are zero then.
template <class Body>
PYRECON_INLINE void parallel_for(int threads, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  parallel_shares(share_count(threads, n, grain), n, [&](int, int64_t begin, int64_t end) { body(begin, end); });
}

// Uninitialised working memory of one call, on a cache line. Made outside parallel regions: it may throw.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 64) / 64 * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace pyrecon::PYRECON_ISA
