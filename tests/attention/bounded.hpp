#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

/// Running error analysis: a value in double beside a bound of what any evaluation in a less exact
/// arithmetic can be off by, whatever the order of its sums. The tests' tolerances come from here.
namespace bda::testing {

struct Bounded {
  double value = 0;
  double error = 0;  // absolute

  Bounded() = default;
  Bounded(double v, double e = 0) : value(v), error(e) {}  // NOLINT: exact numbers convert
  [[nodiscard]] double magnitude() const { return std::abs(value) + error; }
};

/// The arithmetic under test, of unit roundoff u. First-order terms are taken with a factor that
/// covers the higher orders for the few hundred operations of a test: (1 + u)^n - 1 <= 1.01 n u.
class Arithmetic {
 public:
  explicit Arithmetic(double unit_roundoff) : u_(1.01 * unit_roundoff) {}

  /// One rounding of a result.
  [[nodiscard]] Bounded rounded(Bounded x, double ulps = 1) const {
    return {x.value, x.error + ulps * u_ * x.magnitude()};
  }
  [[nodiscard]] Bounded product(Bounded a, Bounded b) const {
    const double error =
        std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error;
    return rounded({a.value * b.value, error});
  }
  [[nodiscard]] Bounded quotient(Bounded a, Bounded b) const {
    const double smallest = std::abs(b.value) - b.error;
    const double value = a.value / b.value;
    return rounded({value, (a.error + std::abs(value) * b.error) / smallest});
  }
  /// start + sum_i a_i b_i, summed in any order, fused or not: n + 1 roundings of every term.
  [[nodiscard]] Bounded dot(const std::vector<Bounded>& a, const std::vector<Bounded>& b,
                            Bounded start = {}) const {
    double value = start.value, error = start.error, magnitude = start.magnitude();
    for (std::size_t i = 0; i < a.size(); ++i) {
      value += a[i].value * b[i].value;
      error += std::abs(a[i].value) * b[i].error + std::abs(b[i].value) * a[i].error +
               a[i].error * b[i].error;
      magnitude += a[i].magnitude() * b[i].magnitude();
    }
    return {value, error + (static_cast<double>(a.size()) + 1) * u_ * magnitude};
  }
  [[nodiscard]] Bounded sum(const std::vector<Bounded>& a, Bounded start = {}) const {
    return dot(a, std::vector<Bounded>(a.size(), Bounded(1.0)), start);
  }
  /// 1 / sqrt(x), x > 0.
  [[nodiscard]] Bounded reciprocal_root(Bounded x) const {
    const double value = 1 / std::sqrt(x.value);
    const double relative = x.error / (x.value - x.error);
    return rounded({value, value * relative}, 2);
  }
  /// A vectorised exp is good to 4 ulps, and does not go below the smallest normal float.
  [[nodiscard]] Bounded exponential(Bounded x) const {
    const double value = std::exp(x.value);
    Bounded result = rounded({value, value * std::expm1(x.error)}, 4);
    result.error += 2e-38;
    return result;
  }
  /// A vectorised tanh is good to 8 ulps; its slope is at most 1.
  [[nodiscard]] Bounded hyperbolic_tangent(Bounded x) const {
    return rounded({std::tanh(x.value), x.error}, 8);
  }

 private:
  double u_;
};

}  // namespace bda::testing
