// Where the data of one coil lie while it is transformed, and how they get there and back.
//
// Tiles of `lanes` columns: tile t holds, row by row, the (re, im) vectors of columns t * lanes ... Products with maps
// and transforms along columns work on tiles as they are. Transforms along rows work on lines: `lanes` rows out of
// every tile, transposed.
//
// Nothing is ever shifted: position i of a transform belongs to index (i + n / 2) mod n of a centred axis, and reading
// and writing there is a matter of addresses. In A^H A the shifts of the image cancel and the mask is read rolled.
#pragma once

#include "cpu/fft.hpp"
#include "cpu/sense.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

template <class T>
struct Layout {
  int64_t rows, cols, tiles, bands, tile_size;

  explicit PYRECON_MEMBER Layout(const SenseShape& s)
      : rows(s.rows),
        cols(s.cols),
        tiles((s.cols + lanes<T> - 1) / lanes<T>),
        bands((s.rows + lanes<T> - 1) / lanes<T>),
        tile_size(2 * lanes<T> * lanes<T> * bands) {}

  PYRECON_MEMBER int64_t coil_size() const { return tiles * tile_size; }
  PYRECON_MEMBER int64_t line_size() const { return 2 * lanes<T> * (rows > cols ? rows : cols); }
};

PYRECON_INLINE int64_t wrapped(int64_t i, int64_t n) { return i < 0 ? i + n : i < n ? i : i - n; }

// `width` <= lanes complex numbers from p, or zeros where there are none.
template <class T>
PYRECON_INLINE void get_some(const T* p, int64_t width, Vec<T>& re, Vec<T>& im) {
  T buffer[2 * lanes<T>] = {};
  for (int64_t i = 0; i < 2 * width; ++i) buffer[i] = p[i];
  get_complex(buffer, re, im);
}

template <class T>
PYRECON_INLINE void put_some(T* p, int64_t width, Vec<T> re, Vec<T> im) {
  T buffer[2 * lanes<T>];
  put_complex(buffer, re, im);
  for (int64_t i = 0; i < 2 * width; ++i) p[i] = buffer[i];
}

// A strip of `lanes` columns of a plane of complex numbers; the last one of a plane that is not a multiple wide is a
// copy in `room`, filled up with zeros.
template <class T>
struct Strip {
  const T* first;
  int64_t stride;
};

template <class T>
PYRECON_INLINE Strip<T> strip(const T* plane, const Layout<T>& l, int64_t tile, T* room) {
  const int64_t width = l.cols - tile * lanes<T>;
  const T* first = plane + 2 * tile * lanes<T>;
  if (width >= lanes<T>) return {first, 2 * l.cols};
  for (int64_t i = 0; i < l.rows; ++i)
    for (int64_t k = 0; k < 2 * lanes<T>; ++k)
      room[2 * lanes<T> * i + k] = k < 2 * width ? first[2 * l.cols * i + k] : 0;
  return {room, 2 * lanes<T>};
}

// --- what rides along with the transforms over columns: position i is row i + shift of the plane
template <class T>
struct ReadProduct {  // image * maps
  Strip<T> image, maps;
  int64_t rows, shift, ahead;
  PYRECON_MEMBER void read(int64_t i, Vec<T>& re, Vec<T>& im) const {
    const int64_t row = wrapped(i + shift, rows);
    const T* m = maps.first + maps.stride * row;
    __builtin_prefetch(m + ahead);  // a column of short pieces is no stream that the processor would foresee
    Vec<T> xr, xi, mr, mi;
    get_complex(image.first + image.stride * row, xr, xi);
    get_complex(m, mr, mi);
    re = xr * mr - xi * mi;
    im = xr * mi + xi * mr;
  }
};

template <class T>
struct AddMatched {  // sum += value * conj(maps), the sum in a tile
  T* sum;
  Strip<T> maps;
  int64_t rows, shift;
  PYRECON_MEMBER void write(int64_t i, Vec<T> re, Vec<T> im) const {
    const int64_t row = wrapped(i + shift, rows);
    Vec<T> mr, mi, sr, si;
    get_complex(maps.first + maps.stride * row, mr, mi);
    FftBuffer<T>{sum}.read(row, sr, si);
    FftBuffer<T>{sum}.write(row, sr + re * mr + im * mi, si + im * mr - re * mi);
  }
};

template <class T>
struct PutMatched {  // out = value * conj(image)
  T* out;
  int64_t stride, width;
  Strip<T> image;
  int64_t rows, shift;
  PYRECON_MEMBER void write(int64_t i, Vec<T> re, Vec<T> im) const {
    const int64_t row = wrapped(i + shift, rows);
    Vec<T> xr, xi;
    get_complex(image.first + image.stride * row, xr, xi);
    const Vec<T> vr = re * xr + im * xi, vi = im * xr - re * xi;
    if (width >= lanes<T>)
      put_complex(out + stride * row, vr, vi);
    else
      put_some(out + stride * row, width, vr, vi);
  }
};

// The same over rows, everything transposed beforehand.
template <class T>
struct ReadProductLine {
  FftBuffer<T> image, maps;
  PYRECON_MEMBER void read(int64_t i, Vec<T>& re, Vec<T>& im) const {
    Vec<T> xr, xi, mr, mi;
    image.read(i, xr, xi);
    maps.read(i, mr, mi);
    re = xr * mr - xi * mi;
    im = xr * mi + xi * mr;
  }
};

template <class T>
struct AddMatchedLine {
  FftBuffer<T> sum, maps;
  PYRECON_MEMBER void write(int64_t i, Vec<T> re, Vec<T> im) const {
    Vec<T> mr, mi, sr, si;
    maps.read(i, mr, mi);
    sum.read(i, sr, si);
    sum.write(i, sr + re * mr + im * mi, si + im * mr - re * mi);
  }
};

// --- between tiles or planes and lines: a line is `lanes` rows, transposed
// Rows band * lanes .. of every tile; column j goes to position j - shift of the line.
template <class T>
PYRECON_INLINE void line_from_tiles(const T* tiles, const Layout<T>& l, int64_t band, int64_t shift,
                                    FftBuffer<T> line) {
  constexpr int n = lanes<T>;
  for (int64_t t = 0; t < l.tiles; ++t) {
    const FftBuffer<T> tile{const_cast<T*>(tiles) + t * l.tile_size};
    Vec<T> re[n], im[n];
    for (int i = 0; i < n; ++i) tile.read(band * n + i, re[i], im[i]);
    transpose<T>(re);
    transpose<T>(im);
    for (int i = 0; i < n; ++i) {
      const int64_t j = t * n + complex_lane<T>(i);
      if (j < l.cols) line.write(wrapped(j - shift, l.cols), re[i], im[i]);
    }
  }
}

template <class T>
PYRECON_INLINE void line_to_tiles(FftBuffer<T> line, const Layout<T>& l, int64_t band, int64_t shift, T* tiles) {
  constexpr int n = lanes<T>;
  for (int64_t t = 0; t < l.tiles; ++t) {
    Vec<T> re[n], im[n];
    for (int i = 0; i < n; ++i) {
      const int64_t j = t * n + complex_lane<T>(i);
      line.read(wrapped((j < l.cols ? j : 0) - shift, l.cols), re[i], im[i]);
    }
    transpose<T>(re);
    transpose<T>(im);
    const FftBuffer<T> tile{tiles + t * l.tile_size};
    for (int i = 0; i < n; ++i) tile.write(band * n + i, re[i], im[i]);
  }
}

// Which rows of a plane the lanes of a line are: those of positions first, first + 1, .. .
struct LineRows {
  int64_t first, count, shift;
  const int32_t* index;  // null: the position itself
  PYRECON_MEMBER int64_t at(int i) const {
    const int64_t p = first + i;
    return p >= count ? -1 : index ? wrapped(index[p] + shift, count) : p;
  }
};

// At which position of a line column j of a plane is.
struct LineColumns {
  int64_t count, shift;
  const int32_t* position;  // null: j itself
  PYRECON_MEMBER int64_t at(int64_t j) const { return position ? position[wrapped(j - shift, count)] : j; }
};

// Factors of a plane, vectors of columns in the order of get_complex; steps of 0 where they are constant.
template <class T>
struct PlaneWeights {
  const T* w;
  int64_t row_step, tile_step;
  PYRECON_MEMBER Vec<T> at(int64_t row, int64_t tile) const { return load(w + row * row_step + tile * tile_step); }
};

template <class T>
PYRECON_INLINE void line_from_plane(const T* plane, const Layout<T>& l, LineRows rows, LineColumns columns,
                                    PlaneWeights<T> weights, FftBuffer<T> line) {
  constexpr int n = lanes<T>;
  for (int64_t t = 0; t < l.tiles; ++t) {
    const int64_t width = l.cols - t * n;
    Vec<T> re[n], im[n];
    for (int i = 0; i < n; ++i) {
      const int64_t row = rows.at(i);
      re[i] = im[i] = Vec<T>{};
      if (row < 0) continue;
      const T* p = plane + 2 * (row * l.cols + t * n);
      if (width >= n)
        get_complex(p, re[i], im[i]);
      else
        get_some(p, width, re[i], im[i]);
      const Vec<T> w = weights.at(row, t);
      re[i] *= w;
      im[i] *= w;
    }
    transpose<T>(re);
    transpose<T>(im);
    for (int i = 0; i < n; ++i)
      if (complex_lane<T>(i) < width) line.write(columns.at(t * n + complex_lane<T>(i)), re[i], im[i]);
  }
}

template <class T>
PYRECON_INLINE void line_to_plane(FftBuffer<T> line, const Layout<T>& l, LineRows rows, LineColumns columns,
                                  PlaneWeights<T> weights, T* plane) {
  constexpr int n = lanes<T>;
  for (int64_t t = 0; t < l.tiles; ++t) {
    const int64_t width = l.cols - t * n;
    Vec<T> re[n], im[n];
    for (int i = 0; i < n; ++i)
      line.read(columns.at(t * n + (complex_lane<T>(i) < width ? complex_lane<T>(i) : 0)), re[i], im[i]);
    transpose<T>(re);
    transpose<T>(im);
    for (int i = 0; i < n; ++i) {
      const int64_t row = rows.at(i);
      if (row < 0) continue;
      const Vec<T> w = weights.at(row, t);
      T* p = plane + 2 * (row * l.cols + t * n);
      if (width >= n)
        put_complex(p, re[i] * w, im[i] * w);
      else
        put_some(p, width, re[i] * w, im[i] * w);
    }
  }
}

template <class T>
PYRECON_INLINE void fill(T* p, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// Rows that fill up the last band: zero, so that no garbage is transformed.
template <class T>
PYRECON_INLINE void clear_padding(T* tiles, const Layout<T>& l) {
  for (int64_t t = 0; t < l.tiles; ++t)
    fill<T>(tiles + t * l.tile_size + 2 * lanes<T> * l.rows, l.tile_size - 2 * lanes<T> * l.rows, 0);
}

// The sum of all coils from its tile to the image.
template <class T>
PYRECON_INLINE void tile_to_plane(const T* sum, const Layout<T>& l, int64_t tile, T* plane) {
  const int64_t width = l.cols - tile * lanes<T>;
  for (int64_t i = 0; i < l.rows; ++i) {
    T* p = plane + 2 * (i * l.cols + tile * lanes<T>);
    Vec<T> re, im;
    FftBuffer<T>{const_cast<T*>(sum)}.read(i, re, im);
    if (width >= lanes<T>)
      put_complex(p, re, im);
    else
      put_some(p, width, re, im);
  }
}

}  // namespace pyrecon::PYRECON_ISA
