#include "cpu/fit.hpp"

#include "cpu/parallel.hpp"
#include "cpu/voxels.hpp"

// Lanes are voxels. All that an iteration needs are sums over the images of products of phi(R), its two derivatives and
// the data, made in one pass; with two factors the first is eliminated by centring, in a pass before. Written after
// _fit_reference of pyrecon/ops/_fit.py, which says what is computed.

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int grid_points = 16;

// The least sum of squares of phi on the grid. Where phi itself is about to underflow, late after a decay, its squares
// have few bits left, and a quotient of two of them may look better than the best fit there is.
template <class T>
constexpr T least_power = sizeof(T) == 4 ? T(1e-32) : T(1e-280);

// What a thread works on: `lanes` voxels of a sample. Memory of the caller.
template <class T, int K, int Linear>
struct Block : Curves<T> {
  typedef Vec<T> V;
  using Curves<T>::images, Curves<T>::time, Curves<T>::above, Curves<T>::shapes;
  V* s;           // images x K, centred where Linear is 2
  V* phi;         // images
  V* slope;       // images, d phi / dR
  bool weighted;  // whether there is a prior at all
  V weight, rate0, factor0[Linear][K];
  V total, mean[K];  // Linear 2: images + weight, and the data's mean

  struct At {
    V first, second, below, power, phi_mean, norm, cross[K], with_a[K], factor[Linear][K];
  };

  // Half the objective's derivatives in R at the best factors; `below` is the part of it that depends on R.
  template <bool Derivatives = true>
  PYRECON_MEMBER At at(V rate) const {
    At r;
    V n = weight, a1 = {}, a2 = {}, a3 = {}, d_sum = {}, b[K] = {}, b1[K] = {}, b2[K] = {};
    V centre = {};
    if constexpr (Linear == 2) {
      V sum = {};
      for (int64_t t = 0; t < images; ++t) {
        V e;
        const V m = one_minus_exp<T>(time(t) * rate, e);
        sum += above(t, m, e);
      }
      centre = sum / total;
      n = weight * centre * centre + weight;
      for (int k = 0; k < K; ++k) b[k] = weight * (centre * (mean[k] - factor0[0][k]) + factor0[1][k]);
    } else {
      for (int k = 0; k < K; ++k) b[k] = weight * factor0[0][k];
    }
    for (int64_t t = 0; t < images; ++t) {
      V value, d1, d2;
      shapes(rate, t, value, d1, d2);
      const V e = value - centre;
      n += e * e;
      for (int k = 0; k < K; ++k) b[k] += e * s[t * K + k];
      if constexpr (!Derivatives) continue;
      a1 += e * d1, a2 += d1 * d1, a3 += e * d2;
      if constexpr (Linear == 2) d_sum += d1;
      for (int k = 0; k < K; ++k) b1[k] += d1 * s[t * K + k], b2[k] += d2 * s[t * K + k];
    }
    const V pulled = weight * (rate - rate0), inverse = T(1) / n;
    V power = {}, seen1 = {}, seen2 = {}, crossed = {}, fitted = {};
    for (int k = 0; k < K; ++k) {
      const V c = b[k] * inverse, cross = T(2) * a1 * c - b1[k];
      power += c * c, seen1 += c * b1[k], seen2 += c * b2[k], crossed += cross * cross, fitted += b[k] * c;
      r.cross[k] = cross;
      r.factor[Linear - 1][k] = c;
      if constexpr (Linear == 2) r.factor[0][k] = mean[k] - c * centre, r.with_a[k] = c * d_sum;
    }
    r.first = power * a1 - seen1 + pulled;
    r.second = power * (a2 + a3) - seen2 + weight - crossed * inverse;
    r.below = T(0.5) * (pulled * (rate - rate0) - fitted);
    if constexpr (Linear == 2) {
      r.second -= power * d_sum * d_sum / total;
      for (int k = 0; k < K; ++k) r.below -= T(0.5) * total * mean[k] * mean[k];
    }
    r.power = power;
    r.phi_mean = centre;
    r.norm = n;
    return r;
  }

  // After s is set: its mean, and what is left.
  PYRECON_MEMBER void centre_data() {
    if constexpr (Linear == 2) {
      total = weight + T(images);
      for (int k = 0; k < K; ++k) {
        V sum = weight * factor0[0][k];
        for (int64_t t = 0; t < images; ++t) sum += s[t * K + k];
        mean[k] = sum / total;
        for (int64_t t = 0; t < images; ++t) s[t * K + k] -= mean[k];
      }
    }
  }
};

// phi on the grid where all voxels share the table, less its mean over the images where Linear is 2.
template <class T>
struct Grid {
  const double* rates;
  bool shared;
  T* phi;                     // points x images
  T *power, *mean, *inverse;  // points: sum of squares, the mean that was taken off, and 1 / power
};

template <class T, int K, int Linear>
PYRECON_INLINE Vec<T> on_grid(const Block<T, K, Linear>& block, const Grid<T>& grid, int g) {
  typedef Vec<T> V;
  const V rate = splat(T(grid.rates[g]));
  if (!grid.shared) {
    const auto at = block.template at<false>(rate);
    return at.norm < least_power<T> ? splat(T(__builtin_inf())) : at.below;
  }
  V b[K] = {}, fitted = {}, constant = {};
  const T* phi = grid.phi + g * block.images;
  for (int64_t t = 0; t < block.images; ++t)
    for (int k = 0; k < K; ++k) b[k] += phi[t] * block.s[t * K + k];
  if (!block.weighted) {  // up to a constant, and without a division, of which sixteen are a tenth of all the time
    for (int k = 0; k < K; ++k) fitted += b[k] * b[k];
    return fitted * (T(-0.5) * grid.inverse[g]);
  }
  const V pulled = block.weight * (rate - block.rate0) * (rate - block.rate0);
  V n = splat(grid.power[g]) + block.weight;
  if constexpr (Linear == 2) {
    const T images = T(block.images), m = grid.mean[g];
    const V centre = images * m / block.total, off = m - centre;
    n += images * off * off + block.weight * centre * centre;
    for (int k = 0; k < K; ++k) {
      const V left = block.weight * (block.mean[k] - block.factor0[0][k]);  // the sum of the centred data
      b[k] += off * left + block.weight * (centre * (block.mean[k] - block.factor0[0][k]) + block.factor0[1][k]);
      constant += block.total * block.mean[k] * block.mean[k];
    }
  } else {
    for (int k = 0; k < K; ++k) b[k] += block.weight * block.factor0[0][k];
  }
  for (int k = 0; k < K; ++k) fitted += b[k] * b[k];
  const V value = T(0.5) * (pulled - fitted / n - constant);
  return n < least_power<T> ? splat(T(__builtin_inf())) : value;  // a prior may weigh nothing
}

template <class T, int K, int Linear>
struct Found {
  Vec<T> rate, below, factor[Linear][K], residual, count;
  Ints<T> lost, running;
};

template <class T, int K, int Linear>
PYRECON_INLINE Found<T, K, Linear> minimum(const Block<T, K, Linear>& block, const Grid<T>& grid, T tol, int max_iter) {
  typedef Vec<T> V;
  constexpr T infinite = T(__builtin_inf()), eased = T(1e-3);
  V least = splat(infinite), rate = splat(T(grid.rates[0])), lower = rate, upper = splat(T(grid.rates[1]));
  V last_value = splat(infinite), before = splat(infinite), after = splat(infinite);  // on either side of the least
  Ints<T> least_was_last = {};
  for (int g = 0; g < grid_points; ++g) {
    const V value = on_grid(block, grid, g);
    const Ints<T> less = value < least;
    after = less ? splat(infinite) : least_was_last ? value : after;
    before = less ? last_value : before;
    lower = less ? splat(T(grid.rates[g > 0 ? g - 1 : 0])) : lower;
    rate = less ? splat(T(grid.rates[g])) : rate;
    upper = less ? splat(T(grid.rates[g + 1 < grid_points ? g + 1 : g])) : upper;
    least = less ? value : least;
    last_value = value, least_was_last = less;
  }
  // The parabola through three points of the grid, by their numbers: it saves a Newton step of six.
  const V bend = before - T(2) * least + after, slope = before - after;
  const V moved = (bend > magnitude<T>(slope)) & (bend < infinite) ? T(0.5) * slope / bend : V{};
  rate += T(0.5) * moved * (upper - lower + moved * (upper - T(2) * rate + lower));
  Found<T, K, Linear> f;
  V last = splat(infinite), last_size = splat(infinite), last_rate = splat(T(1)), count = {};
  Ints<T> flat = {};
  Ints<T> running = least == least;  // all lanes: a NaN is never the least
  const T lowest = T(grid.rates[0]), highest = T(grid.rates[grid_points - 1]);
  const T eased_end = T(0.1) * T(__builtin_sqrt(tol));
  for (int i = 0; i < max_iter; ++i) {
    const auto at = block.at(rate);
    const V zero = {};
    upper = running & (at.first > zero) ? rate : upper;
    lower = running & (at.first < zero) ? rate : lower;
    const V newton = -at.first / at.second, there = rate + newton;
    const Ints<T> enough = magnitude<T>(newton) <= tol * rate;
    const Ints<T> inside = (at.second > zero) & (enough | ((there > lower) & (there < upper)));
    V step = inside ? newton : T(0.5) * (lower + upper) - rate;
    step = at.first == zero ? zero : step;
    const V size = magnitude<T>(step);
    const Ints<T> rounding = inside & (last < eased * rate) & (size >= T(0.5) * last);
    count = running ? count + T(1) : count;
    last_size = running ? size : last_size, last_rate = running ? rate : last_rate;
    const Ints<T> none = (at.first == zero) & (at.second == zero) & (at.power == zero);  // a signal may have a plateau
    flat = running ? none : flat;
    const Ints<T> ends = (size <= tol * rate) | (inside & (size <= eased_end * rate)) | rounding | flat;
    rate = running & ~rounding ? rate + step : rate;
    rate = rate < lowest ? splat(lowest) : rate > highest ? splat(highest) : rate;  // NaN stays
    last = inside ? size : splat(infinite);
    running &= ~ends;
    if (!any<T>(running)) break;
  }
  const auto at = block.template at<false>(rate);
  const V zero = {};
  f.lost = ~(at.below - at.below == zero) | flat;
  f.rate = f.lost ? splat(T(__builtin_nan(""))) : rate;
  f.below = at.below, f.residual = last_size / last_rate, f.count = count, f.running = running;
  for (int i = 0; i < Linear; ++i)
    for (int k = 0; k < K; ++k) f.factor[i][k] = at.factor[i][k];
  return f;
}

// Magnitudes: which number of first images is negative at the least value on the grid.
template <class T, int Linear>
PYRECON_INLINE Vec<T> polarity_on_grid(const Block<T, 1, Linear>& block, const Grid<T>& grid,
                                       const Vec<T>* magnitudes) {
  typedef Vec<T> V;
  const int64_t images = block.images;
  V least = splat(T(__builtin_inf())), found = {};
  for (int g = 0; g < grid_points; ++g) {
    const V rate = splat(T(grid.rates[g]));
    V centre = {}, n = block.weight;
    for (int64_t t = 0; t < images; ++t) {
      V d1, d2;
      block.shapes(rate, t, block.phi[t], d1, d2);
      centre += block.phi[t];
    }
    V b = block.weight * block.factor0[0][0], plain = b, total = block.weight + T(images);
    if constexpr (Linear == 2) {
      centre /= total;
      n += block.weight * centre * centre;
      b = block.weight * (block.factor0[1][0] - centre * block.factor0[0][0]);
    } else {
      centre = V{};
    }
    for (int64_t t = 0; t < images; ++t) {
      block.phi[t] -= centre;
      n += block.phi[t] * block.phi[t], b += block.phi[t] * magnitudes[t], plain += magnitudes[t];
    }
    const V pulled = block.weight * (rate - block.rate0) * (rate - block.rate0);
    for (int64_t negative = 0;; ++negative) {
      V value = pulled - b * b / n;
      if constexpr (Linear == 2) value -= plain * plain / total;
      const Ints<T> better = value < least;
      least = better ? value : least, found = better ? splat(T(negative)) : found;
      if (negative == images) break;
      b -= T(2) * block.phi[negative] * magnitudes[negative], plain -= T(2) * magnitudes[negative];
    }
  }
  return found;
}

// Memory of one thread, and the table and the grid of one sample.
template <class T, int K, int Linear>
struct Worker {
  typedef Vec<T> V;
  const FitShape& shape;
  V *table, *s, *phi, *slope, *magnitudes;
  Grid<T> grid;
  Block<T, K, Linear> block;

  static int64_t memory(int64_t images) { return (rows + K + 3) * images * lanes<T> + (grid_points * (images + 3)); }

  Worker(T* memory, const FitShape& shape, const double* rates) : shape(shape) {
    const int64_t n = shape.images;
    table = reinterpret_cast<V*>(memory), s = table + rows * n, phi = s + K * n, slope = phi + n;
    magnitudes = slope + n;
    T* numbers = reinterpret_cast<T*>(magnitudes + n);
    grid = {rates,
            !shape.per_voxel,
            numbers,
            numbers + grid_points * n,
            numbers + grid_points * (n + 1),
            numbers + grid_points * (n + 2)};
    block.images = n, block.table = table, block.s = s, block.phi = phi, block.slope = slope;
  }

  void start(const T* curves, bool with_grid) {  // of a sample
    const int64_t n = shape.images;
    if (shape.per_voxel) return;
    block.share(curves);
    if (!with_grid) return;
    for (int g = 0; g < grid_points; ++g) {
      T sum = 0, power = 0;
      for (int64_t t = 0; t < n; ++t) {
        V value, d1, d2;
        block.shapes(splat(T(grid.rates[g])), t, value, d1, d2);
        grid.phi[g * n + t] = value[0], sum += value[0];
      }
      grid.mean[g] = Linear == 2 ? sum / T(n) : T(0);
      for (int64_t t = 0; t < n; ++t) {
        grid.phi[g * n + t] -= grid.mean[g];
        power += grid.phi[g * n + t] * grid.phi[g * n + t];
      }
      grid.power[g] = power, grid.inverse[g] = power < least_power<T> ? T(__builtin_nan("")) : T(1) / power;
    }
  }

  // Voxels [v, v + count) of a sample.
  void take(const T* data, const T* curves, const T* prior, const T* weight, int64_t v, int64_t count) {
    const int64_t n = shape.images, size = shape.voxels;
    if (shape.per_voxel) block.Curves<T>::take(curves, size, v, count);
    for (int64_t t = 0; t < n; ++t) {
      if constexpr (K == 1)
        s[t] = load_part(data + t * size + v, count);
      else
        load_complex(data + 2 * (t * size + v), count, s[2 * t], s[2 * t + 1]);
    }
    block.weighted = weight != nullptr;
    block.weight = weight ? load_part(weight + v, count) : V{};
    block.rate0 = prior ? load_part(prior + v, count) : V{};
    for (int i = 0; i < Linear; ++i)
      for (int k = 0; k < K; ++k)
        block.factor0[i][k] = prior ? load_part(prior + (1 + i * K + k) * size + v, count) : V{};
  }
};

template <class T, int K, int Linear>
void fit_all(const T* data, const T* curves, const T* prior, const T* weight, const double* grid, T* value,
             int8_t* status, int32_t* count, T* residual, const FitShape& shape, T tol, int max_iter, int threads) {
  typedef Vec<T> V;
  constexpr int64_t L = lanes<T>, parts = 1 + K * Linear;
  const int64_t size = shape.voxels, n = shape.images, blocks = (size + L - 1) / L, all = shape.batch * blocks;
  const int shares = share_count(threads, all, 16);
  const int64_t each = (Worker<T, K, Linear>::memory(n) + 15) / 16 * 16;
  const Scratch<T> memory(each * shares);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    Worker<T, K, Linear> w(memory.get() + share * each, shape, grid);
    each_block<T>(shape, begin, end, [&](int64_t b, int64_t v, int64_t here, bool fresh) {
      const T* table = curves + b * shape.per_sample;
      if (fresh) w.start(table, true);
      w.take(data + b * n * size * K, table, prior ? prior + b * parts * size : nullptr,
             weight ? weight + b * size : nullptr, v, here);
      Found<T, K, Linear> f;
      if constexpr (K == 1) {
        if (shape.polarity) {
          for (int64_t t = 0; t < n; ++t) w.magnitudes[t] = w.s[t];
          const V middle = polarity_on_grid<T, Linear>(w.block, w.grid, w.magnitudes);
          for (int change = 0; change < 3; ++change) {
            V negative = middle + T(change == 2 ? 1 : -change);
            negative = negative < V{} ? V{} : negative;
            for (int64_t t = 0; t < n; ++t) w.s[t] = splat(T(t)) < negative ? -w.magnitudes[t] : w.magnitudes[t];
            w.block.centre_data();
            const Found<T, K, Linear> other = minimum(w.block, w.grid, tol, max_iter);
            if (change == 0) {
              f = other;
              continue;
            }
            const Ints<T> better = other.below < f.below;
            f.rate = better ? other.rate : f.rate, f.below = better ? other.below : f.below;
            f.residual = better ? other.residual : f.residual, f.count = better ? other.count : f.count;
            f.lost = better ? other.lost : f.lost, f.running = better ? other.running : f.running;
            for (int l = 0; l < Linear; ++l) f.factor[l][0] = better ? other.factor[l][0] : f.factor[l][0];
          }
        } else {
          w.block.centre_data();
          f = minimum(w.block, w.grid, tol, max_iter);
        }
      } else {
        w.block.centre_data();
        f = minimum(w.block, w.grid, tol, max_iter);
      }
      T* out = value + b * parts * size + v;
      store_part<T>(out, f.rate, here);
      for (int l = 0; l < Linear; ++l)
        for (int k = 0; k < K; ++k) store_part<T>(out + (1 + l * K + k) * size, f.factor[l][k], here);
      store_part<T>(residual + b * size + v, f.residual, here);
      const V ended = f.lost ? splat(T(nonfinite)) : f.running ? splat(T(limit_reached)) : splat(T(converged));
      store_whole<T>(status + b * size + v, ended, here);
      store_whole<T>(count + b * size + v, f.count, here);
    });
  });
}

template <class T, int K, int Linear>
void backward_all(const T* grad, const T* value, const T* data, const T* curves, const T* prior, const T* weight,
                  T* grad_data, T* u, const FitShape& shape, T low, T high, int threads) {
  typedef Vec<T> V;
  constexpr int64_t L = lanes<T>, parts = 1 + K * Linear;
  const int64_t size = shape.voxels, n = shape.images, blocks = (size + L - 1) / L, all = shape.batch * blocks;
  const int shares = share_count(threads, all, 16);
  const int64_t each = (Worker<T, K, Linear>::memory(n) + 15) / 16 * 16;
  const Scratch<T> memory(each * shares);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    Worker<T, K, Linear> w(memory.get() + share * each, shape, nullptr);
    each_block<T>(shape, begin, end, [&](int64_t b, int64_t v, int64_t here, bool fresh) {
      const T* table = curves + b * shape.per_sample;
      if (fresh) w.start(table, false);
      w.take(data + b * n * size * K, table, prior ? prior + b * parts * size : nullptr,
             weight ? weight + b * size : nullptr, v, here);
      const T *g = grad + b * parts * size + v, *p = value + b * parts * size + v;
      const V rate = load_part(p, here);
      V c[Linear][K], gc[Linear][K];
      for (int l = 0; l < Linear; ++l)
        for (int k = 0; k < K; ++k) {
          c[l][k] = load_part(p + (1 + l * K + k) * size, here);
          gc[l][k] = load_part(g + (1 + l * K + k) * size, here);
        }
      if (shape.polarity)
        for (int64_t t = 0; t < n; ++t) {
          V fitted, d1, d2;
          w.block.shapes(rate, t, fitted, d1, d2);
          fitted = Linear == 2 ? c[0][0] + c[Linear - 1][0] * fitted : c[0][0] * fitted;
          w.magnitudes[t] = fitted < V{} ? splat(T(-1)) : splat(T(1));
          w.s[t] *= w.magnitudes[t];
        }
      w.block.centre_data();
      const auto at = w.block.at(rate);
      for (int64_t t = 0; t < n; ++t) {
        V unused;
        w.block.shapes(rate, t, w.phi[t], w.slope[t], unused);
      }
      const V inverse = T(1) / at.norm;
      V up = load_part(g, here), uc[Linear][K];
      if constexpr (Linear == 1) {
        for (int k = 0; k < K; ++k) up -= at.cross[k] * gc[0][k] * inverse;
      } else {
        for (int k = 0; k < K; ++k) {
          gc[1][k] -= at.phi_mean * gc[0][k];
          up -= at.with_a[k] * gc[0][k] / w.block.total + at.cross[k] * gc[1][k] * inverse;
        }
      }
      up = (rate > low) & (rate < high) ? up / at.second : V{};
      Ints<T> known = up - up == V{};
      for (int k = 0; k < K; ++k) {
        uc[Linear - 1][k] = (gc[Linear - 1][k] - at.cross[k] * up) * inverse;
        if constexpr (Linear == 2) uc[0][k] = (gc[0][k] - at.with_a[k] * up) / w.block.total - at.phi_mean * uc[1][k];
        for (int l = 0; l < Linear; ++l) known &= uc[l][k] - uc[l][k] == V{};
      }
      known &= rate == rate;
      T* out = u + b * parts * size + v;
      store_part<T>(out, known ? up : V{}, here);
      for (int l = 0; l < Linear; ++l)
        for (int k = 0; k < K; ++k) store_part<T>(out + (1 + l * K + k) * size, known ? uc[l][k] : V{}, here);
      for (int64_t t = 0; t < n; ++t) {
        V moved[K];
        for (int k = 0; k < K; ++k) {
          moved[k] = w.phi[t] * uc[Linear - 1][k] + w.slope[t] * c[Linear - 1][k] * up;
          if constexpr (Linear == 2) moved[k] += uc[0][k];
          moved[k] = known ? moved[k] : V{};
        }
        T* at_data = grad_data + K * ((b * n + t) * size + v);
        if constexpr (K == 2)
          store_complex<T>(at_data, moved[0], moved[1], here);
        else
          store_part<T>(at_data, shape.polarity ? moved[0] * w.magnitudes[t] : moved[0], here);
      }
    });
  });
}

}  // namespace

template <class T>
void fit_voxels(const T* data, const T* curves, const T* prior, const T* weight, const double* grid, T* value,
                int8_t* status, int32_t* count, T* residual, const FitShape& shape, double tol, int max_iter,
                int threads) {
  const auto run = shape.linear == 2 ? (shape.complex ? &fit_all<T, 2, 2> : &fit_all<T, 1, 2>)
                                     : (shape.complex ? &fit_all<T, 2, 1> : &fit_all<T, 1, 1>);
  run(data, curves, prior, weight, grid, value, status, count, residual, shape, T(tol), max_iter, threads);
}

template <class T>
void fit_voxels_backward(const T* grad, const T* value, const T* data, const T* curves, const T* prior, const T* weight,
                         T* grad_data, T* u, const FitShape& shape, double low, double high, int threads) {
  const auto run = shape.linear == 2 ? (shape.complex ? &backward_all<T, 2, 2> : &backward_all<T, 1, 2>)
                                     : (shape.complex ? &backward_all<T, 2, 1> : &backward_all<T, 1, 1>);
  run(grad, value, data, curves, prior, weight, grad_data, u, shape, T(low), T(high), threads);
}

template void fit_voxels<float>(const float*, const float*, const float*, const float*, const double*, float*, int8_t*,
                                int32_t*, float*, const FitShape&, double, int, int);
template void fit_voxels<double>(const double*, const double*, const double*, const double*, const double*, double*,
                                 int8_t*, int32_t*, double*, const FitShape&, double, int, int);
template void fit_voxels_backward<float>(const float*, const float*, const float*, const float*, const float*,
                                         const float*, float*, float*, const FitShape&, double, double, int);
template void fit_voxels_backward<double>(const double*, const double*, const double*, const double*, const double*,
                                          const double*, double*, double*, const FitShape&, double, double, int);

}  // namespace pyrecon::PYRECON_ISA
