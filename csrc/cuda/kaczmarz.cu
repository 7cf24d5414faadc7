// A sweep is a chain of dependent steps, so a sample stays in one thread block and what counts is the latency of a
// step.
//
// Rows go in blocks of P with their Gram matrix (csrc/cpu/kaczmarz.cpp), computed for all blocks beforehand by a kernel
// of its own. In the sweep each thread owns Q columns: their x and their entries of the block's rows live in registers,
// and the entries of the next block are loaded while this one is worked on. The P products with x are summed over the
// threads with one barrier a block; then every thread solves the triangular system by itself, which needs no exchange:
// 120 multiplications for P = 16 are faster than 16 rounds of shuffles.
#include <cmath>

#include "cuda/kaczmarz.hpp"

namespace pyrecon::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// --- numbers ---------------------------------------------------------------------------------------------------
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T re, im;
};
template <class T, bool Complex>
struct NumberOf {
  typedef T type;
};
template <class T>
struct NumberOf<T, true> {
  typedef Pair<T> type;
};
template <class T, bool Complex>
using Number = typename NumberOf<T, Complex>::type;

template <class T>
__device__ void add_product(T& sum, T a, T b) {
  sum += a * b;
}
template <class T>
__device__ void add_product(Pair<T>& sum, Pair<T> a, Pair<T> b) {
  sum.re += a.re * b.re - a.im * b.im;
  sum.im += a.re * b.im + a.im * b.re;
}
template <class T>
__device__ void add_conjugated(T& sum, T a, T b) {  // sum += a conj(b)
  sum += a * b;
}
template <class T>
__device__ void add_conjugated(Pair<T>& sum, Pair<T> a, Pair<T> b) {
  sum.re += a.re * b.re + a.im * b.im;
  sum.im += a.im * b.re - a.re * b.im;
}
template <class T>
__device__ T part(T value, int) {
  return value;
}
template <class T>
__device__ T part(Pair<T> value, int which) {
  return which == 0 ? value.re : value.im;
}
template <class T>
__device__ T number(const T* parts, T) {
  return parts[0];
}
template <class T>
__device__ Pair<T> number(const T* parts, Pair<T>) {
  return {parts[0], parts[1]};
}
template <class T>
__device__ bool clip(T& value) {  // false for NaN, which stays
  const bool cut = value < 0;
  if (cut) value = 0;
  return cut;
}
template <class T>
__device__ bool clip(Pair<T>& value) {
  value.im = 0;
  return clip(value.re);
}

// --- rows --------------------------------------------------------------------------------------------------------
constexpr std::int64_t kAbsent = -1, kInvalid = -2;

template <class T>
__device__ std::int64_t row_at(const Kaczmarz<T>& p, std::int64_t sweep, std::int64_t step) {
  if (step >= p.steps) return kAbsent;
  if (!p.order) return step;
  const std::int64_t row = p.order[(p.order_per_sweep ? sweep * p.steps : 0) + step];
  return row >= 0 && row < p.rows ? row : kInvalid;
}

template <class T>
__host__ __device__ std::int64_t blocks_of(const Kaczmarz<T>& p, int rows) {
  return p.steps > 0 ? (p.steps + rows - 1) / rows : 1;  // positivity follows a sweep of no rows, too
}

// --- Gram matrices -----------------------------------------------------------------------------------------------
// gram[block][k][l] = a_k.conj(a_l) for l <= k. The entry (0, 1), which no solve reads, is 1 if a row comes twice.
template <class T, bool Complex, int P>
__global__ void gram_matrices(Kaczmarz<T> p) {
  typedef Number<T, Complex> N;
  const std::int64_t blocks = blocks_of(p, P), sweep = blockIdx.x / blocks, step = blockIdx.x % blocks * P;
  N* gram = reinterpret_cast<N*>(p.workspace) + blockIdx.x * std::int64_t{P * P};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int pair = warp; pair < P * P; pair += warps) {
    const int k = pair / P, l = pair % P;
    if (l > k) continue;
    const std::int64_t row_k = row_at(p, sweep, step + k), row_l = row_at(p, sweep, step + l);
    N sum{};
    if (row_k >= 0 && row_l >= 0) {
      const N *a = reinterpret_cast<const N*>(p.A) + row_k * p.columns,
              *b = reinterpret_cast<const N*>(p.A) + row_l * p.columns;
      for (std::int64_t j = lane; j < p.columns; j += 32) add_conjugated(sum, a[j], b[j]);
    }
    T parts[2] = {part(sum, 0), Complex ? part(sum, 1) : T(0)};
    for (int c = 0; c <= Complex; ++c)
      for (int offset = 16; offset >= 1; offset /= 2) parts[c] += __shfl_xor_sync(kAll, parts[c], offset);
    if (row_k == kInvalid) parts[0] = NAN;
    if (lane == 0) gram[pair] = number(parts, N{});
  }
  if (threadIdx.x == 0) {
    bool twice = false;
    for (int k = 0; k < P; ++k)
      for (int l = 0; l < k; ++l) {
        const std::int64_t row = row_at(p, sweep, step + k);
        twice |= row >= 0 && row == row_at(p, sweep, step + l);
      }
    const T flag[2] = {twice ? T(1) : T(0), T(0)};
    gram[1] = number(flag, N{});
  }
}

// --- sweeps ------------------------------------------------------------------------------------------------------
// Sums V values over the lanes of a warp; lane i returns value i / (32 / V). Each round hands over half of what is
// left. By recursion, so that every index is a constant: a loop left v in local memory.
template <int N, int Offset, int V, class T>
__device__ T reduce_scatter(T (&v)[V], int lane) {
  if constexpr (Offset == 0) {
    return v[0];
  } else if constexpr (N > 1) {
    const bool upper = lane & Offset;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const T give = upper ? v[i] : v[i + N / 2], keep = upper ? v[i + N / 2] : v[i];
      v[i] = keep + __shfl_xor_sync(kAll, give, Offset);
    }
    return reduce_scatter<N / 2, Offset / 2>(v, lane);
  } else {
    v[0] += __shfl_xor_sync(kAll, v[0], Offset);
    return reduce_scatter<1, Offset / 2>(v, lane);
  }
}

// Q columns a thread in registers, or with Q = 0 any number of columns in memory. S samples a thread block.
template <class T, bool Complex, int P, int Q, int S, int MaxThreads>
__global__ void __launch_bounds__(MaxThreads) sweeps(Kaczmarz<T> p) {
  typedef Number<T, Complex> N;
  constexpr int C = Complex ? 2 : 1, V = P * S * C, Lanes = 32 / V, Held = Q > 0 ? Q : 1;
  static_assert(V <= 32 && (V & (V - 1)) == 0 && P >= 2 && (Q > 0 || S == 1));
  __shared__ T partial[2][32][V];
  __shared__ T matrix[2][P * P * C];
  __shared__ T inverse[2][S * P];

  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % 32, warp = thread / 32, warps = threads / 32;
  const std::int64_t first = blockIdx.x * std::int64_t{S}, blocks = blocks_of(p, P), turns = p.sweeps * blocks;
  const N *A = reinterpret_cast<const N*>(p.A), *x0 = reinterpret_cast<const N*>(p.x0);
  N* out = reinterpret_cast<N*>(p.x);

  N x[S][Held];
  for (int s = 0; s < S; ++s) {
    const std::int64_t sample = first + s;
    if constexpr (Q > 0) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const std::int64_t j = thread + q * threads;
        x[s][q] = x0 && sample < p.batch && j < p.columns ? x0[sample * p.columns + j] : N{};
      }
    } else {
      for (std::int64_t j = thread; j < p.columns; j += threads)
        out[sample * p.columns + j] = x0 ? x0[sample * p.columns + j] : N{};
    }
    if (sample < p.batch)
      for (std::int64_t i = thread; i < p.rows * C; i += threads)
        p.dual[sample * p.rows * C + i] = p.dual0 ? p.dual0[sample * p.rows * C + i] : T(0);
  }
  __syncthreads();

  // The entries of a turn's rows in this thread's columns.
  const auto load_rows = [&](std::int64_t turn, N(&a)[P][Held]) {
#pragma unroll
    for (int k = 0; k < P; ++k) {
      const std::int64_t row = turn < turns ? row_at(p, turn / blocks, turn % blocks * P + k) : kAbsent;
#pragma unroll
      for (int q = 0; q < Held; ++q) {
        const std::int64_t j = thread + q * threads;
        a[k][q] = row >= 0 && j < p.columns ? A[row * p.columns + j] : N{};
      }
    }
  };
  // The turn's Gram matrix and 1 / (|a_k|^2 + weight), 0 for a row to be skipped. May follow the barrier of the turn
  // before, when no thread reads the older contents any more.
  const auto stage = [&](std::int64_t turn) {
    if (turn >= turns) return;
    const std::int64_t block = (p.order_per_sweep ? turn / blocks * blocks : 0) + turn % blocks;
    const T* gram = p.workspace + block * (P * P * C);
    for (int e = thread; e < P * P * C; e += threads) matrix[turn & 1][e] = gram[e];
    for (int e = thread; e < S * P; e += threads) {
      const std::int64_t sample = first + e / P;
      const T norm = gram[(e % P) * (P + 1) * C] + (sample < p.batch ? p.weight[sample] : T(0));
      inverse[turn & 1][e] = norm == 0 ? T(0) : 1 / norm;
    }
  };

  // The first warp keeps the books: the lane of value (k, s, part) reads y and the dual and writes the dual.
  const int value = lane / Lanes, value_k = value / (S * C);
  const std::int64_t sample = first + value / C % S;
  const bool keeps = warp == 0 && lane % Lanes == 0 && sample < p.batch;
  const T weight = keeps ? p.weight[sample] : T(0);

  N a[P][Held], a_next[P][Held];
  if constexpr (Q > 0) load_rows(0, a);
  stage(0);
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    const std::int64_t sweep = turn / blocks, step = turn % blocks * P;
    if constexpr (Q > 0) load_rows(turn + 1, a_next);
    const std::int64_t row = keeps ? row_at(p, sweep, step + value_k) : kAbsent;
    const std::int64_t at = (sample * p.rows + row) * C + value % C;
    const T known = row >= 0 ? weight * p.dual[at] - p.y[at] : T(0);

    T v[V];
    {
      N sums[P][S] = {};
      if constexpr (Q > 0) {
#pragma unroll
        for (int k = 0; k < P; ++k)
#pragma unroll
          for (int s = 0; s < S; ++s)
#pragma unroll
            for (int q = 0; q < Q; ++q) add_product(sums[k][s], a[k][q], x[s][q]);
      } else {
        std::int64_t rows[P];
        for (int k = 0; k < P; ++k) rows[k] = row_at(p, sweep, step + k);
        for (std::int64_t j = thread; j < p.columns; j += threads) {
          const N xj = out[first * p.columns + j];
#pragma unroll
          for (int k = 0; k < P; ++k)
            if (rows[k] >= 0) add_product(sums[k][0], A[rows[k] * p.columns + j], xj);
        }
      }
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = part(sums[i / (S * C)][i / C % S], i % C);
    }
    T sum = reduce_scatter<V, 16>(v, lane);
    if (warp == 0) sum += known;
    if (lane % Lanes == 0) partial[turn & 1][warp][value] = sum;
    __syncthreads();
    stage(turn + 1);

    // -(residual) of every row in every thread: lane i adds up value i % V, then all are handed round.
    sum = 0;
    for (int w = lane / V; w < warps; w += Lanes) sum += partial[turn & 1][w][lane % V];
#pragma unroll
    for (int offset = V; offset < 32; offset *= 2) sum += __shfl_xor_sync(kAll, sum, offset);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = -__shfl_sync(kAll, sum, i);

    const T* g = matrix[turn & 1];
    const bool twice = g[C] != 0;
    N alpha[P][S];
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int k = 0; k < P; ++k) {
        N residual = number(v + (k * S + s) * C, N{});
#pragma unroll
        for (int l = 0; l < k; ++l) {
          N minus = number(g + (k * P + l) * C, N{});
          if constexpr (Complex) {
            minus.re = -minus.re;
            minus.im = -minus.im;
          } else {
            minus = -minus;
          }
          if (twice && row_at(p, sweep, step + k) == row_at(p, sweep, step + l)) {  // the dual it read was older
            const T lambda = first + s < p.batch ? p.weight[first + s] : T(0);
            if constexpr (Complex)
              minus.re -= lambda;
            else
              minus -= lambda;
          }
          add_product(residual, minus, alpha[l][s]);
        }
        const T scale = inverse[turn & 1][s * P + k];
        if constexpr (Complex)
          alpha[k][s] = scale == 0 ? N{} : N{residual.re * scale, residual.im * scale};
        else
          alpha[k][s] = scale == 0 ? N{} : residual * scale;
      }

    if (warp == 0) {
      T mine = 0;
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (value == i) mine = part(alpha[i / (S * C)][i / C % S], i % C);
      if (row != kAbsent && p.multipliers)
        p.multipliers[((sweep * p.batch + sample) * p.steps + step + value_k) * C + value % C] = mine;
      if (twice) {
        for (int k = 0; k < P; ++k) {
          if (row >= 0 && value_k == k) p.dual[at] += mine;
          __syncwarp();
        }
      } else if (row >= 0) {
        p.dual[at] += mine;
      }
      __syncwarp();
    }

    const bool positive = p.nonneg && step + P >= p.steps;
    const auto finish = [&](N& value, std::int64_t j, int s) {
      const bool cut = clip(value);
      if (p.active && first + s < p.batch) p.active[(sweep * p.batch + first + s) * p.columns + j] = cut ? T(0) : T(1);
    };
    if constexpr (Q > 0) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
          for (int k = 0; k < P; ++k) add_conjugated(x[s][q], alpha[k][s], a[k][q]);
          const std::int64_t j = thread + q * threads;
          if (positive && j < p.columns) finish(x[s][q], j, s);
        }
#pragma unroll
        for (int k = 0; k < P; ++k) a[k][q] = a_next[k][q];
      }
    } else {
      std::int64_t rows[P];
      for (int k = 0; k < P; ++k) rows[k] = row_at(p, sweep, step + k);
      for (std::int64_t j = thread; j < p.columns; j += threads) {
        N xj = out[first * p.columns + j];
#pragma unroll
        for (int k = 0; k < P; ++k) add_conjugated(xj, alpha[k][0], rows[k] >= 0 ? A[rows[k] * p.columns + j] : N{});
        if (positive) finish(xj, j, 0);
        out[first * p.columns + j] = xj;
      }
    }
  }

  if constexpr (Q > 0)
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const std::int64_t j = thread + q * threads;
        if (first + s < p.batch && j < p.columns) out[(first + s) * p.columns + j] = x[s][q];
      }
}

// --- launch ------------------------------------------------------------------------------------------------------
// One sample a thread block while there are multiprocessors for them; then four, which read A together. Up to 768
// columns (256 threads) 16 rows of floats, or 8 of doubles or complex floats, fit the registers, up to 1536 half as
// many.
enum class Shape { one, four, wide, any };

template <class T>
cudaError_t choose(const Kaczmarz<T>& p, int device, Shape* shape) {
  int processors = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (p.columns <= 768)
    *shape = p.batch > 2 * std::int64_t{processors} ? Shape::four : Shape::one;
  else
    *shape = p.columns <= 1536 ? Shape::wide : Shape::any;
  return error;
}

template <class T, bool Complex>
constexpr int rows_of(Shape shape) {
  return (shape == Shape::one ? 16 : 8) * 4 / static_cast<int>(sizeof(Number<T, Complex>));
}

template <class T, bool Complex, Shape shape>
cudaError_t launch(const Kaczmarz<T>& p, cudaStream_t stream) {
  constexpr int P = rows_of<T, Complex>(shape), S = shape == Shape::four ? 4 : 1;
  constexpr int Q = shape == Shape::any ? 0 : 3;
  constexpr int most = shape == Shape::one || shape == Shape::four ? 256 : 512;
  const std::int64_t grams = (p.order_per_sweep ? p.sweeps : 1) * blocks_of(p, P);
  if (grams > 0) gram_matrices<T, Complex, P><<<static_cast<unsigned>(grams), 128, 0, stream>>>(p);
  const std::int64_t needed = Q == 0 ? most : (p.columns + Q - 1) / Q;
  const int threads = needed < 32 ? 32 : static_cast<int>((needed + 31) / 32 * 32);
  const std::int64_t groups = (p.batch + S - 1) / S;
  if (groups > 0) sweeps<T, Complex, P, Q, S, most><<<static_cast<unsigned>(groups), threads, 0, stream>>>(p);
  return cudaGetLastError();
}

// Work goes to `device`; the caller's current device is as it was afterwards.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : error(cudaGetDevice(&previous_)) {
    if (error == cudaSuccess && previous_ != device) error = cudaSetDevice(device);
  }
  ~CurrentDevice() { cudaSetDevice(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  cudaError_t error;

 private:
  int previous_ = 0;
};

}  // namespace

template <class T, bool Complex>
std::int64_t kaczmarz_workspace(const Kaczmarz<T>& p, int device) {
  Shape shape = Shape::one;
  choose(p, device, &shape);  // an error shows at the launch
  const int P = rows_of<T, Complex>(shape);
  return (p.order_per_sweep ? p.sweeps : 1) * blocks_of(p, P) * P * P * (Complex ? 2 : 1);
}

template <class T, bool Complex>
cudaError_t kaczmarz(const Kaczmarz<T>& p, int device, cudaStream_t stream) {
  const CurrentDevice current(device);
  if (current.error != cudaSuccess) return current.error;
  Shape shape = Shape::one;
  const cudaError_t error = choose(p, device, &shape);
  if (error != cudaSuccess) return error;
  switch (shape) {
    case Shape::one:
      return launch<T, Complex, Shape::one>(p, stream);
    case Shape::four:
      return launch<T, Complex, Shape::four>(p, stream);
    case Shape::wide:
      return launch<T, Complex, Shape::wide>(p, stream);
    default:
      return launch<T, Complex, Shape::any>(p, stream);
  }
}

#define INSTANTIATE(T, Complex)                                                      \
  template std::int64_t kaczmarz_workspace<T, Complex>(const Kaczmarz<T>& p, int d); \
  template cudaError_t kaczmarz<T, Complex>(const Kaczmarz<T>& p, int d, cudaStream_t s);
INSTANTIATE(float, false)
INSTANTIATE(float, true)
INSTANTIATE(double, false)
INSTANTIATE(double, true)

}  // namespace pyrecon::cuda
