// All steps of DEQ-MPI in one call.
//
// Segments of the matrix, 256 KB, stay in the second-level cache from their products with the image over the data step
// to their weighted sums, as do a segment's feature maps in the first: the matrix is read once a step, and once more
// where the next state must be known before the next step. For that, the ball's scale is taken out of the sums, and a
// window of the line of points has the halo that the network reaches. Up to eight images share what is read.
//
// Every sum is made per segment and added in the order of segments: the same bits on any number of threads.
#include "cpu/deq_mpi.hpp"

#include "cpu/ball.hpp"
#include "cpu/learned_network.hpp"
#include "cpu/rdn_network.hpp"
#include "cpu/row_products.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

// Rows [first, last) of each part of the matrix (real and imaginary, where consistency is learned), and the window.
struct Segment {
  int64_t first, last;
  LearnedWindow window;  // its rows hold these, and those of the halo
};

constexpr int64_t most_samples = 8;  // for which a segment is read from memory once

// Adds |next - state|^2 and |next|^2; partial sums as in squared_distance().
template <class T>
PYRECON_INLINE void change_norms(const T* next, const T* state, int64_t n, double* norms) {
  constexpr int64_t block = 512;
  for (int64_t begin = 0; begin < n; begin += block) {
    T change = 0, size = 0;
    for (int64_t i = begin; i < n && i < begin + block; ++i) {
      change += (next[i] - state[i]) * (next[i] - state[i]);
      size += next[i] * next[i];
    }
    norms[0] += change;
    norms[1] += size;
  }
}

template <class T>
class Solver {
 public:
  Solver(const T* matrix, const T* inverse, const T* network, const T* learned, const int64_t* places,
         const DeqShape& s, const AndersonOptions& mixing)
      : s_(s),
        mixing_(mixing),
        voxels_(s.network.rows * s.network.cols),
        products_{voxels_, RowProducts<T>::pitch_of(voxels_)},
        matrix_(matrix),
        inverse_(inverse),
        network_(network),
        learned_(learned),
        places_(places),
        wide_(products_.pitch == voxels_ ? 0 : (s.rows + voxels_) * products_.pitch),
        filters_(any_network().filters_memory()),
        count_(segment_count()),
        segments_(count_) {
    any_network().make_filters(filters_.get());
    if (products_.pitch != voxels_) {  // narrower than a vector
      std::memset(wide_.get(), 0, (s.rows + voxels_) * products_.pitch * sizeof(T));
      for (int64_t r = 0; r < s.rows + voxels_; ++r)
        std::memcpy(wide_.get() + r * products_.pitch,
                    r < s.rows ? matrix + r * voxels_ : inverse + (r - s.rows) * voxels_, voxels_ * sizeof(T));
      matrix_ = wide_.get();
      inverse_ = wide_.get() + s.rows * products_.pitch;
    }
    for (int64_t i = 0; i < count_; ++i) {
      segments_[i] = segment(i);
      const int64_t points = is_learned() ? LearnedNetwork<T>::memory(s_.learned, segments_[i].window, false) : 0;
      if (points > window_memory_) window_memory_ = points;
      if (segments_[i].window.rows > most_rows_) most_rows_ = segments_[i].window.rows;
    }
  }

  int64_t state_size() const { return 2 * voxels_ + s_.rows; }
  int64_t part_memory() const {  // of a thread at work on segments
    return round_up(window_memory_ + 2 * parts() * most_rows_ * most_samples * 2, Planes<T>::line);
  }
  int64_t network_memory() const { return RdnForward<T>::memory(any_network(), false); }
  int64_t sample_memory() const {
    return round_up(2 * state_size() + 2 * s_.rows + 2 * voxels_ + (2 + 2 * count_) * products_.padded +
                        2 * s_.memory * state_size(),
                    Planes<T>::line);
  }
  int64_t numbers_memory() const { return count_ + s_.memory * s_.memory; }  // doubles of a sample

  // Images [begin, begin + count), count up to most_samples, on `threads` threads, each with a part of `parts`.
  void solve(const T* start, const T* y, const T* radius, T* state, T* report, int64_t begin, int64_t count, T* samples,
             double* numbers, T* network, T* parts, int threads) const {
    Sample all[most_samples], *alive[most_samples];
    for (int64_t k = 0; k < count; ++k) {
      alive[k] = &all[k];
      place(all[k], samples + k * sample_memory(), numbers + k * numbers_memory());
      std::memcpy(all[k].state, start + (begin + k) * state_size(), state_size() * sizeof(T));
      all[k].y = y + (begin + k) * s_.rows, all[k].radius = radius[begin + k];
      all[k].out = state + (begin + k) * state_size(), all[k].report = report + (begin + k) * 3;
    }
    RdnForward<T> denoise(s_.network, false, network_, filters_.get(), network, 1);
    bool open = false;  // whether A x has still to be taken from the states' duals of the data
    for (int64_t step = 1; step <= s_.steps && count > 0; ++step) {
      const bool known = s_.memory > 0 || s_.tolerance > 0 || step == 1 || step == s_.steps;
      advance(alive, static_cast<int>(count), open, known, denoise, parts, threads);
      open = !known;
      int64_t kept = 0;
      for (int64_t k = 0; k < count; ++k)
        if (!(known && settle(*alive[k], step))) {
          if (s_.memory == 0) swap(*alive[k]);
          alive[kept++] = alive[k];
        }
      count = kept;
    }
  }

 private:
  struct Sample {
    const T* y;
    T radius;
    T *out, *state, *next;  // states: image, its dual, dual of the data
    T *dual, *proposal;     // of the data, before the step; for them
    T *image, *denoised;    // what goes through the network
    T *padded, *weighted;   // the image; what M is applied to
    T* sums;                // (segments, 2): A^T (dual + y), A^T (proposal - y); as released, A^T proposal
    T *H, *G;
    double *squares, *gram;  // |proposal - y|^2 of each segment
    int64_t stored;
    T* report;
  };

  RdnNetwork<T> any_network() const { return RdnNetwork<T>(s_.network, false, network_, nullptr, 1); }
  bool is_learned() const { return s_.data == DataStep::learned || released(); }
  bool released() const { return s_.data == DataStep::released; }
  int64_t parts() const { return is_learned() ? 2 : 1; }
  int64_t part_rows() const { return s_.rows / parts(); }
  int64_t segment_count() const {
    constexpr int64_t bytes = 256 * 1024;
    // Windows are cut from a line along which rows follow each other.
    int64_t last = -1;
    for (int64_t k = 0; is_learned() && k < s_.learned.rows; ++k) {
      if (!is_on_line(k)) continue;
      if (places_[k] < last) return 1;
      last = places_[k];
    }
    const int64_t count = (s_.rows * products_.pitch * static_cast<int64_t>(sizeof(T)) + bytes - 1) / bytes;
    return count < 1 ? 1 : count > part_rows() && part_rows() > 0 ? part_rows() : count;
  }
  bool is_on_line(int64_t k) const {
    return static_cast<uint64_t>(places_[k]) < static_cast<uint64_t>(s_.learned.points);
  }
  Segment segment(int64_t i) const {
    const int64_t count = count_, first = part_rows() * i / count, last = part_rows() * (i + 1) / count;
    Segment found{first, last, {first, last - first, 0, 0}};
    if (!is_learned()) return found;
    int64_t low = s_.learned.points, high = -1, from = first, to = last;
    for (int64_t k = first; k < last; ++k) {
      if (!is_on_line(k)) continue;
      if (places_[k] < low) low = places_[k];
      if (places_[k] > high) high = places_[k];
    }
    if (high < 0) return found;
    const int64_t reach = LearnedWindow::reach(s_.learned);
    while (from > 0 && !(is_on_line(from - 1) && places_[from - 1] < low - reach)) --from;
    while (to < part_rows() && !(is_on_line(to) && places_[to] > high + reach)) ++to;
    found.window = {from, to - from, low - reach, high - low + 1 + 2 * reach};
    return found;
  }

  void place(Sample& k, T* memory, double* numbers) const {
    const auto take = [&](int64_t count) {
      T* first = memory;
      memory += count;
      return first;
    };
    const int64_t padded = products_.padded;
    k.padded = take(padded), k.weighted = take(padded);
    k.sums = take(2 * count_ * padded);
    k.state = take(state_size()), k.next = take(state_size());
    k.dual = take(s_.rows), k.proposal = take(s_.rows);
    k.image = take(voxels_), k.denoised = take(voxels_);
    k.H = take(s_.memory * state_size()), k.G = take(s_.memory * state_size());
    k.squares = numbers, k.gram = numbers + count_;
    k.stored = 0;
  }

  // f of the states of `count` samples into `next`. Its dual of the data lacks A x unless it is `known`.
  void advance(Sample* const* alive, int count, bool open, bool known, RdnForward<T>& denoise, T* parts,
               int threads) const {
    for (int s = 0; s < count; ++s) {
      const Sample& k = *alive[s];
      products_.pad(k.state, k.padded);
      for (int64_t i = 0; i < voxels_; ++i) k.image[i] = k.state[i] - k.state[voxels_ + i];
    }
    // With threads to spare one runs the network, the others take segments, each the next that is left.
    int64_t next = 0;
    const int64_t tasks = count_ + 1;
    parallel_shares(threads, threads, [&](int share, int64_t, int64_t) {
      for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) {
        if (task > 0) {
          run_segment(task - 1, alive, count, open, parts + share * part_memory());
        } else {
          for (int s = 0; s < count; ++s) denoise(alive[s]->image, alive[s]->denoised);
        }
      }
    });
    for (int s = 0; s < count; ++s) gather(*alive[s]);
    T *images[most_samples], *weighted[most_samples];
    for (int s = 0; s < count; ++s) images[s] = alive[s]->next, weighted[s] = alive[s]->weighted;
    products_.multiply(inverse_, voxels_, weighted, count, images);
    for (int s = 0; s < count; ++s) {
      const Sample& k = *alive[s];
      for (int64_t i = 0; i < voxels_; ++i) k.next[voxels_ + i] -= k.next[i];
    }
    if (known) take_products(alive, count, threads);
  }

  // A x of the new images from their duals.
  void take_products(Sample* const* alive, int count, int threads) const {
    T* x[most_samples];
    for (int s = 0; s < count; ++s) {
      x[s] = alive[s]->padded;
      products_.pad(alive[s]->next, x[s]);
    }
    parallel_shares(threads, s_.rows, [&](int, int64_t begin, int64_t end) {
      constexpr int64_t block = 128;
      for (; begin < end; begin += block) {
        const int64_t rows = end - begin < block ? end - begin : block;
        T product[most_samples][block], *out[most_samples];
        for (int s = 0; s < count; ++s) out[s] = product[s];
        products_.multiply(matrix_ + begin * products_.pitch, rows, x, count, out);
        for (int s = 0; s < count; ++s) {
          T* dual = alive[s]->next + 2 * voxels_ + begin;
          for (int64_t r = 0; r < rows; ++r) dual[r] -= product[s][r];
        }
      }
    });
  }

  void run_segment(int64_t index, Sample* const* alive, int count, bool open, T* memory) const {
    const Segment& g = segments_[index];
    const int64_t rows = g.window.rows, own = g.last - g.first, skipped = g.first - g.window.first_row;
    T *v = memory + window_memory_, *factors = v + parts() * most_rows_ * most_samples;
    T *x[most_samples], *out[most_samples], *sums[2 * most_samples];
    for (int s = 0; s < count; ++s) {
      x[s] = alive[s]->padded;
      sums[2 * s] = alive[s]->sums + 2 * index * products_.padded;
      sums[2 * s + 1] = sums[2 * s] + products_.padded;
    }
    for (int64_t p = 0; p < parts(); ++p) {
      for (int s = 0; s < count; ++s) out[s] = v + (s * parts() + p) * rows;
      const int64_t first = p * part_rows() + g.window.first_row;
      products_.multiply(matrix_ + first * products_.pitch, rows, x, count, out);
      for (int s = 0; s < count; ++s) {  // v = A x - d0
        const T* dual = alive[s]->state + 2 * voxels_ + first;
        T* known = alive[s]->dual + first;
        for (int64_t r = 0; r < rows; ++r) {
          const T product = out[s][r], d = open ? dual[r] - product : dual[r];
          if (r >= skipped && r < skipped + own) known[r] = d;
          out[s][r] = product - d;
        }
      }
    }
    for (int s = 0; s < count; ++s) propose(g, *alive[s], v + s * parts() * rows, memory, index);
    for (int64_t p = 0; p < parts(); ++p) {
      const int64_t first = p * part_rows() + g.first;
      for (int s = 0; s < count; ++s)
        for (int64_t r = 0; r < own; ++r) {
          const T n = alive[s]->proposal[first + r], y = alive[s]->y[first + r];
          factors[(r * count + s) * 2] = alive[s]->dual[first + r] + y;
          factors[(r * count + s) * 2 + 1] = released() ? n : n - y;
        }
      products_.combine(matrix_ + first * products_.pitch, own, factors, count, sums, p > 0);
    }
  }

  // N and |N - y|^2 of a segment's own rows, from v of its window.
  void propose(const Segment& g, const Sample& k, T* v, T* memory, int64_t index) const {
    const int64_t rows = g.window.rows, own = g.last - g.first, skipped = g.first - g.window.first_row;
    T* proposed = v;
    if (is_learned()) {
      const LearnedNetwork<T> network(s_.learned, g.window, learned_, places_, false, memory, 1);
      network.propose(v, k.y + g.window.first_row, v, rows, part_rows(), rows);
    } else if (s_.data == DataStep::exact) {
      proposed = nullptr;
    }
    double squares = 0;
    for (int64_t p = 0; p < parts(); ++p) {
      const T* y = k.y + p * part_rows() + g.first;
      T* to = k.proposal + p * part_rows() + g.first;
      std::memcpy(to, proposed ? proposed + p * rows + skipped : y, own * sizeof(T));
      squares += squared_distance(to, y, own);
    }
    k.squares[index] = squares;
  }

  // The ball's scale, the new duals before A x and x are taken from them, and what M is applied to.
  void gather(const Sample& k) const {
    double squares = 0;
    for (int64_t i = 0; i < count_; ++i) squares += k.squares[i];
    const Shrink ball = s_.data == DataStep::exact ? Shrink{1.0, false} : shrink(squares, k.radius);
    const T scale = static_cast<T>(ball.scale), penalty = static_cast<T>(s_.penalty);
    T* dual = k.next + 2 * voxels_;
    for (int64_t r = 0; r < s_.rows; ++r) {  // as cpu/ball.hpp moves points
      const T n = k.proposal[r], y = k.y[r];
      dual[r] = k.dual[r] + (released() ? y + n * scale : ball.outside ? y + (n - y) * scale : n);
    }
    for (int64_t j = 0; j < products_.padded; ++j) {
      T of_dual = 0, of_proposal = 0;
      for (int64_t i = 0; i < count_; ++i) {
        of_dual += k.sums[2 * i * products_.padded + j];
        of_proposal += k.sums[(2 * i + 1) * products_.padded + j];
      }
      k.padded[j] = penalty * (of_dual + scale * of_proposal);
    }
    for (int64_t i = 0; i < voxels_; ++i) {
      k.next[voxels_ + i] = k.state[voxels_ + i] + k.denoised[i];
      k.image[i] = k.padded[products_.at(i)] + k.next[voxels_ + i];
    }
    products_.pad(k.image, k.weighted);
  }

  // Mixes, unless steps are plain; True where the sample is done, with f(x) and its report written.
  bool settle(Sample& k, int64_t step) const {
    double norms[2] = {0, 0};
    if (s_.memory > 0) {
      const Component<T> whole{k.next, state_size(), 0};
      const AndersonWorkspace<T> work{k.H, k.G, k.gram, &k.stored, s_.memory, state_size()};
      anderson_advance(&whole, 1, k.state, static_cast<const int64_t*>(nullptr), 1, work, norms, mixing_, 1);
    } else {
      change_norms(k.next, k.state, 2 * voxels_, norms);
      change_norms(k.next + 2 * voxels_, k.dual, s_.rows, norms);
    }
    const bool finite = norms[0] + norms[1] < 1e300;
    const double change = std::sqrt(norms[0]) / (std::sqrt(norms[1]) + 1e-5);
    k.report[0] = static_cast<T>(step);
    if (step == 1) k.report[1] = static_cast<T>(change);
    k.report[2] = static_cast<T>(change);
    const bool done = step == s_.steps || !finite || (s_.tolerance > 0 && change <= s_.tolerance);
    if (done) std::memcpy(k.out, k.next, state_size() * sizeof(T));
    return done;
  }
  PYRECON_MEMBER void swap(Sample& k) const {
    T* before = k.state;
    k.state = k.next;
    k.next = before;
  }

  DeqShape s_;
  AndersonOptions mixing_;
  int64_t voxels_;
  RowProducts<T> products_;
  const T *matrix_, *inverse_, *network_, *learned_;
  const int64_t* places_;
  Scratch<T> wide_, filters_;
  int64_t count_;  // of segments
  Scratch<Segment> segments_;
  int64_t window_memory_ = 0, most_rows_ = 0;
};

}  // namespace

template <class T>
void deq_mpi(const T* matrix, const T* inverse, const T* start, const T* y, const T* radius, const T* network,
             const T* learned, const int64_t* places, T* state, T* report, const DeqShape& s,
             const AndersonOptions& mixing, int threads) {
  if (s.network.batch == 0) return;
  const Solver<T> solver(matrix, inverse, network, learned, places, s, mixing);
  const bool together = s.network.batch < threads;  // all threads on each image, or images side by side
  const int shares = together ? 1 : threads, each = together ? threads : 1;
  const int64_t tile = together ? 1 : most_samples;
  const int64_t samples = tile * solver.sample_memory(), numbers = tile * solver.numbers_memory();
  const int64_t memory = samples + solver.network_memory() + each * solver.part_memory();
  const Scratch<T> scratch(shares * memory);
  const Scratch<double> doubles(shares * numbers);
  parallel_shares(shares, s.network.batch, [&](int share, int64_t begin, int64_t end) {
    T *own = scratch.get() + share * memory, *network_memory = own + samples;
    for (; begin < end; begin += tile)
      solver.solve(start, y, radius, state, report, begin, end - begin < tile ? end - begin : tile, own,
                   doubles.get() + share * numbers, network_memory, network_memory + solver.network_memory(), each);
  });
}

template void deq_mpi(const float*, const float*, const float*, const float*, const float*, const float*, const float*,
                      const int64_t*, float*, float*, const DeqShape&, const AndersonOptions&, int);
template void deq_mpi(const double*, const double*, const double*, const double*, const double*, const double*,
                      const double*, const int64_t*, double*, double*, const DeqShape&, const AndersonOptions&, int);

}  // namespace pyrecon::PYRECON_ISA
