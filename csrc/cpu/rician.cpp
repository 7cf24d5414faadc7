#include "cpu/rician.hpp"

#include "cpu/bessel.hpp"
#include "cpu/parallel.hpp"
#include "cpu/voxels.hpp"

// Lanes are voxels. Two passes over the images make an iteration: one for phi at the new rate, which tells how the
// factors move with it, one for all sums of the gradient and the Hessian. Written after _reference of
// pyrecon/ops/_rician.py, which says what is computed and why.

namespace pyrecon::PYRECON_ISA {
namespace {

template <class T>
PYRECON_INLINE Vec<T> least(Vec<T> a, Vec<T> b) {
  return b < a ? b : a;
}
template <class T>
PYRECON_INLINE Vec<T> greatest(Vec<T> a, Vec<T> b) {
  return b > a ? b : a;
}
template <class T>
PYRECON_INLINE Vec<T> root(Vec<T> v) {
  for (int64_t l = 0; l < lanes<T>; ++l)
    v[l] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(v[l]))) : T(__builtin_sqrt(v[l]));
  return v;
}
template <class T>
PYRECON_INLINE Vec<T> sign(Vec<T> v) {
  return v > Vec<T>{} ? splat(T(1)) : v < Vec<T>{} ? splat(T(-1)) : v;
}

// Half the objective in units of sigma and its derivatives. Parameters are the factors and, last, the rate; matrices
// are their lower triangles.
template <class T, int Linear>
struct Half {
  static constexpr int size = Linear + 1, entries = size * (size + 1) / 2;
  Vec<T> value, slack, power, mean, spread, gradient[size], hessian[entries], normal[entries];

  static constexpr int at(int i, int k) { return i * (i + 1) / 2 + k; }

  PYRECON_MEMBER void take(Ints<T> better, const Half& other) {
    Vec<T>* mine = &value;
    const Vec<T>* others = &other.value;
    for (uint64_t i = 0; i < sizeof(Half) / sizeof(Vec<T>); ++i) mine[i] = better ? others[i] : mine[i];
  }
};

template <class T, int Linear>
struct Block : Curves<T> {
  typedef Vec<T> V;
  typedef Half<T, Linear> H;
  using Curves<T>::images, Curves<T>::shapes;
  static constexpr int last = Linear, size = Linear + 1;
  V *s, *phi, *d1, *d2;  // images each
  V sigma, weight[size], prior[size];

  // phi and its derivatives at a rate; the mean that an offset takes, and the sum of squares about it.
  PYRECON_MEMBER void at_rate(V rate, V& mean, V& spread) const {
    V sum = {};
    for (int64_t t = 0; t < images; ++t) shapes(rate, t, phi[t], d1[t], d2[t]), sum += phi[t];
    mean = Linear == 2 ? sum / (T(images) + weight[0]) : V{};
    spread = weight[0] + weight[0] * mean * mean;
    for (int64_t t = 0; t < images; ++t) spread += (phi[t] - mean) * (phi[t] - mean);
  }

  // After at_rate; its two results are handed on.
  PYRECON_MEMBER H at(const V* p, V mean, V spread) const {
    H h;
    for (V& v : h.gradient) v = V{};
    for (int i = 0; i < H::entries; ++i) h.hessian[i] = h.normal[i] = V{};
    V squares = {}, near = {}, off = {}, power = {};
    LogProduct<T> logs;
    for (int64_t t = 0; t < images; ++t) {
      const V c = p[last - 1], signal = Linear == 2 ? p[0] + c * phi[t] : c * phi[t], x = s[t];
      const V height = magnitude<T>(signal), z = x * height, rest = x - height;
      const BesselRatio<T> b = bessel_ratio<T>(z);
      const V r = signal - sign<T>(signal) * x * b.a;
      // s^2 A' = s (z A') / |f|, and s^2 / 2 where there is no signal
      const V bent = z < T(1e-3) ? x * x * (T(0.5) - T(3) / T(16) * z * z) : x * b.slope / height, q = T(1) - bent;
      squares += rest * rest, power += signal * signal, near += b.near ? z : V{};
      off += (T(1) + magnitude<T>(rest)) * (T(4) + height);
      logs.multiply(b.square);
      V j[size];
      if constexpr (Linear == 2) j[0] = splat(T(1));
      j[last - 1] = phi[t], j[last] = c * d1[t];
      for (int i = 0; i < size; ++i) {
        h.gradient[i] += r * j[i];
        for (int k = 0; k <= i; ++k) {
          const V both = j[i] * j[k];
          h.normal[H::at(i, k)] += both, h.hessian[H::at(i, k)] += q * both;
        }
      }
      h.hessian[H::at(last, last - 1)] += r * d1[t], h.hessian[H::at(last, last)] += r * c * d2[t];
    }
    // The near ones have log I0 for log I0 - z.
    h.value = T(0.5) * (squares - logs.log()) + near;
    for (int i = 0; i < size; ++i) {
      const V pulled = weight[i] * (p[i] - prior[i]);
      h.value += T(0.5) * pulled * (p[i] - prior[i]), h.gradient[i] += pulled;
      h.normal[H::at(i, i)] += weight[i], h.hessian[H::at(i, i)] += weight[i];
    }
    constexpr T eps = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
    h.slack = eps * (T(8) * off + magnitude<T>(h.value)), h.power = power, h.mean = mean, h.spread = spread;
    return h;
  }

  // Where a step leads whose rate is `rate`, after at_rate there: straight in the mean of the signal and its size about
  // it, which change little along with the rate.
  PYRECON_MEMBER void moved(const V* p, const H& h, const V* step, V rate, V mean, V spread, V* there) const {
    const V change = rate - p[last], scale = root<T>(h.spread / spread);
    const V* along = h.normal + H::at(last, 0);
    if constexpr (Linear == 1) {
      there[0] = (p[0] + step[0] + change * along[0] / h.spread) * scale;
    } else {
      const V b = p[1] + step[1], first = p[0] + step[0] + h.mean * b + change * along[0] / h.normal[0];
      there[1] = (b + change * (along[1] - h.mean * along[0]) / h.spread) * scale;
      there[0] = first - there[1] * mean;
    }
    there[last] = rate;
  }
};

// The step -m^-1 g whose change of rate lies between `low` and `high`.
template <class T, int Linear>
struct Step {
  Vec<T> by[Linear + 1];
  Ints<T> positive, whole;  // the factors' part of m; all of it, or the rate stays at its bound

  PYRECON_MEMBER Step(const Vec<T>* m, const Vec<T>* g, Vec<T> low, Vec<T> high) {
    typedef Vec<T> V;
    const V* row = m + Half<T, Linear>::at(Linear, 0);
    V y[Linear], v[Linear];
    if constexpr (Linear == 1) {
      const V inverse = T(1) / m[0];
      y[0] = g[0] * inverse, v[0] = row[0] * inverse, positive = m[0] > V{};
    } else {
      const V inverse = T(1) / m[0], ratio = m[1] * inverse, pivot = m[2] - m[1] * ratio, under = T(1) / pivot;
      y[1] = (g[1] - ratio * g[0]) * under, y[0] = g[0] * inverse - ratio * y[1];
      v[1] = (row[1] - ratio * row[0]) * under, v[0] = row[0] * inverse - ratio * v[1];
      positive = (m[0] > V{}) & (pivot > V{});
    }
    V slope = g[Linear], curvature = row[Linear];
    for (int i = 0; i < Linear; ++i) slope -= row[i] * y[i], curvature -= row[i] * v[i];
    const V zero = {};
    const Ints<T> held = ((low >= zero) & (slope > zero)) | ((high <= zero) & (slope < zero));
    V change = least<T>(greatest<T>(-slope / magnitude<T>(curvature), low), high);
    change = held | (slope == zero) ? zero : change;
    for (int i = 0; i < Linear; ++i) by[i] = -(y[i] + v[i] * change);
    by[Linear] = change, whole = held | (curvature > zero);
  }
};

template <class T, int Linear>
struct Found {
  Vec<T> p[Linear + 1], residual, count;
  Ints<T> lost, running;
};

template <class T, int Linear>
PYRECON_INLINE Found<T, Linear> minimum(const Block<T, Linear>& block, const Vec<T>* start, T low, T high, T tol,
                                        int max_iter) {
  typedef Vec<T> V;
  typedef Half<T, Linear> H;
  constexpr int last = Linear, size = Linear + 1;
  constexpr T infinite = T(__builtin_inf()), eased = T(1e-3);
  // The root of eps: of the signal's power the objective depends on the square.
  constexpr T vanishing = sizeof(T) == 4 ? T(3.4526698e-4) : T(1.4901161193847656e-8);
  const T eased_end = T(0.1) * T(__builtin_sqrt(tol));
  const V zero = {};
  Found<T, Linear> f;
  V mean, spread;
  for (int i = 0; i < size; ++i) f.p[i] = start[i];
  block.at_rate(f.p[last], mean, spread);
  H here = block.at(f.p, mean, spread);
  Ints<T> running = here.value - here.value == zero;
  f.lost = ~running;
  V damping = {}, before = splat(infinite);
  V size_before = splat(infinite), idle = zero;
  f.residual = splat(infinite), f.count = zero;
  for (int i = 0; i < max_iter; ++i) {
    const Ints<T> gone = running & (here.power < vanishing) & ~(block.weight[0] > zero);
    f.lost |= gone, running &= ~gone;
    for (int k = 0; k < last; ++k) f.p[k] = gone ? zero : f.p[k];  // the likeliest signal there is none
    const V rate = f.p[last], down = greatest<T>(low - rate, T(-0.75) * rate), up = least<T>(high - rate, T(3) * rate);
    V m[H::entries], safe[H::entries];
    for (int k = 0; k < H::entries; ++k) m[k] = here.hessian[k], safe[k] = here.normal[k];
    for (int k = 0; k < size; ++k) {
      const V more = damping * here.normal[H::at(k, k)];
      m[H::at(k, k)] += more, safe[H::at(k, k)] += more;
    }
    Step<T, Linear> step(m, here.gradient, down, up);
    if (any<T>(running & ~step.positive)) {
      const Step<T, Linear> other(safe, here.gradient, down, up);
      for (int k = 0; k < size; ++k) step.by[k] = step.positive ? step.by[k] : other.by[k];
    }
    const Ints<T> free = damping == zero, exact = step.positive & step.whole & free;
    V scale = splat(T(1)), relative = magnitude<T>(step.by[last]) / rate;
    for (int k = 0; k < last; ++k) scale = greatest<T>(scale, magnitude<T>(f.p[k]));
    for (int k = 0; k < last; ++k) relative = greatest<T>(relative, magnitude<T>(step.by[k]) / scale);
    const Ints<T> rounding = exact & (before < eased) & (relative >= T(0.5) * before);
    const Ints<T> ends = (exact & (relative <= eased_end)) | (free & (relative <= tol)) | rounding;
    f.count = running ? f.count + T(1) : f.count;
    f.residual = running ? relative : f.residual;
    V there[size], to = least<T>(greatest<T>(rate + step.by[last], splat(low)), splat(high));
    block.at_rate(to, mean, spread);
    block.moved(f.p, here, step.by, to, mean, spread, there);
    for (int k = 0; k < size; ++k) f.p[k] = running & ends & ~rounding ? there[k] : f.p[k];
    running &= ~ends;
    if (!any<T>(running)) break;
    const H next = block.at(there, mean, spread);
    const Ints<T> better = running & (next.value <= here.value + here.slack);
    const Ints<T> unfelt = better & (here.value - next.value <= here.slack) & (relative >= T(0.5) * size_before);
    idle = unfelt ? idle + T(1) : zero, size_before = relative;
    for (int k = 0; k < size; ++k) f.p[k] = better ? there[k] : f.p[k];
    here.take(better, next);
    before = better & exact ? relative : splat(infinite);
    const V less = damping > T(0.01) ? T(0.1) * damping : zero;
    damping = better ? less : greatest<T>(T(10) * damping, splat(T(0.1)));
    running &= idle < T(3);  // on a plateau
  }
  for (int k = 0; k < size; ++k) f.lost |= ~(f.p[k] - f.p[k] == zero);
  f.p[last] = f.lost ? splat(T(__builtin_nan(""))) : f.p[last];
  f.running = running;
  return f;
}

// Memory of one thread, and what it works on.
template <class T, int Linear>
struct Worker {
  typedef Vec<T> V;
  static constexpr int parts = 1 + Linear;
  const FitShape& shape;
  Block<T, Linear> block;

  static int64_t memory(int64_t images) { return (rows + 4) * images * lanes<T>; }

  Worker(T* memory, const FitShape& shape) : shape(shape) {
    const int64_t n = shape.images;
    V* vectors = reinterpret_cast<V*>(memory);
    block.images = n, block.table = vectors, block.s = vectors + rows * n, block.phi = block.s + n;
    block.d1 = block.phi + n, block.d2 = block.d1 + n;
  }

  PYRECON_MEMBER V of_voxel(const T* all, int64_t b, int64_t v, int64_t count) const {
    return load_part(all + b * shape.voxels + v, count);
  }

  // The rate comes first in memory and last in p.
  PYRECON_MEMBER void parameters(const T* all, int64_t b, int64_t v, int64_t count, V* p) const {
    const T* first = all + b * parts * shape.voxels + v;
    p[Linear] = load_part(first, count);
    for (int i = 0; i < Linear; ++i) p[i] = load_part(first + (1 + i) * shape.voxels, count);
  }

  PYRECON_MEMBER void put(T* all, int64_t b, int64_t v, int64_t count, const V* p) const {
    T* first = all + b * parts * shape.voxels + v;
    store_part<T>(first, p[Linear], count);
    for (int i = 0; i < Linear; ++i) store_part<T>(first + (1 + i) * shape.voxels, p[i], count);
  }

  PYRECON_MEMBER void take(const T* data, const T* curves, const T* prior, const T* weight, const T* noise, int64_t b,
                           int64_t v, int64_t count, bool fresh) {
    const T* table = curves + b * shape.per_sample;
    if (shape.per_voxel)
      block.Curves<T>::take(table, shape.voxels, v, count);
    else if (fresh)
      block.share(table);
    block.sigma = of_voxel(noise, b, v, count);
    const V inverse = T(1) / block.sigma, w = weight ? of_voxel(weight, b, v, count) : V{};
    for (int64_t t = 0; t < shape.images; ++t) block.s[t] = of_voxel(data, b * shape.images + t, v, count) * inverse;
    for (int i = 0; i <= Linear; ++i) block.weight[i] = w, block.prior[i] = V{};
    block.weight[Linear] = w * inverse * inverse;  // in this order: the square may be no number
    if (!prior) return;
    parameters(prior, b, v, count, block.prior);
    for (int i = 0; i < Linear; ++i) block.prior[i] *= inverse;
  }
};

template <class T, int Linear>
void fit_all(const T* data, const T* curves, const T* prior, const T* weight, const T* noise, T* value, int8_t* status,
             int32_t* count, T* residual, const FitShape& shape, T low, T high, T tol, int max_iter, int threads) {
  typedef Vec<T> V;
  constexpr int64_t L = lanes<T>;
  const int64_t size = shape.voxels, all = shape.batch * ((size + L - 1) / L);
  const int shares = share_count(threads, all, 4);
  const int64_t each = (Worker<T, Linear>::memory(shape.images) + 15) / 16 * 16;
  const Scratch<T> memory(each * shares);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    Worker<T, Linear> w(memory.get() + share * each, shape);
    each_block<T>(shape, begin, end, [&](int64_t b, int64_t v, int64_t here, bool fresh) {
      w.take(data, curves, prior, weight, noise, b, v, here, fresh);
      V p[Linear + 1];
      w.parameters(value, b, v, here, p);
      for (int i = 0; i < Linear; ++i) p[i] /= w.block.sigma;
      Found<T, Linear> f = minimum<T, Linear>(w.block, p, low, high, tol, max_iter);
      for (int i = 0; i < Linear; ++i) f.p[i] *= w.block.sigma;
      w.put(value, b, v, here, f.p);
      store_part<T>(residual + b * size + v, f.residual, here);
      for (int64_t l = 0; l < here; ++l) {
        status[b * size + v + l] = f.lost[l] ? nonfinite : f.running[l] ? limit_reached : converged;
        count[b * size + v + l] = static_cast<int32_t>(f.count[l]);
      }
    });
  });
}

template <class T, int Linear>
void backward_all(const T* grad, const T* value, const T* data, const T* curves, const T* prior, const T* weight,
                  const T* noise, T* grad_data, T* grad_noise, T* u, const FitShape& shape, T low, T high,
                  int threads) {
  typedef Vec<T> V;
  typedef Half<T, Linear> H;
  constexpr int64_t L = lanes<T>;
  constexpr int last = Linear;
  const int64_t size = shape.voxels, n = shape.images, all = shape.batch * ((size + L - 1) / L);
  const int shares = share_count(threads, all, 16);
  const int64_t each = (Worker<T, Linear>::memory(n) + 15) / 16 * 16;
  const Scratch<T> memory(each * shares);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    Worker<T, Linear> w(memory.get() + share * each, shape);
    each_block<T>(shape, begin, end, [&](int64_t b, int64_t v, int64_t here, bool fresh) {
      w.take(data, curves, prior, weight, noise, b, v, here, fresh);
      V p[last + 1], g[last + 1], mean, spread;
      w.parameters(value, b, v, here, p), w.parameters(grad, b, v, here, g);
      const V zero = {}, sigma = w.block.sigma, inverse = T(1) / sigma;
      for (int i = 0; i < last; ++i) p[i] *= inverse, g[i] *= -sigma;
      const Ints<T> free = (p[last] > low) & (p[last] < high);
      g[last] = free ? -g[last] : zero;
      w.block.at_rate(p[last], mean, spread);
      H h = w.block.at(p, mean, spread);
      for (int k = 0; k <= last; ++k) {
        V& entry = h.hessian[H::at(last, k)];
        entry = free ? entry : splat(T(k == last));
      }
      const V endless = splat(T(__builtin_inf()));
      Step<T, Linear> step(h.hessian, g, -endless, endless);
      Ints<T> known = step.positive & step.whole;
      for (const V& by : step.by) known &= by - by == zero;
      for (V& by : step.by) by = known ? by : zero;
      V of_noise = {};
      for (int64_t t = 0; t < n; ++t) {
        const V phi = w.block.phi[t], c = p[last - 1], x = w.block.s[t];
        const V signal = Linear == 2 ? p[0] + c * phi : c * phi;
        V moved = phi * step.by[last - 1] + c * w.block.d1[t] * step.by[last];
        if constexpr (Linear == 2) moved += step.by[0];
        moved *= sign<T>(signal);
        const BesselRatio<T> r = bessel_ratio<T>(x * magnitude<T>(signal));
        of_noise += moved * x * r.slope;
        store_part<T>(grad_data + (b * n + t) * size + v, known ? moved * (r.a + r.slope) * inverse : zero, here);
      }
      store_part<T>(grad_noise + b * size + v, known ? T(-2) * of_noise * inverse : zero, here);
      for (int i = 0; i < last; ++i) step.by[i] *= inverse;
      step.by[last] = step.by[last] * inverse * inverse;
      for (V& by : step.by) by = known ? by : zero;
      w.put(u, b, v, here, step.by);
    });
  });
}

}  // namespace

template <class T>
void fit_rician(const T* data, const T* curves, const T* prior, const T* weight, const T* noise, T* value,
                int8_t* status, int32_t* count, T* residual, const FitShape& shape, double low, double high, double tol,
                int max_iter, int threads) {
  const auto run = shape.linear == 2 ? &fit_all<T, 2> : &fit_all<T, 1>;
  run(data, curves, prior, weight, noise, value, status, count, residual, shape, T(low), T(high), T(tol), max_iter,
      threads);
}

template <class T>
void fit_rician_backward(const T* grad, const T* value, const T* data, const T* curves, const T* prior, const T* weight,
                         const T* noise, T* grad_data, T* grad_noise, T* u, const FitShape& shape, double low,
                         double high, int threads) {
  const auto run = shape.linear == 2 ? &backward_all<T, 2> : &backward_all<T, 1>;
  run(grad, value, data, curves, prior, weight, noise, grad_data, grad_noise, u, shape, T(low), T(high), threads);
}

template <class T>
void rician_cleared(const T* data, const T* noise, T* cleared, int64_t batch, int64_t images, int64_t voxels,
                    int threads) {
  typedef Vec<T> V;
  const int64_t blocks = (voxels + lanes<T> - 1) / lanes<T>;
  parallel_for(threads, batch * images * blocks, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, v = i % blocks * lanes<T>, here = voxels - v;
      const V sigma = load_part(noise + row / images * voxels + v, here), s = load_part(data + row * voxels + v, here);
      const V ratio = sigma / s, left = positive<T>(T(1) - T(2) * ratio * ratio);
      const Ints<T> valid = (s >= V{}) & (sigma > V{}) & (sigma - sigma == V{});
      store_part<T>(cleared + row * voxels + v, valid ? s * root<T>(left) : splat(T(__builtin_nan(""))), here);
    }
  });
}

template <class T>
void bessel_ratios(const T* z, T* ratio, T* slope, T* log, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes<T>) {
    const Vec<T> here = load_part(z + i, n - i);
    const BesselRatio<T> r = bessel_ratio<T>(here);
    LogProduct<T> product;
    product.multiply(r.square);
    store_part<T>(ratio + i, r.a, n - i), store_part<T>(slope + i, r.slope, n - i);
    store_part<T>(log + i, T(0.5) * product.log() - (r.near ? here : Vec<T>{}), n - i);
  }
}

#define PYRECON_RICIAN(T)                                                                                            \
  template void rician_cleared<T>(const T*, const T*, T*, int64_t, int64_t, int64_t, int);                           \
  template void fit_rician<T>(const T*, const T*, const T*, const T*, const T*, T*, int8_t*, int32_t*, T*,           \
                              const FitShape&, double, double, double, int, int);                                    \
  template void fit_rician_backward<T>(const T*, const T*, const T*, const T*, const T*, const T*, const T*, T*, T*, \
                                       T*, const FitShape&, double, double, int);                                    \
  template void bessel_ratios<T>(const T*, T*, T*, T*, int64_t);
PYRECON_RICIAN(float)
PYRECON_RICIAN(double)

}  // namespace pyrecon::PYRECON_ISA
