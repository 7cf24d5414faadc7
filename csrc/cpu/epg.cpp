#include "cpu/epg.hpp"

#include "cpu/lookup.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

// Lanes are voxels, in double precision whatever the data: near B1 = 1 the signal changes with the square of 1 - B1,
// and single precision would leave a few thousandths of it. Written after pyrecon/ops/_epg.py, which says what is
// computed. A lane whose voxel has converged takes the next one from a queue, so that none waits for the slowest of its
// vector.

namespace pyrecon::PYRECON_ISA {
namespace {

typedef Vec<double> V;
typedef Ints<double> Mask;
constexpr int64_t L = lanes<double>;
constexpr int rates = 24, flips = 16, points = rates * flips;
constexpr int converged = 0, limit_reached = 1, nonfinite = 3;
constexpr double start_r1 = 1, eased = 1e-3, rounding_level = 1e-13, infinite = __builtin_inf();

PYRECON_INLINE V exponential(V x) {
  for (int64_t l = 0; l < L; ++l) x[l] = __builtin_exp(x[l]);
  return x;
}

PYRECON_INLINE bool any(Mask mask) {
  int64_t all = 0;
  for (int64_t l = 0; l < L; ++l) all |= mask[l];
  return all != 0;
}

PYRECON_INLINE V magnitude(V x) { return x < V{} ? -x : x; }
PYRECON_INLINE V least(V a, V b) { return b < a ? b : a; }
PYRECON_INLINE V most(V a, V b) { return b > a ? b : a; }
PYRECON_INLINE Mask finite(V x) { return x - x == V{}; }

// --- the signal ------------------------------------------------------------------------------------------------------
// C is 1 for the signal alone, 6 with its derivatives: in tau R2, in B1; R2 R2, R2 B1, B1 B1.
template <int C>
struct Order {
  V plus[C], minus[C], z[C];
};

struct Pulse {
  V cos, sin, kept, stored;  // half of what decay leaves of F, and what it leaves of Z
  double angle;
};

// A pulse and the decay after it.
template <int C>
PYRECON_INLINE void turn(const Order<C>& from, const Pulse& p, Order<C>& to) {
  V d[C], z[C], sums[C];
  for (int i = 0; i < C; ++i) {
    const V apart = from.plus[i] - from.minus[i];
    sums[i] = from.plus[i] + from.minus[i];
    d[i] = p.cos * apart + p.sin * from.z[i];
    z[i] = p.cos * from.z[i] - p.sin * apart;
  }
  if constexpr (C == 6) {  // the derivative of a turn is a quarter turn
    const double a = p.angle, twice = 2 * a, square = a * a;
    d[2] += a * z[0], z[2] -= a * d[0];
    d[4] += a * z[1], z[4] -= a * d[1];
    d[5] += twice * z[2] + square * d[0], z[5] += square * z[0] - twice * d[2];
  }
  for (int i = 0; i < C; ++i) {
    to.plus[i] = sums[i] + d[i], to.minus[i] = sums[i] - d[i];
    to.z[i] = p.stored * z[i];
  }
  for (int side = 0; side < 2; ++side) {
    V* x = side ? to.minus : to.plus;
    if constexpr (C == 6) {
      const V first = x[1] - x[0];
      x[3] = (x[3] - x[1]) - first, x[4] -= x[2], x[1] = first;
    }
    for (int i = 0; i < C; ++i) x[i] *= p.kept;
  }
}

int64_t orders_of(int64_t echoes) { return (echoes + 1) / 2 + 1; }

// phi of every echo, C vectors each.
template <int C>
__attribute__((noinline)) void train(V rate, V b1, V tau, V r1, const double* angles, int64_t echoes, Order<C>* state,
                                     V* phi) {
  Pulse p = {};
  p.kept = 0.5 * exponential(-tau * rate), p.stored = exponential(-tau * r1);
  for (int64_t j = 0; j < orders_of(echoes); ++j)
    for (int i = 0; i < C; ++i) state[j].plus[i] = state[j].minus[i] = state[j].z[i] = V{};
  state[0].plus[0] = splat(1.0);
  for (int64_t n = 0; n < echoes; ++n) {
    if (n == 0 || angles[n] != angles[n - 1]) {  // mostly equal, and a sine costs as much as a pulse
      p.angle = angles[n];
      for (int64_t l = 0; l < L; ++l)
        p.cos[l] = __builtin_cos(b1[l] * p.angle), p.sin[l] = __builtin_sin(b1[l] * p.angle);
    }
    const int64_t orders = n + 1 < echoes - n ? n + 1 : echoes - n;  // no others come back in time
    V shifted[C];
    for (int64_t j = 0; j < orders; ++j) {
      Order<C> to;
      turn<C>(state[j], p, to);
      for (int i = 0; i < C; ++i) {
        if (j == 0)
          phi[n * C + i] = shifted[i] = to.minus[i];
        else
          state[j - 1].minus[i] = to.minus[i];
        state[j].plus[i] = shifted[i], state[j].z[i] = to.z[i], shifted[i] = to.plus[i];
      }
    }
    for (int i = 0; i < C; ++i) state[orders].plus[i] = shifted[i], state[orders - 1].minus[i] = V{};
  }
  if constexpr (C == 6)  // the derivatives so far are in tau R2
    for (int64_t n = 0; n < echoes; ++n) {
      V* x = phi + n * C;
      x[1] *= tau, x[3] *= tau * tau, x[4] *= tau;
    }
}

// --- the objective ---------------------------------------------------------------------------------------------------
template <int K>
struct Voxel {  // of every lane; echoes x K numbers of data follow
  V tau, r1, weight, drawn, target[2], factor0[K], b1_low, b1_high, rate[2], b1[2];  // NaN: no second start
};

template <int K>
struct At {
  V value, size, slope[2], curvature[3], factor[K], norm, cross[2][K];
};

template <int K>
PYRECON_INLINE V* data_of(Voxel<K>* voxel) {
  return reinterpret_cast<V*>(voxel + 1);
}
template <int K>
PYRECON_INLINE const V* data_of(const Voxel<K>* voxel) {
  return reinterpret_cast<const V*>(voxel + 1);
}

template <int K>
PYRECON_INLINE At<K> objective(const Voxel<K>* voxel, V rate, V b1, const V* phi, int64_t echoes) {
  const V* s = data_of(voxel);
  V n = voxel->weight, along[2] = {}, bent[3] = {}, b[K], seen[2][K] = {}, far[3][K] = {};
  for (int k = 0; k < K; ++k) b[k] = voxel->weight * voxel->factor0[k];
  for (int64_t t = 0; t < echoes; ++t) {
    const V* x = phi + 6 * t;
    n += x[0] * x[0], along[0] += x[0] * x[1], along[1] += x[0] * x[2];
    bent[0] += x[1] * x[1] + x[0] * x[3], bent[1] += x[1] * x[2] + x[0] * x[4], bent[2] += x[2] * x[2] + x[0] * x[5];
    for (int k = 0; k < K; ++k) {
      const V y = s[t * K + k];
      b[k] += x[0] * y, seen[0][k] += x[1] * y, seen[1][k] += x[2] * y;
      for (int i = 0; i < 3; ++i) far[i][k] += x[3 + i] * y;
    }
  }
  At<K> r;
  const V off[2] = {rate - voxel->target[0], b1 - voxel->target[1]}, weights[2] = {voxel->weight, voxel->drawn};
  V power = {}, fitted = {}, crossed[3] = {}, first[2] = {}, second[3] = {};
  for (int k = 0; k < K; ++k) {
    const V c = r.factor[k] = b[k] / n;
    power += c * c, fitted += b[k] * c;
    for (int i = 0; i < 2; ++i) {
      r.cross[i][k] = 2 * along[i] * c - seen[i][k];
      first[i] += c * seen[i][k];
    }
    crossed[0] += r.cross[0][k] * r.cross[0][k], crossed[1] += r.cross[0][k] * r.cross[1][k];
    crossed[2] += r.cross[1][k] * r.cross[1][k];
    for (int i = 0; i < 3; ++i) second[i] += c * far[i][k];
  }
  for (int i = 0; i < 2; ++i) r.slope[i] = power * along[i] - first[i] + weights[i] * off[i];
  for (int i = 0; i < 3; ++i) r.curvature[i] = power * bent[i] - second[i] - crossed[i] / n;
  r.curvature[0] += weights[0], r.curvature[2] += weights[1];
  const V pulled = 0.5 * (weights[0] * off[0] * off[0] + weights[1] * off[1] * off[1]);
  r.value = pulled - 0.5 * fitted, r.size = pulled + 0.5 * fitted, r.norm = n;
  r.size = r.size > V{} ? r.size : splat(1.0);
  return r;
}

struct Step {
  V x, y, expected;
};

// The step in a box around 0 that makes the quadratic model least, convex or not; `expected` is relative to at.size.
template <int K>
PYRECON_INLINE Step least_in_box(const At<K>& at, const V (&across)[2], const V (&along)[2]) {
  const V scale = 1.0 / at.size;  // products of curvatures would overflow
  const V g = at.slope[0] * scale, f = at.slope[1] * scale;
  const V rr = at.curvature[0] * scale, rb = at.curvature[1] * scale, bb = at.curvature[2] * scale;
  const auto model = [&](V x, V y) { return x * (g + 0.5 * rr * x + rb * y) + y * (f + 0.5 * bb * y); };
  const auto on_edge = [](V slope, V bend, V lower, V upper) {
    const V flat = least(most(-slope / bend, lower), upper);
    const V end = upper * (slope + 0.5 * bend * upper) < lower * (slope + 0.5 * bend * lower) ? upper : lower;
    return bend > V{} ? flat : end;
  };
  Step s = {{}, {}, splat(infinite)};
  const auto look = [&](V x, V y) {
    const V value = model(x, y);
    const Mask better = value < s.expected;
    s.x = better ? x : s.x, s.y = better ? y : s.y, s.expected = better ? value : s.expected;
  };
  for (const V y : along) look(on_edge(g + rb * y, rr, across[0], across[1]), y);
  for (const V x : across) look(x, on_edge(f + rb * x, bb, along[0], along[1]));
  const V det = rr * bb - rb * rb, p = (rb * f - bb * g) / det, q = (rb * g - rr * f) / det;
  const Mask inside =
      (rr > V{}) & (det > V{}) & (p >= across[0]) & (p <= across[1]) & (q >= along[0]) & (q <= along[1]);
  s.x = inside ? p : s.x, s.y = inside ? q : s.y, s.expected = inside ? model(p, q) : s.expected;
  return s;
}

// p + step, which is a bound exactly where the step reaches it.
PYRECON_INLINE V moved(V p, V step, V low, V high) {
  return step >= high - p ? high : step <= low - p ? low : p + step;
}

// --- one thread ------------------------------------------------------------------------------------------------------
template <class T, int K>
struct Source {
  const T *data, *prior, *weight;
  const double *spacing, *angles, *r1, *b1;
  const EpgShape& shape;

  int64_t fitted() const { return b1 ? 1 : 2; }
  int64_t parts() const { return fitted() + K; }

  // Voxels [v, v + here) of sample b; the last one repeats.
  void read(int64_t b, int64_t v, int64_t here, Voxel<K>* to) const {
    const int64_t size = shape.voxels, n = shape.echoes;
    V* s = data_of(to);
    for (int64_t l = 0; l < L; ++l) {
      const int64_t at = v + (l < here ? l : here - 1);
      const T* from = data + (b * n * size + at) * K;
      for (int64_t t = 0; t < n; ++t)
        for (int k = 0; k < K; ++k) s[t * K + k][l] = from[t * size * K + k];
      to->tau[l] = spacing[b * shape.spacing_step];
      to->r1[l] = r1[b * shape.r1_step + at * shape.r1_per_voxel];
      to->weight[l] = weight ? weight[b * size + at] : T(0);
      to->drawn[l] = b1 ? 0.0 : to->weight[l];
      const auto target = [&](int64_t i) { return prior ? double(prior[(b * parts() + i) * size + at]) : 0.0; };
      to->target[0][l] = target(0), to->target[1][l] = b1 ? 0.0 : target(1);
      for (int k = 0; k < K; ++k) to->factor0[k][l] = target(fitted() + k);
      const double known = b1 ? b1[b * shape.b1_step + at * shape.b1_per_voxel] : 0.0;
      to->b1_low[l] = b1 ? known : shape.b1_low, to->b1_high[l] = b1 ? known : shape.b1_high;
    }
  }
};

// The trains of the grid, where a sample's voxels share them.
struct Grid {
  const double* nodes;
  double *phi, *norm;  // points x echoes, points

  static int64_t memory(int64_t echoes) { return points * (echoes + 1); }

  void start(double tau, double r1, const double* angles, int64_t echoes, Order<1>* state, V* scratch) const {
    for (int g = 0; g < points; g += static_cast<int>(L)) {
      V rate, b1;
      for (int64_t l = 0; l < L; ++l) rate[l] = nodes[(g + l) % rates], b1[l] = nodes[rates + (g + l) / rates];
      train<1>(rate, b1, splat(tau), splat(r1), angles, echoes, state, scratch);
      for (int64_t l = 0; l < L; ++l) {
        double sum = 0;
        for (int64_t t = 0; t < echoes; ++t) {
          const double x = phi[(g + l) * echoes + t] = scratch[t][l];
          sum += x * x;
        }
        norm[g + l] = sum;
      }
    }
  }
};

template <class T, int K>
struct Worker {
  const Source<T, K>& source;
  int64_t echoes;
  Order<6>* state;
  V* phi;
  Voxel<K>*voxel, *queue;
  Grid grid;

  static int64_t voxel_size(int64_t echoes) { return sizeof(Voxel<K>) / sizeof(double) + echoes * K * L; }
  static int64_t memory(int64_t echoes) {  // a multiple of a vector
    const int64_t all = orders_of(echoes) * int64_t(sizeof(Order<6>) / sizeof(double)) + 6 * echoes * L +
                        2 * voxel_size(echoes) + Grid::memory(echoes);
    return (all + 15) / 16 * 16;
  }

  Worker(double* at, const Source<T, K>& source, const double* nodes) : source(source), echoes(source.shape.echoes) {
    state = reinterpret_cast<Order<6>*>(at), at += orders_of(echoes) * int64_t(sizeof(Order<6>) / sizeof(double));
    phi = reinterpret_cast<V*>(at), at += 6 * echoes * L;
    voxel = reinterpret_cast<Voxel<K>*>(at), at += voxel_size(echoes);
    queue = reinterpret_cast<Voxel<K>*>(at), at += voxel_size(echoes);
    grid = {nodes, at, at + points * echoes};
  }

  Order<1>* small_state() const { return reinterpret_cast<Order<1>*>(state); }

  At<K> at(const Voxel<K>* of, V rate, V b1) const {
    train<6>(rate, b1, of->tau, of->r1, source.angles, echoes, state, phi);
    return objective<K>(of, rate, b1, phi, echoes);
  }

  void start_sample(int64_t b) const {
    const EpgShape& shape = source.shape;
    if (source.b1) return;
    const double r1 = shape.r1_per_voxel ? start_r1 : source.r1[b * shape.r1_step];
    grid.start(source.spacing[b * shape.spacing_step], r1, source.angles, echoes, small_state(), phi);
  }

  // Sets R2 and B1 of the queue to the two least of the minima along B1, each the least along R2; returns where there
  // is one.
  Mask start_queue() const {
    const V* s = data_of(queue);
    V usual = {};
    for (int64_t i = 0; i < echoes * K; ++i) usual += s[i] - s[i];
    if (!any(usual == V{})) return Mask{};  // what a mask leaves out
    const int wanted = source.b1 ? 1 : flips;
    const double spread = __builtin_log(grid.nodes[1] / grid.nodes[0]);
    V value[flips + 2], rate[flips];
    value[0] = value[wanted + 1] = splat(infinite);
    for (int f = 0; f < wanted; ++f) {
      V sums[rates];
      along_rates(f, sums);
      V lowest = splat(infinite), before = {}, after = {}, node = {};
      for (int r = 0; r < rates; ++r) {
        const Mask better = sums[r] < lowest;
        lowest = better ? sums[r] : lowest, node = better ? splat(double(r)) : node;
        before = better ? r > 0 ? sums[r - 1] : splat(infinite) : before;
        after = better ? r + 1 < rates ? sums[r + 1] : splat(infinite) : after;
      }
      const V bend = before - 2 * lowest + after, tilt = before - after;
      const Mask curved = (bend > V{}) & finite(bend) & finite(tilt);
      const V shift = curved ? 0.5 * tilt / bend : V{};
      value[f + 1] = curved ? lowest - 0.25 * tilt * shift : lowest;
      for (int64_t l = 0; l < L; ++l) rate[f][l] = grid.nodes[int(node[l])];
      rate[f] *= exponential(spread * shift);
    }
    V best[2] = {splat(infinite), splat(infinite)};
    for (int i = 0; i < 2; ++i) queue->rate[i] = queue->b1[i] = splat(__builtin_nan(""));
    for (int f = 0; f < wanted; ++f) {
      const V here = value[f + 1], b1 = source.b1 ? queue->b1_low : splat(grid.nodes[rates + f]);
      const Mask minimum = (here <= value[f]) & (here < value[f + 2]);
      const Mask first = minimum & (here < best[0]), second = minimum & ~first & (here < best[1]);
      best[1] = first ? best[0] : second ? here : best[1];
      queue->rate[1] = first ? queue->rate[0] : second ? rate[f] : queue->rate[1];
      queue->b1[1] = first ? queue->b1[0] : second ? b1 : queue->b1[1];
      best[0] = first ? here : best[0];
      queue->rate[0] = first ? rate[f] : queue->rate[0], queue->b1[0] = first ? b1 : queue->b1[0];
    }
    return finite(best[0]);
  }

  // Half the objective less a constant, at a B1 of the grid or the one that is known.
  void along_rates(int f, V (&sums)[rates]) const {
    constexpr int wide = 4;  // rates at a time, which share the loads of the data
    const V* s = data_of(queue);
    const V b1 = source.b1 ? queue->b1_low : splat(grid.nodes[rates + f]), aside = b1 - queue->target[1];
    const V pulled = queue->drawn * aside * aside;
    for (int r = 0; r < rates; r += wide) {
      V seen[wide][K], norm[wide];
      for (int i = 0; i < wide; ++i)
        for (int k = 0; k < K; ++k) seen[i][k] = queue->weight * queue->factor0[k];
      if (source.b1) {
        for (int i = 0; i < wide; ++i) {
          train<1>(splat(grid.nodes[r + i]), b1, queue->tau, queue->r1, source.angles, echoes, small_state(), phi);
          norm[i] = V{};
          for (int64_t t = 0; t < echoes; ++t) {
            norm[i] += phi[t] * phi[t];
            for (int k = 0; k < K; ++k) seen[i][k] += phi[t] * s[t * K + k];
          }
        }
      } else {
        const double* x = grid.phi + (f * rates + r) * echoes;
        for (int i = 0; i < wide; ++i) norm[i] = splat(grid.norm[f * rates + r + i]);
        for (int64_t t = 0; t < echoes; ++t)
          for (int k = 0; k < K; ++k) {
            const V y = s[t * K + k];
            for (int i = 0; i < wide; ++i) seen[i][k] += x[i * echoes + t] * y;
          }
      }
      for (int i = 0; i < wide; ++i) {
        const V off = grid.nodes[r + i] - queue->target[0];
        V fitted = {};
        for (int k = 0; k < K; ++k) fitted += seen[i][k] * seen[i][k];
        sums[r + i] = 0.5 * (queue->weight * off * off + pulled - fitted / (norm[i] + queue->weight));
      }
    }
  }

  void move(int64_t from, int64_t to) const {
    const double* a = reinterpret_cast<const double*>(queue) + from;
    double* b = reinterpret_cast<double*>(voxel) + to;
    for (int64_t i = 0, n = voxel_size(echoes) / L; i < n; ++i) b[i * L] = a[i * L];
  }
};

template <class T, int K>
struct Results {
  T* value;
  int8_t* status;
  int32_t* count;
  T* residual;
};

template <class T, int K>
void fit_all(const Source<T, K>& source, const double* nodes, const Results<T, K>& out, double tol, int max_iter,
             int threads) {
  const EpgShape& shape = source.shape;
  const int64_t size = shape.voxels, blocks = (size + L - 1) / L, all = shape.batch * blocks;
  const int shares = share_count(threads, all, 4);
  const int64_t each = Worker<T, K>::memory(shape.echoes), parts = source.parts();
  const Scratch<double> memory(each * shares);
  const double eased_end = 0.1 * __builtin_sqrt(tol);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    const Worker<T, K> w(memory.get() + share * each, source, nodes);
    Voxel<K>* voxel = w.voxel;
    int64_t next = begin, sample = -1, ahead = 0, waiting = 0, queued[L], held[L];
    Mask ready = {}, running = {}, fresh = {};
    At<K> at;
    __builtin_memset(static_cast<void*>(&at), 0, sizeof at);
    __builtin_memset(static_cast<void*>(voxel), 0, Worker<T, K>::voxel_size(shape.echoes) * sizeof(double));
    V rate = splat(1.0), b1 = rate, trust = rate, last = rate, residual = rate, count = {};
    struct Kept {  // what the first of two starts came to
      double value, p[2 + K], count, residual;
      bool limit;
    } kept[L];

    const auto put = [&](int64_t index, bool lost, const Kept& found) {
      const int64_t b = index / size, v = index % size;
      for (int64_t i = 0; i < parts; ++i)
        out.value[(b * parts + i) * size + v] = T(lost ? __builtin_nan("") : found.p[i]);
      out.status[index] = lost ? nonfinite : found.limit ? limit_reached : converged;
      out.count[index] = static_cast<int32_t>(found.count), out.residual[index] = T(found.residual);
    };
    const Kept none = {infinite, {}, 0, infinite, false};
    // The next voxel that has a start, into a lane; false where there is none left.
    const auto refill = [&](int64_t lane) {
      for (;;) {
        for (; ahead < waiting; ++ahead) {
          if (!ready[ahead]) {
            put(queued[ahead], true, none);
            continue;
          }
          w.move(ahead, lane);
          held[lane] = queued[ahead++];
          kept[lane] = none;
          return true;
        }
        if (next == end) return false;
        const int64_t b = next / blocks, v = next % blocks * L;
        if (b != sample && (sample < 0 || shape.spacing_step || shape.r1_step)) w.start_sample(b);
        sample = b, waiting = size - v < L ? size - v : L, ahead = 0, ++next;
        source.read(b, v, waiting, w.queue);
        ready = w.start_queue();
        for (int64_t l = 0; l < waiting; ++l) queued[l] = b * size + v + l;
      }
    };

    const auto begin_at = [&](int64_t lane, double start, double start_b1) {
      running[lane] = fresh[lane] = -1;
      rate[lane] = start, b1[lane] = start_b1;
      trust[lane] = 0.5, last[lane] = residual[lane] = infinite, count[lane] = 0;
    };
    Mask idle = ~Mask{};
    for (;;) {
      for (int64_t l = 0; l < L; ++l) {
        if (!idle[l] || !refill(l)) continue;
        idle[l] = 0;
        begin_at(l, voxel->rate[0][l], voxel->b1[0][l]);
      }
      if (!any(running)) break;
      const V low = splat(shape.low), high = splat(shape.high), reach = trust * rate, reach_b1 = trust * b1;
      const V across[2] = {most(low - rate, -reach), least(high - rate, reach)};
      const V along[2] = {most(voxel->b1_low - b1, -reach_b1), least(voxel->b1_high - b1, reach_b1)};
      const Step step = least_in_box(at, across, along);
      const V new_rate = fresh ? rate : moved(rate, step.x, low, high);
      const V new_b1 = fresh ? b1 : moved(b1, step.y, voxel->b1_low, voxel->b1_high);
      const V x = magnitude(step.x), y = magnitude(step.y), extent = most(x / rate, y / b1);
      const Mask newton = (x < reach) & (y < reach_b1);
      const At<K> there = w.at(voxel, new_rate, new_b1);
      const Mask blind = -step.expected <= rounding_level;
      const V ratio = blind & finite(there.value) ? splat(1.0) : (at.value - there.value) / (-step.expected * at.size);
      const Mask rounding = ~fresh & newton & (last < eased) & (extent >= 0.5 * last);
      const Mask better = fresh | (running & (ratio > 1e-4) & ~rounding);
      const Mask done = ~fresh & ((extent <= tol) | (newton & (extent <= eased_end)) | rounding);
      const Mask counted = running & ~fresh;
      count = counted ? count + 1.0 : count, residual = counted ? extent : residual;
      rate = better ? new_rate : rate, b1 = better ? new_b1 : b1;
      at.value = better ? there.value : at.value, at.size = better ? there.size : at.size;
      for (int i = 0; i < 2; ++i) at.slope[i] = better ? there.slope[i] : at.slope[i];
      for (int i = 0; i < 3; ++i) at.curvature[i] = better ? there.curvature[i] : at.curvature[i];
      for (int k = 0; k < K; ++k) at.factor[k] = better ? there.factor[k] : at.factor[k];
      const V grown = newton ? trust : least(2.0 * trust, splat(1.0));
      trust = fresh ? trust : ratio > 0.75 ? grown : ratio > 0.25 ? trust : 0.25 * extent;
      last = better & newton & ~fresh ? extent : splat(infinite);
      // Not a number, or nothing to fit.
      const Mask lost = fresh & (~finite(at.value) | ((at.slope[0] == V{}) & (at.curvature[0] == V{})));
      Mask ended = running & (lost | done | (count >= double(max_iter)));
      fresh = Mask{};
      if (!any(ended)) continue;
      for (int64_t l = 0; l < L; ++l) {
        if (!ended[l]) continue;
        Kept found = {at.value[l], {rate[l]}, count[l], residual[l], !done[l]};
        if (!source.b1) found.p[1] = b1[l];
        for (int k = 0; k < K; ++k) found.p[source.fitted() + k] = at.factor[k][l];
        const double second = voxel->rate[1][l];
        if (!lost[l] && second == second) {
          kept[l] = found, ended[l] = 0;
          begin_at(l, second, voxel->b1[1][l]);
          voxel->rate[1][l] = __builtin_nan("");
          continue;
        }
        const bool before = kept[l].value < infinite && (lost[l] || !(found.value < kept[l].value));
        put(held[l], lost[l] && !before, before ? kept[l] : found);
      }
      running &= ~ended, idle |= ended;
    }
  });
}

template <class T, int K>
void backward_all(const T* grad, const T* value, const Source<T, K>& source, T* grad_data, T* u, int threads) {
  const EpgShape& shape = source.shape;
  const int64_t size = shape.voxels, n = shape.echoes, blocks = (size + L - 1) / L, all = shape.batch * blocks;
  const int shares = share_count(threads, all, 4);
  const int64_t each = Worker<T, K>::memory(n), parts = source.parts(), fitted = source.fitted();
  const Scratch<double> memory(each * shares);
  parallel_shares(shares, all, [&](int share, int64_t begin, int64_t end) {
    const Worker<T, K> w(memory.get() + share * each, source, nullptr);
    Voxel<K>* voxel = w.voxel;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, v = i % blocks * L, here = size - v < L ? size - v : L;
      source.read(b, v, here, voxel);
      const auto read = [&](const T* from, int64_t part) {
        V x = {};
        for (int64_t l = 0; l < here; ++l) x[l] = from[(b * parts + part) * size + v + l];
        return x;
      };
      const V rate = read(value, 0), b1 = source.b1 ? voxel->b1_low : read(value, 1);
      const At<K> at = w.at(voxel, rate, b1);
      // In the precision of the value, in which one at its bound is.
      const Mask free_rate = (rate > double(T(shape.low))) & (rate < double(T(shape.high)));
      Mask free_b1 = (b1 > double(T(shape.b1_low))) & (b1 < double(T(shape.b1_high)));
      if (source.b1) free_b1 = Mask{};
      V c[K], gc[K], x = read(grad, 0), y = source.b1 ? V{} : read(grad, 1);
      const V inverse = 1.0 / at.norm;
      for (int k = 0; k < K; ++k) {
        c[k] = read(value, fitted + k), gc[k] = read(grad, fitted + k);
        x -= at.cross[0][k] * gc[k] * inverse, y -= at.cross[1][k] * gc[k] * inverse;
      }
      const V scale = 1.0 / at.size;
      x = free_rate ? x * scale : V{}, y = free_b1 ? y * scale : V{};
      const V rb = free_rate & free_b1 ? at.curvature[1] * scale : V{};
      const V rr = free_rate ? at.curvature[0] * scale : splat(1.0),
              bb = free_b1 ? at.curvature[2] * scale : splat(1.0);
      const V det = rr * bb - rb * rb;
      V ux = (bb * x - rb * y) / det, uy = (rr * y - rb * x) / det, uc[K];
      Mask known = finite(ux) & finite(uy);
      for (int k = 0; k < K; ++k) {
        uc[k] = (gc[k] - at.cross[0][k] * ux - at.cross[1][k] * uy) * inverse;
        known &= finite(uc[k]);
      }
      const auto write = [&](int64_t part, V what) {
        for (int64_t l = 0; l < here; ++l) u[(b * parts + part) * size + v + l] = known[l] ? T(what[l]) : T(0);
      };
      write(0, ux);
      if (!source.b1) write(1, uy);
      for (int k = 0; k < K; ++k) write(fitted + k, uc[k]);
      for (int64_t t = 0; t < n; ++t) {
        const V* p = w.phi + 6 * t;
        const V turned = p[1] * ux + p[2] * uy;
        for (int k = 0; k < K; ++k) {
          const V change = p[0] * uc[k] + turned * c[k];
          T* to = grad_data + ((b * n + t) * size + v) * K + k;
          for (int64_t l = 0; l < here; ++l) to[l * K] = known[l] ? T(change[l]) : T(0);
        }
      }
    }
  });
}

}  // namespace

template <class T>
void fit_epg(const T* data, const double* spacing, const double* angles, const double* r1, const double* b1,
             const T* prior, const T* weight, const double* grid, T* value, int8_t* status, int32_t* count, T* residual,
             const EpgShape& shape, double tol, int max_iter, int threads) {
  if (shape.complex)
    fit_all<T, 2>({data, prior, weight, spacing, angles, r1, b1, shape}, grid, {value, status, count, residual}, tol,
                  max_iter, threads);
  else
    fit_all<T, 1>({data, prior, weight, spacing, angles, r1, b1, shape}, grid, {value, status, count, residual}, tol,
                  max_iter, threads);
}

template <class T>
void fit_epg_backward(const T* grad, const T* value, const T* data, const double* spacing, const double* angles,
                      const double* r1, const double* b1, const T* prior, const T* weight, T* grad_data, T* u,
                      const EpgShape& shape, int threads) {
  if (shape.complex)
    backward_all<T, 2>(grad, value, {data, prior, weight, spacing, angles, r1, b1, shape}, grad_data, u, threads);
  else
    backward_all<T, 1>(grad, value, {data, prior, weight, spacing, angles, r1, b1, shape}, grad_data, u, threads);
}

template void fit_epg<float>(const float*, const double*, const double*, const double*, const double*, const float*,
                             const float*, const double*, float*, int8_t*, int32_t*, float*, const EpgShape&, double,
                             int, int);
template void fit_epg<double>(const double*, const double*, const double*, const double*, const double*, const double*,
                              const double*, const double*, double*, int8_t*, int32_t*, double*, const EpgShape&,
                              double, int, int);
template void fit_epg_backward<float>(const float*, const float*, const float*, const double*, const double*,
                                      const double*, const double*, const float*, const float*, float*, float*,
                                      const EpgShape&, int);
template void fit_epg_backward<double>(const double*, const double*, const double*, const double*, const double*,
                                       const double*, const double*, const double*, const double*, double*, double*,
                                       const EpgShape&, int);

}  // namespace pyrecon::PYRECON_ISA
