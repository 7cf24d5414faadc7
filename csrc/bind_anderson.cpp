#include "bind.hpp"
#include "cpu/anderson.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void anderson_mix(Address X, Address G, Address gram, Address count, std::int64_t count_stride, Address next,
                  std::int64_t batch, std::int64_t m, std::int64_t n, double beta, double ridge, bool absolute_ridge,
                  int threads) {
  const AndersonOptions options{beta, ridge, absolute_ridge, 0.0};
  PYRECON_SELECT(anderson_mix<T>)
  (ptr<const T>(X), ptr<const T>(G), ptr<T>(gram), ptr<const int64_t>(count), count_stride, ptr<T>(next), batch, m, n,
   options, threads);
}

// parts: (address, length) per state tensor, in workspace order.
template <class T>
void anderson_advance(const pybind11::tuple& parts, Address x, Address rows, std::int64_t active, Address H, Address G,
                      Address gram, Address count, std::int64_t m, std::int64_t n, Address norms, double beta,
                      double ridge, bool absolute_ridge, double safeguard, int threads) {
  constexpr std::size_t kMaxParts = 16;
  Component<T> components[kMaxParts];
  if (parts.size() > kMaxParts) throw pybind11::value_error("a state has at most 16 tensors");
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto part = parts[i].cast<pybind11::tuple>();
    components[i] = {ptr<const T>(part[0].cast<Address>()), part[1].cast<std::int64_t>(), offset};
    offset += components[i].length;
  }
  const std::int64_t n_components = static_cast<std::int64_t>(parts.size());
  const AndersonWorkspace<T> work{ptr<T>(H), ptr<T>(G), ptr<double>(gram), ptr<int64_t>(count), m, n};
  const AndersonOptions options{beta, ridge, absolute_ridge, safeguard};
  const pybind11::gil_scoped_release release;
  PYRECON_SELECT(anderson_advance<T>)
  (components, n_components, ptr<T>(x), ptr<const int64_t>(rows), active, work, ptr<double>(norms), options, threads);
}

}  // namespace

void register_anderson(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("anderson_mix_f32", &anderson_mix<float>, release_gil());
  m.def("anderson_mix_f64", &anderson_mix<double>, release_gil());
  m.def("anderson_advance_f32", &anderson_advance<float>);
  m.def("anderson_advance_f64", &anderson_advance<double>);
}

}  // namespace pyrecon
