#include "cpu/sense.hpp"

#include "cpu/fft.hpp"
#include "cpu/parallel.hpp"
#include "cpu/sense_tiles.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t share_grain = 8192;  // complex numbers a thread should get at least: some 10 us of work

PYRECON_INLINE int64_t mask_of(const SenseShape& s, int64_t b) { return b / (s.batch / s.mask_batch); }

template <class T>
PYRECON_INLINE const T* sample_mask(const T* mask, const SenseShape& s, int64_t b) {
  return mask + mask_of(s, b) * s.mask_rows * s.mask_cols;
}

template <class T>
PYRECON_INLINE PlaneWeights<T> kspace_weights(const T* mask, const SenseShape& s, const Layout<T>& l, T scale, T* to) {
  const int64_t tiles = s.mask_cols > 1 ? l.tiles : 1;
  for (int64_t r = 0; r < s.mask_rows; ++r)
    for (int64_t j = 0; j < tiles * lanes<T>; ++j) {
      const int64_t col = s.mask_cols > 1 ? j / lanes<T> * lanes<T> + complex_lane<T>(j % lanes<T>) : 0;
      to[r * tiles * lanes<T> + j] = col < s.mask_cols ? mask[r * s.mask_cols + col] * scale : 0;
    }
  return {to, s.mask_rows > 1 ? tiles * lanes<T> : 0, s.mask_cols > 1 ? lanes<T> : 0};
}

// mask^2 * scale in the order of fft_filter along rows of length n.
template <class T>
PYRECON_INLINE void axis_weights(const T* mask, const FftPlan& plan, T scale, T* to) {
  for (int64_t p = 0; p < plan.n; ++p) {
    const T m = mask[wrapped(plan.frequencies()[p] + plan.n / 2, plan.n)];
    to[p] = m * m * scale;
  }
}

// The same for a whole plane, by bands of rows: to[(band * cols + p) * lanes + lane].
template <class T>
PYRECON_INLINE void plane_weights(const T* mask, const Layout<T>& l, const FftPlan& by_rows, const FftPlan& by_cols,
                                  T scale, T* to, int threads) {
  parallel_for(threads, l.bands, 1 + share_grain / (lanes<T> * l.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * lanes<T>; r < end * lanes<T>; ++r) {
      T* band = to + r / lanes<T> * lanes<T> * l.cols + r % lanes<T>;
      if (r >= l.rows) {
        for (int64_t p = 0; p < l.cols; ++p) band[p * lanes<T>] = 0;
        continue;
      }
      const T* row = mask + l.cols * wrapped(by_rows.frequencies()[r] + l.rows / 2, l.rows);
      for (int64_t k = 0; k < l.cols; ++k) {
        const T m = row[wrapped(k + l.cols / 2, l.cols)];
        band[by_cols.positions()[k] * lanes<T>] = m * m * scale;
      }
    }
  });
}

template <class T>
struct Planes {  // one sample's image, maps and coil data
  int64_t plane, coils, maps_repeat;
  explicit PYRECON_MEMBER Planes(const SenseShape& s)
      : plane(2 * s.rows * s.cols), coils(s.coils), maps_repeat(s.batch / s.maps_batch) {}
  PYRECON_MEMBER int64_t image(int64_t b) const { return b * plane; }
  PYRECON_MEMBER int64_t coil(int64_t b, int64_t c) const { return (b * coils + c) * plane; }
  PYRECON_MEMBER int64_t map(int64_t b, int64_t c) const { return coil(b / maps_repeat, c); }
};

// --- who does what
// ----------------------------------------------------------------------------------------------------- What works on a
// run of coils: tiles of one coil and of a sum over coils, and lines for each of its threads.
constexpr int lines_per_thread = 4;

template <class T>
struct Worker {
  T *tiles, *sum, *lines;
  int64_t line_size;
  int threads;
  PYRECON_MEMBER T* line(int share, int i) const { return lines + (share * lines_per_thread + i) * line_size; }
};

// How a call is split. Whole samples where they are enough for all threads; else whole coils as far as they go round,
// and the coils left over by tiles and bands. Few regions matter: each one waits for the slowest thread, and where
// another program holds a core that is a time slice of milliseconds.
template <class T>
struct Split {
  int samples, coils, within;  // shares of the batch, of the coils of a sample, and of a coil that is left over

  PYRECON_MEMBER Split(const SenseShape& s, int threads) {
    const bool by_sample = threads > 1 && (s.batch % threads == 0 || s.batch >= 4 * threads);
    samples = by_sample ? threads : 1;
    within = by_sample ? 1 : threads;
    coils = s.coils >= within ? within : 1;
  }
  PYRECON_MEMBER static int64_t weights(const Layout<T>& l) {
    const int64_t by_row = l.rows * l.tiles, by_band = l.bands * l.cols;
    return lanes<T> * (by_row > by_band ? by_row : by_band);
  }
  PYRECON_MEMBER int64_t room(const Layout<T>& l) const {  // numbers per share of the batch
    return weights(l) + 2 * coils * l.coil_size() + within * lines_per_thread * l.line_size();
  }
  PYRECON_MEMBER Worker<T> worker(T* room, const Layout<T>& l, int i, int threads) const {
    T* tiles = room + weights(l) + 2 * i * l.coil_size();
    T* lines = room + weights(l) + 2 * coils * l.coil_size() + i * lines_per_thread * l.line_size();
    return {tiles, tiles + l.coil_size(), lines, l.line_size(), threads};
  }
};

template <class T, class Body>
PYRECON_INLINE void each_tile(const Layout<T>& l, int threads, const Body& body) {
  parallel_shares(share_count(threads, l.tiles, 1 + share_grain / (l.rows * lanes<T>)), l.tiles,
                  [&](int share, int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) body(share, t);
                  });
}

template <class T, class Body>
PYRECON_INLINE void each_band(const Layout<T>& l, int threads, const Body& body) {
  parallel_shares(share_count(threads, l.bands, 1 + share_grain / (l.cols * lanes<T>)), l.bands,
                  [&](int share, int64_t begin, int64_t end) {
                    for (int64_t b = begin; b < end; ++b) body(share, b);
                  });
}

const FftPlan& plan_at(const void* memory) { return *static_cast<const FftPlan*>(memory); }

// prepare(b, weights, threads), then work(b, weights, worker, first, last) on all coils of sample b in runs. The sums
// that `work` leaves in its workers' tiles go to the image, or nowhere if that is null.
template <class T, class Prepare, class Work>
PYRECON_INLINE void each_coil(const SenseShape& s, const Layout<T>& l, T* workspace, int threads,
                              const Prepare& prepare, const Work& work, T* image) {
  const Split<T> split(s, threads);
  const int64_t whole = split.coils > 1 ? s.coils - s.coils % split.coils : 0;
  parallel_shares(split.samples, s.batch, [&](int sample_share, int64_t b_begin, int64_t b_end) {
    T* room = workspace + sample_share * split.room(l);
    for (int i = 0; i < split.coils; ++i) clear_padding(split.worker(room, l, i, 1).tiles, l);
    for (int64_t b = b_begin; b < b_end; ++b) {
      const auto weights = prepare(b, room, split.within);
      parallel_shares(split.coils, whole, [&](int share, int64_t begin, int64_t end) {
        const Worker<T> worker = split.worker(room, l, share, 1);
        if (image) fill<T>(worker.sum, l.coil_size(), 0);
        work(b, weights, worker, begin, end);
      });
      if (whole < s.coils) {
        const Worker<T> worker = split.worker(room, l, 0, split.within);
        if (image && whole == 0) fill<T>(worker.sum, l.coil_size(), 0);
        work(b, weights, worker, whole, s.coils);
      }
      if (!image) continue;
      each_tile(l, split.within, [&](int, int64_t t) {
        T* sum = split.worker(room, l, 0, 1).sum + t * l.tile_size;
        for (int i = 1; whole && i < split.coils; ++i) {
          const T* other = split.worker(room, l, i, 1).sum + t * l.tile_size;
          for (int64_t k = 0; k < 2 * lanes<T> * l.rows; ++k) sum[k] += other[k];
        }
        tile_to_plane(sum, l, t, image + Planes<T>(s).image(b));
      });
    }
  });
}

// --- A^H A, by the axes along which the mask varies ------------------------------------------------------------------
template <class T>
void normal_both(const T* image, const T* maps, const T* mask, T* out, const FftPlan& by_rows, const FftPlan& by_cols,
                 T* workspace, const SenseShape& s, int threads) {
  const Layout<T> l(s);
  const Planes<T> at(s);
  const auto prepare = [&](int64_t b, T* weights, int inner) {
    plane_weights(sample_mask(mask, s, b), l, by_rows, by_cols, T(1) / (l.rows * l.cols), weights, inner);
    return static_cast<const T*>(weights);
  };
  const auto work = [&](int64_t b, const T* weights, const Worker<T>& worker, int64_t first, int64_t last) {
    for (int64_t c = first; c <= last; ++c) {  // the end of one coil and the start of the next are one pass over tiles
      each_tile(l, worker.threads, [&](int share, int64_t t) {
        T* tile = worker.tiles + t * l.tile_size;
        if (c > first) {
          const auto m = strip(maps + at.map(b, c - 1), l, t, worker.line(share, 0));
          fft_inverse(by_rows, tile, AddMatched<T>{worker.sum + t * l.tile_size, m, l.rows, 0});
        }
        if (c == last) return;
        const auto x = strip(image + at.image(b), l, t, worker.line(share, 0));
        const auto m = strip(maps + at.map(b, c), l, t, worker.line(share, 1));
        fft_forward(by_rows, ReadProduct<T>{x, m, l.rows, 0, 2 * lanes<T>}, tile);
      });
      if (c == last) return;
      each_band(l, worker.threads, [&](int share, int64_t band) {
        const FftBuffer<T> line{worker.line(share, 0)};
        line_from_tiles(worker.tiles, l, band, 0, line);
        fft_filter(by_cols, line, line.x, FftWeights<T>{weights + band * lanes<T> * l.cols, true}, line);
        line_to_tiles(line, l, band, 0, worker.tiles);
      });
    }
  };
  each_coil(s, l, workspace, threads, prepare, work, out);
}

// The mask varies along columns' direction, from row to row: only columns are transformed, and no coil waits for
// another.
template <class T>
void normal_rows(const T* image, const T* maps, const T* mask, T* out, const FftPlan& plan, T* workspace,
                 const SenseShape& s, int threads) {
  const Layout<T> l(s);
  const Planes<T> at(s);
  const int shares = share_count(threads, s.batch * l.tiles, 1 + share_grain / (s.coils * l.rows * lanes<T>));
  const int64_t room = lines_per_thread * l.line_size();
  T* weights = workspace + shares * room;
  for (int64_t b = 0; b < s.mask_batch; ++b) axis_weights(mask + b * l.rows, plan, T(1) / l.rows, weights + b * l.rows);
  parallel_shares(shares, s.batch * l.tiles, [&](int share, int64_t begin, int64_t end) {
    T* line[lines_per_thread];
    for (int i = 0; i < lines_per_thread; ++i) line[i] = workspace + share * room + i * l.line_size();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / l.tiles, t = i % l.tiles;
      const FftWeights<T> w{weights + mask_of(s, b) * l.rows, false};
      const auto x = strip(image + at.image(b), l, t, line[2]);
      fill<T>(line[1], 2 * lanes<T> * l.rows, 0);
      for (int64_t c = 0; c < s.coils; ++c) {
        const auto m = strip(maps + at.map(b, c), l, t, line[3]);
        fft_filter(plan, ReadProduct<T>{x, m, l.rows, 0, at.plane}, line[0], w, AddMatched<T>{line[1], m, l.rows, 0});
      }
      tile_to_plane(line[1], l, t, out + at.image(b));
    }
  });
}

// The mask varies from column to column: only rows are transformed.
template <class T>
void normal_cols(const T* image, const T* maps, const T* mask, T* out, const FftPlan& plan, T* workspace,
                 const SenseShape& s, int threads) {
  const Layout<T> l(s);
  const Planes<T> at(s);
  const int shares = share_count(threads, s.batch * l.bands, 1 + share_grain / (s.coils * l.cols * lanes<T>));
  const int64_t room = lines_per_thread * l.line_size();
  T* weights = workspace + shares * room;
  for (int64_t b = 0; b < s.mask_batch; ++b) axis_weights(mask + b * l.cols, plan, T(1) / l.cols, weights + b * l.cols);
  T one[lanes<T>];
  fill<T>(one, lanes<T>, 1);
  const PlaneWeights<T> unit{one, 0, 0};
  const LineColumns columns{l.cols, 0, nullptr};
  parallel_shares(shares, s.batch * l.bands, [&](int share, int64_t begin, int64_t end) {
    FftBuffer<T> line[lines_per_thread];
    for (int i = 0; i < lines_per_thread; ++i) line[i].x = workspace + share * room + i * l.line_size();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / l.bands;
      const LineRows rows{i % l.bands * lanes<T>, l.rows, 0, nullptr};
      const FftWeights<T> w{weights + mask_of(s, b) * l.cols, false};
      line_from_plane(image + at.image(b), l, rows, columns, unit, line[2]);
      fill<T>(line[1].x, 2 * lanes<T> * l.cols, 0);
      for (int64_t c = 0; c < s.coils; ++c) {
        line_from_plane(maps + at.map(b, c), l, rows, columns, unit, line[3]);
        fft_filter(plan, ReadProductLine<T>{line[2], line[3]}, line[0].x, w, AddMatchedLine<T>{line[1], line[3]});
      }
      line_to_plane(line[1], l, rows, columns, unit, out + at.image(b));
    }
  });
}

template <class T>
void normal_constant(const T* image, const T* maps, const T* mask, T* out, const SenseShape& s, int threads) {
  const Planes<T> at(s);
  parallel_for(threads, s.batch * s.rows, 1 + share_grain / (s.coils * s.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / s.rows, row = 2 * s.cols * (i % s.rows);
      const T weight = *sample_mask(mask, s, b);
      for (int64_t j = row; j < row + 2 * s.cols; j += 2) {
        T sum = 0;
        for (int64_t c = 0; c < s.coils; ++c) {
          const T* m = maps + at.map(b, c) + j;
          sum += m[0] * m[0] + m[1] * m[1];
        }
        sum *= weight * weight;
        out[at.image(b) + j] = image[at.image(b) + j] * sum;
        out[at.image(b) + j + 1] = image[at.image(b) + j + 1] * sum;
      }
    }
  });
}

// K-space to the tiles of one coil, transformed back along rows; what the two adjoints share.
template <class T>
PYRECON_INLINE void tiles_from_kspace(const T* kspace, PlaneWeights<T> weights, const Layout<T>& l,
                                      const FftPlan& by_rows, const FftPlan& by_cols, const Worker<T>& worker) {
  each_band(l, worker.threads, [&](int share, int64_t band) {
    const FftBuffer<T> line{worker.line(share, 0)};
    const LineRows rows{band * lanes<T>, l.rows, l.rows / 2, by_rows.frequencies()};
    line_from_plane(kspace, l, rows, LineColumns{l.cols, l.cols / 2, by_cols.positions()}, weights, line);
    fft_inverse(by_cols, line.x, line);
    line_to_tiles(line, l, band, l.cols / 2, worker.tiles);
  });
}

// The mask of a sample with the scale of a unitary transform.
template <class T>
struct UnitaryWeights {
  const T* mask;
  const SenseShape& s;
  const Layout<T>& l;
  PYRECON_MEMBER PlaneWeights<T> operator()(int64_t b, T* weights, int) const {
    const double scale = 1 / __builtin_sqrt(static_cast<double>(l.rows * l.cols));
    return kspace_weights(sample_mask(mask, s, b), s, l, static_cast<T>(scale), weights);
  }
};

}  // namespace

template <class T>
int64_t sense_workspace(const SenseShape& s, int threads) {
  const Layout<T> l(s);
  const Split<T> split(s, threads);
  const int64_t by_coil = split.samples * split.room(l);
  const int64_t by_line = threads * lines_per_thread * l.line_size() + s.mask_batch * (l.rows + l.cols);
  return by_coil > by_line ? by_coil : by_line;
}

template <class T>
void sense_forward(const T* image, const T* maps, const T* mask, T* out, const void* row_plan, const void* col_plan,
                   T* workspace, const SenseShape& s, int threads) {
  const FftPlan &by_rows = plan_at(row_plan), &by_cols = plan_at(col_plan);
  const Layout<T> l(s);
  const Planes<T> at(s);
  const auto work = [&](int64_t b, PlaneWeights<T> weights, const Worker<T>& worker, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      each_tile(l, worker.threads, [&](int share, int64_t t) {
        const auto x = strip(image + at.image(b), l, t, worker.line(share, 0));
        const auto m = strip(maps + at.map(b, c), l, t, worker.line(share, 1));
        fft_forward(by_rows, ReadProduct<T>{x, m, l.rows, l.rows / 2, 2 * lanes<T>}, worker.tiles + t * l.tile_size);
      });
      each_band(l, worker.threads, [&](int share, int64_t band) {
        const FftBuffer<T> line{worker.line(share, 0)};
        line_from_tiles(worker.tiles, l, band, l.cols / 2, line);
        fft_forward(by_cols, line, line.x);
        const LineRows rows{band * lanes<T>, l.rows, l.rows / 2, by_rows.frequencies()};
        const LineColumns columns{l.cols, l.cols / 2, by_cols.positions()};
        line_to_plane(line, l, rows, columns, weights, out + at.coil(b, c));
      });
    }
  };
  each_coil<T>(s, l, workspace, threads, UnitaryWeights<T>{mask, s, l}, work, nullptr);
}

template <class T>
void sense_adjoint(const T* kspace, const T* maps, const T* mask, T* out, const void* row_plan, const void* col_plan,
                   T* workspace, const SenseShape& s, int threads) {
  const FftPlan &by_rows = plan_at(row_plan), &by_cols = plan_at(col_plan);
  const Layout<T> l(s);
  const Planes<T> at(s);
  const auto work = [&](int64_t b, PlaneWeights<T> weights, const Worker<T>& worker, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      tiles_from_kspace(kspace + at.coil(b, c), weights, l, by_rows, by_cols, worker);
      each_tile(l, worker.threads, [&](int share, int64_t t) {
        const auto m = strip(maps + at.map(b, c), l, t, worker.line(share, 0));
        fft_inverse(by_rows, worker.tiles + t * l.tile_size,
                    AddMatched<T>{worker.sum + t * l.tile_size, m, l.rows, l.rows / 2});
      });
    }
  };
  each_coil(s, l, workspace, threads, UnitaryWeights<T>{mask, s, l}, work, out);
}

template <class T>
void sense_maps_adjoint(const T* kspace, const T* image, const T* mask, T* out, const void* row_plan,
                        const void* col_plan, T* workspace, const SenseShape& s, int threads) {
  const FftPlan &by_rows = plan_at(row_plan), &by_cols = plan_at(col_plan);
  const Layout<T> l(s);
  const Planes<T> at(s);
  const auto work = [&](int64_t b, PlaneWeights<T> weights, const Worker<T>& worker, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      tiles_from_kspace(kspace + at.coil(b, c), weights, l, by_rows, by_cols, worker);
      each_tile(l, worker.threads, [&](int share, int64_t t) {
        const auto x = strip(image + at.image(b), l, t, worker.line(share, 0));
        T* to = out + at.coil(b, c) + 2 * t * lanes<T>;
        fft_inverse(by_rows, worker.tiles + t * l.tile_size,
                    PutMatched<T>{to, 2 * l.cols, l.cols - t * lanes<T>, x, l.rows, l.rows / 2});
      });
    }
  };
  each_coil<T>(s, l, workspace, threads, UnitaryWeights<T>{mask, s, l}, work, nullptr);
}

template <class T>
void sense_normal(const T* image, const T* maps, const T* mask, T* out, const void* row_plan, const void* col_plan,
                  T* workspace, const SenseShape& s, int threads) {
  const FftPlan &by_rows = plan_at(row_plan), &by_cols = plan_at(col_plan);
  if (s.mask_rows > 1 && s.mask_cols > 1)
    normal_both(image, maps, mask, out, by_rows, by_cols, workspace, s, threads);
  else if (s.mask_rows > 1)
    normal_rows(image, maps, mask, out, by_rows, workspace, s, threads);
  else if (s.mask_cols > 1)
    normal_cols(image, maps, mask, out, by_cols, workspace, s, threads);
  else
    normal_constant(image, maps, mask, out, s, threads);
}

template <class T>
int64_t sense_plan(int64_t n, void* memory) {
  return fft_plan<T>(n, memory);
}

#define PYRECON_SENSE_OPERATOR(T, name) \
  template void name(const T*, const T*, const T*, T*, const void*, const void*, T*, const SenseShape&, int);
#define PYRECON_SENSE(T)                                       \
  template int64_t sense_plan<T>(int64_t, void*);              \
  template int64_t sense_workspace<T>(const SenseShape&, int); \
  PYRECON_SENSE_OPERATOR(T, sense_forward)                     \
  PYRECON_SENSE_OPERATOR(T, sense_adjoint)                     \
  PYRECON_SENSE_OPERATOR(T, sense_maps_adjoint)                \
  PYRECON_SENSE_OPERATOR(T, sense_normal)
PYRECON_SENSE(float)
PYRECON_SENSE(double)

}  // namespace pyrecon::PYRECON_ISA
