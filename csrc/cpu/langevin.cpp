#include "cpu/langevin.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

// Loops over one block of 64 numbers, free of dependences: compilers turn them into vectors without a remainder.
#define PYRECON_INDEPENDENT _Pragma("GCC ivdep")

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t block = 64;  // numbers that 16 counters of Philox make: 4 words each, word k of all after word k - 1
constexpr int counters = 16;
constexpr int64_t grain = 16384;  // numbers: 15 us of work, three times what it takes to start a thread

// --- Philox 4x32-10 ----------------------------------------------------------------------------------------------
// Salmon et al. 2011. Words live in the low halves of 64-bit lanes, where the processor has its 32 x 32 -> 64 bit
// product; what piles up in the high halves is never read. That is 8 instructions a round for 4 words x lanes, against
// 9 with packed words, whose products must be taken apart and blended.
constexpr uint32_t multiplier[2] = {0xD2511F53, 0xCD9E8D57};
constexpr uint32_t weyl[2] = {0x9E3779B9, 0xBB67AE85};

PYRECON_INLINE uint64_t low(uint64_t v) { return v & 0xffffffff; }
PYRECON_INLINE Words splat_word(uint64_t v) { return v - Words{}; }

// Even lanes of a and odd lanes of b: the low halves of 64-bit lanes with the high halves of others.
struct PickBoth {
  static constexpr int at(int i, int n) { return i % 2 ? n + i : i; }
};

// What all blocks of a step share.
struct Stream {
  uint64_t seed, counter;
  Words key[10][2];  // of each round, in every lane: made for each block they cost a tenth of the step

  Stream(uint64_t seed_, uint64_t counter_) : seed(seed_), counter(counter_) {
    for (uint32_t round = 0; round < 10; ++round)
      for (int k = 0; k < 2; ++k) key[round][k] = splat_word(static_cast<uint32_t>(seed >> 32 * k) + round * weyl[k]);
  }

  // The 64 words of one block: out[16 * k + i] is word k of counter 16 * index + i.
  PYRECON_MEMBER void words(uint64_t index, uint32_t* out) const {
    constexpr int n = lanes<float>;
    const uint64_t first = index * counters;
    // Three words of the first round are equal in all lanes, and two of the second.
    const uint64_t a = multiplier[1] * low(counter);
    const uint64_t b = multiplier[0] * ((a >> 32) ^ (first >> 32) ^ low(seed));
    const Words a0 = splat_word(low(a)) ^ key[1][0], a2 = splat_word(counter >> 32) ^ key[0][1];
    const Words b2 = splat_word(b >> 32) ^ key[1][1], b3 = splat_word(low(b));
    // Each is a chain of 10 products that wait for one another: two at a time leave half of the processor idle.
    constexpr int chains = n == 16 ? 2 : 4;
    for (int start = 0; start < counters; start += n * chains / 2) {
      Words w[chains][4];  // of even and odd counters in turn
      for (int j = 0; j < chains; ++j) {
        Words lane;
        for (int i = 0; i < n / 2; ++i) lane[i] = j / 2 * n + 2 * i + j % 2;
        const Words p = product(splat_word(first + start) + lane, multiplier[0]);
        const Words q = product((p >> 32) ^ a2, multiplier[1]);
        w[j][0] = (q >> 32) ^ a0, w[j][1] = q, w[j][2] = p ^ b2, w[j][3] = b3;
      }
      for (int round = 2; round < 10; ++round)
        for (auto& c : w) {
          const Words p = product(c[0], multiplier[0]), q = product(c[2], multiplier[1]);
          c[0] = (q >> 32) ^ c[1] ^ key[round][0], c[1] = q;
          c[2] = (p >> 32) ^ c[3] ^ key[round][1], c[3] = p;
        }
      for (int j = 0; j < chains; j += 2)
        for (int k = 0; k < 4; ++k) {
          const auto words = pick<PickBoth>((VecOf<float>::mask)w[j][k], (VecOf<float>::mask)(w[j + 1][k] << 32));
          std::memcpy(out + counters * k + start + j / 2 * n, &words, sizeof words);
        }
    }
  }
};

// --- standard normal numbers -------------------------------------------------------------------------------------
// Polynomials by Remez exchange, lowest power first: -2 ln((1 + s) / (1 - s)) / s, sin(pi f / 2) / f and
// (cos(pi f / 2) - 1) / f^2 as functions of s^2 or f^2, for ratios from sqrt(1/2) to sqrt(2) and |f| <= 1/2. Relative
// errors 7e-10, 3e-9, 6e-11 in single and 1e-18, 3e-18, 4e-20 in double precision. The normal numbers made of them are
// within 4.3 units in the last place of the law in single precision (2^25 numbers), 4 in double (against torch).
template <class T>
struct Fit;
template <>
struct Fit<float> {
  static constexpr double log[] = {-3.9999999972415777724, -1.3333363199186563701, -0.79949579566541335448,
                                   -0.59851581699742736386};
  static constexpr double sine[] = {1.5707963217084681818, -0.64596346024012343447, 0.079680032797699654999,
                                    -0.0046016578939530240114};
  static constexpr double cosine[] = {-1.2337005425977891052, 0.25366925592718751133, -0.020860165121283088868,
                                      0.00090376656092805011682};
};
template <>
struct Fit<double> {
  static constexpr double log[] = {-3.9999999999999999955,  -1.333333333333353054,   -0.79999999998596914673,
                                   -0.57142857522886459829, -0.44444393955842006777, -0.36367271312305112123,
                                   -0.30624857412761590015, -0.29621374444152577706};
  static constexpr double sine[] = {1.570796326794896614,      -0.64596409750624424166,   0.079692626246039562406,
                                    -0.0046817541322824539871, 0.00016044115029189453789, -3.5986417551299962024e-6,
                                    5.6337210755562738854e-8};
  static constexpr double cosine[] = {-1.2337005501361698153,    0.25366950790104681547,      -0.020863480763312570575,
                                      0.00091926027419108254805, -0.000025202036788364264489, 4.7106096711099199206e-7,
                                      -6.3212022258957783505e-9};
};

// As many 32-bit numbers as a vector of T has lanes.
template <class T>
struct Narrow {
  using integer = VecOf<float>::mask;
  using single = Vec<float>;
  typedef uint32_t word __attribute__((vector_size(PYRECON_VECTOR_BYTES)));
};
template <>
struct Narrow<double> {
  typedef int32_t integer __attribute__((vector_size(PYRECON_VECTOR_BYTES / 2)));
  typedef float single __attribute__((vector_size(PYRECON_VECTOR_BYTES / 2)));
  typedef uint32_t word __attribute__((vector_size(PYRECON_VECTOR_BYTES / 2)));
};

template <class T, int N>
PYRECON_INLINE Vec<T> polynomial(const double (&c)[N], Vec<T> z) {
  Vec<T> sum = splat(static_cast<T>(c[N - 1]));
  for (int i = N - 2; i >= 0; --i) sum = sum * z + static_cast<T>(c[i]);
  return sum;
}

PYRECON_INLINE float root(float v) { return __builtin_sqrtf(v); }
PYRECON_INLINE double root(double v) { return __builtin_sqrt(v); }

// One word and the next of `lanes` counters to two vectors of normal numbers, by Box and Muller.
template <class T>
PYRECON_INLINE void normal_pair(const uint32_t* first, const uint32_t* second, T* a, T* b) {
  using Int = typename Narrow<T>::integer;
  using Single = typename Narrow<T>::single;
  using Mask = typename VecOf<T>::mask;
  typename Narrow<T>::word v;
  Int w;
  std::memcpy(&v, first, sizeof v);
  std::memcpy(&w, second, sizeof w);

  // u = (v / 2 | 1) / 2^31, rounded to single precision, is m * 2^(e - 31) with m from sqrt(1/2) to sqrt(2).
  const Single u = __builtin_convertvector((Int)(v >> 1 | 1), Single);
  const Int bits = (Int)u, e = (bits - 0x3f3504f3) >> 23;
  const Vec<T> m = __builtin_convertvector((Single)(bits - (e << 23)), Vec<T>);
  const Vec<T> s = (m - 1) / (m + 1);
  const Vec<T> square = __builtin_convertvector(31 - e, Vec<T>) * static_cast<T>(1.38629436111989061883) +
                        s * polynomial<T>(Fit<T>::log, s * s);
  Vec<T> radius;
  for (int i = 0; i < lanes<T>; ++i) radius[i] = root(square[i]);

  // The angle: f quarter turns from the low 30 bits, the cosine negated by the highest bit, both exchanged by the next.
  const Vec<T> f = __builtin_convertvector(__builtin_convertvector(w << 2, Single), Vec<T>) * static_cast<T>(0x1p-32);
  const Vec<T> z = f * f;
  const Vec<T> sine = radius * f * polynomial<T>(Fit<T>::sine, z);
  Vec<T> cosine = radius + radius * z * polynomial<T>(Fit<T>::cosine, z);
  const Mask highest = __builtin_convertvector(w, Mask) & (Mask)splat(static_cast<T>(-0.0));
  cosine = (Vec<T>)((Mask)cosine ^ highest);
  const Mask exchanged = __builtin_convertvector(w << 1 >> 31, Mask);
  store<T>(a, exchanged ? sine : cosine);
  store<T>(b, exchanged ? cosine : sine);
}

// The 64 normal numbers of one block of the stream.
template <class T>
PYRECON_INLINE void normals(const Stream& stream, uint64_t index, T* out) {
  uint32_t words[block];
  stream.words(index, words);
  for (int pair = 0; pair < block; pair += 2 * counters)
    for (int i = pair; i < pair + counters; i += lanes<T>)
      normal_pair<T>(words + i, words + i + counters, out + i, out + i + counters);
}

// --- the step ------------------------------------------------------------------------------------------------------
// What one block reads and writes; only `out` without moments.
template <class T>
struct Part {
  const T *x, *grad, *mean, *m2;
  T *out, *new_mean, *new_m2;
};

// 64 reals. Moments: 0 none, 1 of real, 2 of complex numbers.
template <int Moments, bool Nonneg, class T>
PYRECON_INLINE void advance(const Part<T>& at, const T* xi, T half_step, T noise_std, T share) {
  T delta[block], square[block];
  PYRECON_INDEPENDENT
  for (int i = 0; i < block; ++i) {
    T v = at.x[i] - half_step * at.grad[i] + noise_std * xi[i];
    if (Nonneg) v = v < 0 ? T(0) : v;
    at.out[i] = v;
    delta[i] = v;
  }
  if (Moments == 0) return;
  PYRECON_INDEPENDENT
  for (int i = 0; i < block; ++i) {
    const T before = delta[i] - at.mean[i], mean = at.mean[i] + share * before;
    at.new_mean[i] = mean;
    square[i] = before * (delta[i] - mean);
  }
  PYRECON_INDEPENDENT
  for (int i = 0; i < block / Moments; ++i)
    at.new_m2[i] = at.m2[i] + (Moments == 1 ? square[i] : square[2 * i] + square[2 * i + 1]);
}

template <int Moments, bool Nonneg, class T>
void run(const LangevinStep<T>& job) {
  const T share = Moments ? T(1) / static_cast<T>(*job.count + 1) : T(0);
  const Stream stream(job.seed, job.counter + (job.clock ? static_cast<uint64_t>(*job.clock) : 0));
  constexpr int64_t per_square = Moments == 2 ? 2 : 1;  // reals per number of m2

  // Reals [begin, end) of the arrays, all in one block and one row.
  const auto advance_part = [&](int64_t begin, int64_t end, const T* xi) {
    const int64_t row = begin / job.n, n = end - begin;
    const T half_step = job.step[row] / 2, noise_std = job.noise_std[row];
    Part<T> at{job.x + begin, job.grad + begin, nullptr, nullptr, job.out + begin, nullptr, nullptr};
    if (Moments) {
      at.mean = job.mean + begin, at.new_mean = job.new_mean + begin;
      at.m2 = job.m2 + begin / per_square, at.new_m2 = job.new_m2 + begin / per_square;
    }
    if (n == block) return advance<Moments, Nonneg>(at, xi, half_step, noise_std, share);
    // A shorter one goes through buffers, so that every number takes the same instructions wherever a batch is cut.
    T x[block] = {}, grad[block] = {}, noise[block] = {}, mean[block] = {}, m2[block] = {};
    std::memcpy(x, at.x, n * sizeof(T));
    std::memcpy(grad, at.grad, n * sizeof(T));
    std::memcpy(noise, xi, n * sizeof(T));
    if (Moments) {
      std::memcpy(mean, at.mean, n * sizeof(T));
      std::memcpy(m2, at.m2, n / per_square * sizeof(T));
    }
    advance<Moments, Nonneg>(Part<T>{x, grad, mean, m2, x, mean, m2}, noise, half_step, noise_std, share);
    std::memcpy(at.out, x, n * sizeof(T));
    if (Moments) {
      std::memcpy(at.new_mean, mean, n * sizeof(T));
      std::memcpy(at.new_m2, m2, n / per_square * sizeof(T));
    }
  };

  // Threads share the blocks of the stream that the arrays touch.
  const int64_t total = job.rows * job.n;
  const uint64_t start = job.first / block;
  const int64_t skipped = static_cast<int64_t>(job.first % block);
  const int64_t blocks = (skipped + total + block - 1) / block;
  parallel_for(job.threads, total ? blocks : 0, grain / block, [&](int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) {
      alignas(64) T xi[block];
      normals(stream, start + i, xi);
      const int64_t origin = i * block - skipped;
      int64_t begin = origin < 0 ? 0 : origin;
      const int64_t end = origin + block < total ? origin + block : total;
      while (begin < end) {
        const int64_t row_end = (begin / job.n + 1) * job.n, stop = row_end < end ? row_end : end;
        advance_part(begin, stop, xi + (begin - origin));
        begin = stop;
      }
    }
  });
}

}  // namespace

template <class T>
void langevin_step(const LangevinStep<T>& job) {
  auto* chosen = job.nonneg ? &run<0, true, T> : &run<0, false, T>;
  if (job.mean != nullptr) {
    chosen = job.nonneg ? &run<1, true, T> : &run<1, false, T>;
    if (job.complex) chosen = &run<2, false, T>;
  }
  chosen(job);
}

template void langevin_step(const LangevinStep<float>&);
template void langevin_step(const LangevinStep<double>&);

}  // namespace pyrecon::PYRECON_ISA
