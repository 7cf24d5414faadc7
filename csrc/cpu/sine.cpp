#include "cpu/sine.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"
#include "cpu/sine_transform.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t share_grain = 16384;  // numbers a thread should get at least: some 10 us of work

PYRECON_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYRECON_INLINE int64_t groups_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

template <class T>
PYRECON_INLINE Vec<T> load_some(const T* p, int64_t count) {
  if (count >= lanes<T>) return load(p);
  T buffer[lanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T>
PYRECON_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
  if (count >= lanes<T>) return store<T>(p, v);
  T buffer[lanes<T>];
  store<T>(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// --- between rows of memory and lines, the signals of sine_transform.hpp --------------------------------------------
// A line holds `2 * lanes / field` rows, transposed: of complex rows both parts of `lanes` of them, of real ones as
// many again. The first number of a row is at slot 1.
template <class T>
struct Rows {
  int64_t pitch, count, width, field;  // width in reals

  PYRECON_MEMBER int64_t vector(int64_t column, int part) const { return field == 2 ? column : 2 * column + part; }

  void to_line(const T* first, T* line) const {
    line += 2 * lanes<T>;
    for (int64_t c = 0; c < width; c += lanes<T>)
      for (int part = 0; part < 3 - field; ++part) {
        Vec<T> v[lanes<T>];
        for (int64_t i = 0; i < lanes<T>; ++i) {
          const int64_t row = part * lanes<T> + i;
          v[i] = row < count ? load_some<T>(first + row * pitch + c, width - c) : Vec<T>{};
        }
        transpose<T>(v);
        for (int64_t i = 0; i < smaller(lanes<T>, width - c); ++i)
          store<T>(line + lanes<T> * vector(c + i, part), v[i]);
      }
  }

  void from_line(const T* line, T scale, T* first) const {
    line += 2 * lanes<T>;
    for (int64_t c = 0; c < width; c += lanes<T>)
      for (int part = 0; part < 3 - field; ++part) {
        Vec<T> v[lanes<T>];
        for (int64_t i = 0; i < lanes<T>; ++i)
          v[i] = c + i < width ? load(line + lanes<T> * vector(c + i, part)) * splat(scale) : Vec<T>{};
        transpose<T>(v);
        for (int64_t i = 0; i < lanes<T>; ++i) {
          const int64_t row = part * lanes<T> + i;
          if (row < count) store_some<T>(first + row * pitch + c, v[i], width - c);
        }
      }
  }
};

// A line that is 2 * lanes columns of reals, as they are.
template <class T>
struct Strip {
  int64_t pitch, count, height;

  void to_line(const T* first, T* line) const {
    for (int64_t j = 0; j < height; ++j, line += 2 * lanes<T>) {
      store<T>(line + 2 * lanes<T>, load_some<T>(first + j * pitch, count));
      store<T>(line + 3 * lanes<T>,
               count > lanes<T> ? load_some<T>(first + j * pitch + lanes<T>, count - lanes<T>) : Vec<T>{});
    }
  }

  void from_line(const T* line, T scale, T* first) const {
    for (int64_t j = 0; j < height; ++j, line += 2 * lanes<T>) {
      store_some<T>(first + j * pitch, load(line + 2 * lanes<T>) * splat(scale), count);
      if (count > lanes<T>)
        store_some<T>(first + j * pitch + lanes<T>, load(line + 3 * lanes<T>) * splat(scale), count - lanes<T>);
    }
  }
};

// --- who does what ---------------------------------------------------------------------------------------------------
// Every thread takes whole planes, as they stay in its cache; all threads together those that are left over.
// work(share, plane, threads): within a plane, share counts from 0 again.
template <class Work>
PYRECON_INLINE void each_plane(const SineShape& s, int threads, const Work& work) {
  const int64_t plane = s.rows * s.cols * s.field;
  if (s.planes * plane == 0) return;
  threads = share_count(threads, s.planes * plane, share_grain);
  const int64_t whole = s.planes - s.planes % threads;
  parallel_shares(static_cast<int>(smaller(threads, whole)), whole, [&](int share, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) work(share, p, 1);
  });
  for (int64_t p = whole; p < s.planes; ++p) work(0, p, threads);
}

// body(share, group) over all groups of a plane; `share` is who calls with one thread.
template <class Body>
PYRECON_INLINE void each_group(int share, int threads, int64_t groups, const Body& body) {
  parallel_shares(static_cast<int>(smaller(threads, groups)), groups, [&](int i, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) body(threads == 1 ? share : i, g);
  });
}

const SinePlan* plan_at(const void* memory) { return static_cast<const SinePlan*>(memory); }

// Two lines and what a transform needs besides, in slots, for every thread.
template <class T>
class Lines {
 public:
  Lines(int64_t length, int64_t more, int threads)
      : length_(length), slots_(2 * length + more), memory_(2 * lanes<T> * slots_ * threads) {}

  T* line(int share) const { return memory_.get() + 2 * lanes<T> * slots_ * share; }

  // The transform of the line, which lies elsewhere then.
  T* transform(const SinePlan& plan, int share) const {
    T *from = line(share), *to = from + 2 * lanes<T> * length_;
    sine_transform(plan, from, to, to + 2 * lanes<T> * length_);
    return to;
  }

 private:
  int64_t length_, slots_;
  Scratch<T> memory_;
};

// --- tridiagonal systems --------------------------------------------------------------------------------------------
// After a sine transform along one axis, (1 + w lambda_k) s_i + w (2 s_i - s_(i-1) - s_(i+1)) = v_i along the other,
// for all k at once. Elimination with p_i = 1 - q_i = w e_i and e_i = 1 / (1 + w lambda_k + w + w q_(i-1)), q_0 = 1:
//   y_i = v_i + p_(i-1) y_(i-1),   s_i = e_i y_i + p_i s_(i+1).
// p tends to 1 where the weight is large, and its rounding would be a systematic error of sqrt(w) eps in a smooth s. q
// is positive throughout and without cancellation: it is what is kept. It also converges, about as exp(-2 i / sqrt(w)),
// so that few rows of q and e serve all i.
template <class T>
struct Pivots {
  T *q, *e;
  int64_t width, rows;

  PYRECON_MEMBER const T* q_row(int64_t i) const { return q + smaller(i, rows - 1) * width; }
  PYRECON_MEMBER const T* e_row(int64_t i) const { return e + smaller(i, rows - 1) * width; }

  // `state` is room for width doubles. Eigenvalue k serves `field` neighbours; without eigenvalues they are zero.
  void make(double w, const double* eigenvalues, int64_t field, int64_t most_rows, double scale, double* state) {
    for (int64_t c = 0; c < width; ++c) state[c] = 1;
    for (rows = 0; rows < most_rows; ++rows) {
      T *to_q = q + rows * width, *to_e = e + rows * width;
      int64_t changed = 0;
      for (int64_t c = 0; c < width; ++c) {
        const double lambda = eigenvalues ? eigenvalues[c / field] : 0.0;
        const double rest = 1 + w * lambda + w * state[c];
        state[c] = rest / (rest + w);
        to_q[c] = static_cast<T>(state[c]);
        to_e[c] = static_cast<T>(scale / (rest + w));
        changed += rows == 0 || to_q[c] != to_q[c - width] || to_e[c] != to_e[c - width];
      }
      if (!changed) return;
    }
  }
};

// Of every thread: pivots for the last weight it met, and a plane to work in.
template <class T>
class Workers {
 public:
  Workers(int64_t width, int64_t steps, int64_t plane, int threads)
      : steps_(steps),
        plane_(plane),
        last_(threads),
        pivots_(threads),
        state_(width * threads),
        tables_(2 * width * steps * threads),
        planes_(plane * threads) {
    for (int i = 0; i < threads; ++i) {
      last_[i] = -1;  // no weight
      T* table = tables_.get() + 2 * width * steps * i;
      pivots_[i] = {table, table + width * steps, width, 0};
    }
  }

  T* plane(int share) const { return planes_.get() + plane_ * share; }

  const Pivots<T>& pivots(int share, double weight, const double* eigenvalues, int64_t field, double scale) const {
    Pivots<T>& mine = pivots_[share];
    if (last_[share] != weight) mine.make(weight, eigenvalues, field, steps_, scale, state_.get() + mine.width * share);
    last_[share] = weight;
    return mine;
  }

 private:
  int64_t steps_, plane_;
  Scratch<double> last_;
  Scratch<Pivots<T>> pivots_;
  Scratch<double> state_;
  Scratch<T> tables_, planes_;
};

template <class T>
PYRECON_INLINE void eliminate(T* row, const T* before, const T* q, int64_t n) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) row[c] += before[c] - q[c] * before[c];
}

template <class T>
PYRECON_INLINE void substitute(T* row, const T* after, const T* q, const T* e, int64_t n) {
  if (after == nullptr) {
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) row[c] *= e[c];
    return;
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) row[c] = e[c] * row[c] + (after[c] - q[c] * after[c]);
}

// The plane between transforms: `rows` rows of coefficients; row i follows row i - stride.
template <class T>
struct Systems {
  T* first;
  int64_t pitch, rows, stride;
  Pivots<T> pivots;

  void forwards(int64_t low, int64_t high, int64_t left, int64_t width) const {
    for (int64_t i = low > stride ? low : stride; i < high; ++i)
      eliminate<T>(first + i * pitch + left, first + (i - stride) * pitch + left, pivots.q_row(i / stride - 1) + left,
                   width);
  }
  void backwards(int64_t low, int64_t high, int64_t left, int64_t width) const {
    for (int64_t i = high - 1; i >= low; --i)
      substitute<T>(first + i * pitch + left, i + stride < rows ? first + (i + stride) * pitch + left : nullptr,
                    pivots.q_row(i / stride) + left, pivots.e_row(i / stride) + left, width);
  }
};

// gather(share, low, high) makes rows low to high of the systems, scatter uses them up. With one thread the sweeps
// follow close behind, while the rows are in the nearest cache.
template <class T, class Gather, class Scatter>
PYRECON_INLINE void solve(const Systems<T>& systems, int64_t group, int share, int threads, const Gather& gather,
                          const Scatter& scatter) {
  const int64_t groups = groups_of(systems.rows, group), width = systems.pivots.width;
  const auto end = [&](int64_t g) { return smaller(systems.rows, (g + 1) * group); };
  if (threads == 1) {
    for (int64_t g = 0; g < groups; ++g) {
      gather(share, g * group, end(g));
      systems.forwards(g * group, end(g), 0, width);
    }
    systems.backwards((groups - 1) * group, systems.rows, 0, width);
    for (int64_t g = groups - 1; g >= 0; --g) {  // a group may lose its rows only when the one before has seen them
      if (g > 0) systems.backwards((g - 1) * group, end(g - 1), 0, width);
      scatter(share, g * group, end(g));
    }
    return;
  }
  each_group(share, threads, groups, [&](int i, int64_t g) { gather(i, g * group, end(g)); });
  parallel_for(threads, width, 64, [&](int64_t left, int64_t right) {
    systems.forwards(0, systems.rows, left, right - left);
    systems.backwards(0, systems.rows, left, right - left);
  });
  each_group(share, threads, groups, [&](int i, int64_t g) { scatter(i, g * group, end(g)); });
}

// --- the prox, by the axis of its systems
// -----------------------------------------------------------------------------
template <class T>
struct ProxProblem {
  const T *maps, *weight;
  T* out;
  const SineShape& shape;
  int64_t weights;
  int threads;

  int64_t pitch() const { return shape.cols * shape.field; }
  const T* from(int64_t p) const { return maps + p * shape.rows * pitch(); }
  T* to(int64_t p) const { return out + p * shape.rows * pitch(); }
  double level(int64_t p) const { return static_cast<double>(weight[p * weights / shape.planes]); }
};

// A transform along the columns' axis, systems along the rows of the plane itself, in the result.
template <class T>
void prox_in_place(const ProxProblem<T>& problem, const SinePlan& plan) {
  const SineShape& s = problem.shape;
  const int64_t pitch = problem.pitch();
  const Lines<T> lines(plan.n, plan.slots, problem.threads);
  const Workers<T> workers(pitch, s.rows, 0, problem.threads);
  const double* eigenvalues = plan.template at<double>(plan.eigenvalues);
  each_plane(s, problem.threads, [&](int share, int64_t p, int inner) {
    const T* from = problem.from(p);
    T* to = problem.to(p);
    const Pivots<T>& pivots = workers.pivots(share, problem.level(p), eigenvalues, s.field, 2.0 / plan.n);
    const auto transform = [&](int i, const T* source, int64_t low, int64_t high) {
      const Rows<T> part{pitch, high - low, pitch, s.field};
      part.to_line(source + low * pitch, lines.line(i));
      part.from_line(lines.transform(plan, i), 1, to + low * pitch);
    };
    solve(
        Systems<T>{to, pitch, s.rows, 1, pivots}, 2 * lanes<T> / s.field, share, inner,
        [&](int i, int64_t low, int64_t high) { transform(i, from, low, high); },
        [&](int i, int64_t low, int64_t high) { transform(i, to, low, high); });
  });
}

// A transform along the rows' axis, systems along the rows of the transpose: complex numbers as two columns, the rows
// of one part following those of the same.
template <class T>
void prox_transposed(const ProxProblem<T>& problem, const SinePlan& plan) {
  const SineShape& s = problem.shape;
  const int64_t pitch = problem.pitch();
  const Lines<T> lines(plan.n, plan.slots, problem.threads);
  const Workers<T> workers(s.rows, s.cols, s.rows * pitch, problem.threads);
  const double* eigenvalues = plan.template at<double>(plan.eigenvalues);
  each_plane(s, problem.threads, [&](int share, int64_t p, int inner) {
    const T* from = problem.from(p);
    T *to = problem.to(p), *between = workers.plane(share);
    const Pivots<T>& pivots = workers.pivots(share, problem.level(p), eigenvalues, 1, 2.0 / plan.n);
    solve(
        Systems<T>{between, s.rows, pitch, s.field, pivots}, 2 * lanes<T>, share, inner,
        [&](int i, int64_t low, int64_t high) {
          Strip<T>{pitch, high - low, s.rows}.to_line(from + low, lines.line(i));
          Rows<T>{s.rows, high - low, s.rows, 1}.from_line(lines.transform(plan, i), 1, between + low * s.rows);
        },
        [&](int i, int64_t low, int64_t high) {
          Rows<T>{s.rows, high - low, s.rows, 1}.to_line(between + low * s.rows, lines.line(i));
          Strip<T>{pitch, high - low, s.rows}.from_line(lines.transform(plan, i), 1, to + low);
        });
  });
}

// One axis only, that of the columns.
template <class T>
void prox_of_columns(const ProxProblem<T>& problem) {
  const SineShape& s = problem.shape;
  const int64_t pitch = problem.pitch();
  const Workers<T> workers(pitch, s.rows, 0, problem.threads);
  each_plane(s, problem.threads, [&](int share, int64_t p, int inner) {
    const T* from = problem.from(p);
    T* to = problem.to(p);
    const Systems<T> systems{to, pitch, s.rows, 1, workers.pivots(share, problem.level(p), nullptr, 1, 1)};
    parallel_for(inner, pitch, 64, [&](int64_t left, int64_t right) {
      for (int64_t i = 0; i < s.rows; ++i) {
        std::memcpy(to + i * pitch + left, from + i * pitch + left, (right - left) * sizeof(T));
        systems.forwards(i, i + 1, left, right - left);
      }
      systems.backwards(0, s.rows, left, right - left);
    });
  });
}

// One axis only, that of the rows: a line is a plane of 2 * lanes columns.
template <class T>
void prox_of_rows(const ProxProblem<T>& problem) {
  const SineShape& s = problem.shape;
  const int64_t pitch = problem.pitch(), band = 2 * lanes<T> / s.field;
  const Lines<T> lines(s.cols + 1, 0, problem.threads);
  const Workers<T> workers(2 * lanes<T>, s.cols, 0, problem.threads);
  each_plane(s, problem.threads, [&](int share, int64_t p, int inner) {
    const Pivots<T>& pivots = workers.pivots(share, problem.level(p), nullptr, 1, 1);
    each_group(share, inner, groups_of(s.rows, band), [&](int i, int64_t g) {
      const Rows<T> rows{pitch, smaller(band, s.rows - g * band), pitch, s.field};
      const Systems<T> systems{lines.line(i) + 2 * lanes<T>, 2 * lanes<T>, s.cols, 1, pivots};
      rows.to_line(problem.from(p) + g * band * pitch, lines.line(i));
      systems.forwards(0, s.cols, 0, 2 * lanes<T>);
      systems.backwards(0, s.cols, 0, 2 * lanes<T>);
      rows.from_line(lines.line(i), 1, problem.to(p) + g * band * pitch);
    });
  });
}

}  // namespace

template <class T>
int64_t sine_plan(int64_t n, void* memory) {
  return SinePlanner<T>(memory).plan(n);
}

double sine_cost(int64_t n) { return sine_transform_cost(n); }

template <class T>
void dst1(const T* x, T* out, const void* row_plan, const void* col_plan, const SineShape& s, int threads) {
  const SinePlan *by_rows = plan_at(row_plan), *by_cols = plan_at(col_plan);
  const auto larger = [&](int64_t SinePlan::* part) {
    const int64_t a = by_rows ? by_rows->*part : 0, b = by_cols ? by_cols->*part : 0;
    return a > b ? a : b;
  };
  const Lines<T> lines(larger(&SinePlan::n), larger(&SinePlan::slots), threads);
  const int64_t pitch = s.cols * s.field, band = 2 * lanes<T> / s.field, strip = 2 * lanes<T>;
  const auto scale = [](const SinePlan& plan) { return static_cast<T>(__builtin_sqrt(2.0 / plan.n)); };
  each_plane(s, threads, [&](int share, int64_t p, int inner) {
    const T* from = x + p * s.rows * pitch;
    T* to = out + p * s.rows * pitch;
    if (by_cols) {
      each_group(share, inner, groups_of(s.rows, band), [&](int i, int64_t g) {
        const int64_t row = g * band, count = smaller(band, s.rows - row);
        const Rows<T> rows{pitch, count, pitch, s.field};
        rows.to_line(from + row * pitch, lines.line(i));
        rows.from_line(lines.transform(*by_cols, i), scale(*by_cols), to + row * pitch);
      });
      from = to;
    }
    if (by_rows)
      each_group(share, inner, groups_of(pitch, strip), [&](int i, int64_t g) {
        const int64_t column = g * strip, count = smaller(strip, pitch - column);
        const Strip<T> columns{pitch, count, s.rows};
        columns.to_line(from + column, lines.line(i));
        columns.from_line(lines.transform(*by_rows, i), scale(*by_rows), to + column);
      });
  });
}

template <class T>
void prox_smooth_maps(const T* maps, const T* weight, T* out, const void* plan, const SineShape& s, int64_t weights,
                      bool along_rows, int threads) {
  const ProxProblem<T> problem{maps, weight, out, s, weights, threads};
  if (plan)
    along_rows ? prox_in_place(problem, *plan_at(plan)) : prox_transposed(problem, *plan_at(plan));
  else
    along_rows ? prox_of_columns(problem) : prox_of_rows(problem);
}

#define PYRECON_SINE(T)                                                              \
  template int64_t sine_plan<T>(int64_t, void*);                                     \
  template void dst1(const T*, T*, const void*, const void*, const SineShape&, int); \
  template void prox_smooth_maps(const T*, const T*, T*, const void*, const SineShape&, int64_t, bool, int);
PYRECON_SINE(float)
PYRECON_SINE(double)

}  // namespace pyrecon::PYRECON_ISA
