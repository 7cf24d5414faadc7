// The ratio of modified Bessel functions A = I1 / I0 and what belongs to it, of z >= 0, to a few eps.
#pragma once

#include "cpu/lookup.hpp"

namespace pyrecon::PYRECON_ISA {

// Polynomials in w = (z / edge)^2 of I0, I1 / z and I0^2 - I0 I1 / z - I1^2, and from edge on in w = edge / z of
// z (z (1 - A) - 1/2) and z (I0 exp(-z))^2: interpolated at the Chebyshev points of [0, 1] in 60 digits; relative
// errors below 7e-10 (1.7e-8 of the fourth, which the square of 1 / edge multiplies) and 5e-17. At `edge` both are
// short.
template <class T>
struct BesselTable;
template <>
struct BesselTable<float> {
  static constexpr float edge = 8;
  static constexpr float i0[] = {0.9999999997f, 16.00000007f,  63.99999648f,   113.7778433f,
                                 113.7771488f,  72.82133346f,  32.35074814f,   10.59744837f,
                                 2.59560395f,   0.5689436427f, 0.05373484037f, 0.02131467664f};
  static constexpr float i1[] = {0.5000000004f, 3.999999907f,   10.66667038f,   14.22216458f,
                                 11.37823625f,  6.066026612f,   2.317772175f,   0.6492930752f,
                                 0.1598247679f, 0.01682303489f, 7.331315319e-3f};
  static constexpr float turan[] = {0.5f,           3.999999998f, 21.33333356f, 71.11110237f,   159.289063f,
                                    254.8601199f,   305.1578756f, 283.2532023f, 210.2502817f,   125.8052959f,
                                    66.02531547f,   23.39832736f, 14.11990497f, -0.5986105957f, 3.035880339f,
                                    -0.6365412966f, 0.2174659438f};
  static constexpr float tail[] = {0.1250000019f,  0.01562461243f,   3.064383529e-3f, 6.358368245e-4f,
                                   1.23906041e-3f, -3.341830669e-3f, 7.100147593e-3f, -8.377521733e-3f,
                                   5.34762463e-3f, -1.363901684e-3f};
  static constexpr float power[] = {0.1591549434f,   4.973557309e-3f,  3.891018424e-4f, 4.79278022e-5f,
                                    1.760589651e-5f, -7.497751084e-6f, 5.769466239e-6f};
};
template <>
struct BesselTable<double> {
  static constexpr double edge = 12;
  static constexpr double i0[] = {
      0.999999999999999991,  36.0000000000000074,    323.999999999999018,    1296.00000000005178,
      2915.9999999985556,    4199.04000002460848,    4199.03999972098212,    3085.008981817723,
      1735.31753804420528,   771.2523016475465,      277.650618609285029,    82.607341145562916,
      20.650732202736856,    4.40071052416112985,    0.806169381688189704,   0.130979759594324552,
      0.0170128523672276876, 2.84115960620334093e-3, 6.12907218641385575e-5, 6.11169133424354365e-5};
  static constexpr double i1[] = {
      0.50000000000000001,    8.99999999999999261,    54.0000000000008866,   161.999999999957839,
      291.600000001058472,    349.919999983802974,    299.931428735911058,   192.8130600535115,
      96.4065366761082079,    38.5625888241900635,    12.6205598656468257,   3.4417984362203155,
      0.794561249809953229,   0.156765049262398657,   0.0272814528814030751, 3.78301544564076204e-3,
      6.70305075427073507e-4, 1.53527696072962843e-5, 1.61349167355480485e-5};
  static constexpr double turan[] = {
      0.500000000000000011, 8.99999999999998336,  108.000000000004036, 809.999999999610234,  4082.40000002001844,
      14696.6399993667601,  39590.9485849075036,  82716.8030605730943, 137861.341088205062,  187491.400708973578,
      211973.907514775082,  202337.863559056904,  165226.46050256324,  116708.185666630559,  72066.5962045780481,
      39085.6491782801598,  19071.2453426341211,  7881.32257826455824, 3539.55456718350729,  683.585061722428308,
      743.752043487031696,  -186.354139975716011, 195.577099824664116, -68.2986207047867484, 25.7943441979433002,
      -4.91236130346373723, 0.664250447432561599};
  static constexpr double tail[] = {
      0.125000000000000004,   0.0104166666666624938,  1.35633680635271236e-3, 2.35098319199644063e-4,
      5.05353906555906581e-5, 1.2875787053193241e-5,  4.82066316837706463e-6, -1.01160662703964322e-5,
      9.83649716781763206e-5, -6.3603261620598559e-4, 3.20061978051965017e-3, -0.0126439016216871346,
      0.0396291177339450092,  -0.0991582900700486853, 0.19860955888138495,    -0.318186394185352416,
      0.405880176107641588,   -0.408559185781436747,  0.319798508116456385,   -0.19025277519988764,
      0.0829846001983867047,  -0.0249930788796494035, 4.64001538660036493e-3, -3.99897304048706646e-4};
  static constexpr double power[] = {0.159154943091895341,    3.31572798107830568e-3,  1.72694165952467365e-4,
                                     1.51107293426584174e-5,  1.90028426109521648e-6,  3.12700885417549507e-7,
                                     8.31919032465762011e-8,  -7.90962022005673454e-8, 3.62749973471849946e-7,
                                     -9.71788449698110041e-7, 1.93033721433679602e-6,  -2.78318571435768694e-6,
                                     2.8795772263236792e-6,   -2.07224592390067739e-6, 9.79629327164781604e-7,
                                     -2.71428748969122677e-7, 3.31384709250253052e-8};
};

template <class T, int N>
PYRECON_INLINE Vec<T> polynomial(const T (&c)[N], Vec<T> w) {
  Vec<T> v = splat(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) v = v * w + c[i];
  return v;
}

template <class T>
struct BesselRatio {
  Vec<T> a, slope;  // A and z A'
  Vec<T> square;    // I0^2, times exp(-2 z) where z is not near
  Ints<T> near;
};

template <class T>
PYRECON_INLINE BesselRatio<T> bessel_ratio(Vec<T> z) {
  typedef BesselTable<T> Table;
  typedef Vec<T> V;
  BesselRatio<T> r;
  r.near = z < Table::edge;
  V i0 = {}, i1 = {}, turan = {};
  if (any<T>(r.near)) {
    const V x = (r.near ? z : V{}) * (1 / Table::edge), w = x * x;
    i0 = polynomial<T>(Table::i0, w), i1 = polynomial<T>(Table::i1, w), turan = polynomial<T>(Table::turan, w);
  }
  const V y = T(1) / (r.near ? i0 : z);
  r.a = z * i1 * y, r.slope = z * turan * y * y, r.square = i0 * i0;
  if (any<T>(~r.near)) {
    // A = 1 - y (1/2 + y e) into A' = 1 - y A - A^2 leaves a sum in which nothing cancels.
    const V w = (r.near ? V{} : y) * Table::edge, e = polynomial<T>(Table::tail, w);
    const V far = T(1) - y * (T(0.5) + y * e), bent = y * (T(0.25) + T(2) * e - y * y * e * e);
    const V square = polynomial<T>(Table::power, w) * y;
    r.a = r.near ? r.a : far, r.slope = r.near ? r.slope : bent, r.square = r.near ? r.square : square;
  }
  return r;
}

// The logarithm of a product of positive numbers, one for all of them: the exponents are added as they come.
template <class T>
struct LogProduct {
  static constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  typedef decltype(Ints<T>{}[0] + 0) Int;
  static constexpr Int bias = sizeof(T) == 4 ? 127 : 1023, fraction = (Int(1) << mantissa) - 1;
  Vec<T> product = splat(T(1));
  Ints<T> exponent = {};

  PYRECON_MEMBER void multiply(Vec<T> v) {
    const Ints<T> bits = (Ints<T>)(product * v);
    exponent += (bits >> mantissa) - bias;
    product = (Vec<T>)((bits & fraction) | (bias << mantissa));
  }

  // log m = 2 atanh(t), t = (m - 1) / (m + 1), for m from sqrt(1/2) to sqrt(2): t^2 is below 0.0295.
  PYRECON_MEMBER Vec<T> log() const {
    const Ints<T> high = product > T(1.4142135623730951);
    const Vec<T> m = high ? T(0.5) * product : product, t = (m - T(1)) / (m + T(1)), w = t * t;
    const Vec<T> e = whole<T>(exponent) + (high ? splat(T(1)) : Vec<T>{});
    constexpr int terms = sizeof(T) == 4 ? 5 : 11;
    Vec<T> sum = splat(T(1) / T(2 * terms + 1));
    for (int i = terms - 1; i >= 0; --i) sum = sum * w + T(1) / T(2 * i + 1);
    return e * T(0.6931471805599453) + T(2) * t * sum;
  }
};

}  // namespace pyrecon::PYRECON_ISA
