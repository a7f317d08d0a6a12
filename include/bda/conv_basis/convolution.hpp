#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <unsupported/Eigen/FFT>
#include <vector>

#include "bda/core/checks.hpp"

namespace bda::inline v0::conv_basis {

/// The smallest length of at least `needed` that the transform is fast for and that leaves few
/// distinct ones (the transform keeps a table of each): 1, 5/4 or 3/2 times a power of two.
[[nodiscard]] inline std::int64_t transform_length(std::int64_t needed) {
  std::int64_t power = 4;
  while (true) {
    for (std::int64_t length : {power, power / 4 * 5, power / 2 * 3})
      if (length >= needed) return length;
    power *= 2;
  }
}

/// Bound on every entry's rounding error in a convolution of a and v by transforms of `length`,
/// over |a|_2 |v|_2.
///
/// Percival (Math. Comp. 72, 2003, theorem 5.1): |x|_2 |y|_2 ((1+u)^(3s) (1+u sqrt 5)^(3s+1)
/// (1+t)^(3s) - 1) for s = log2(length) stages, t the error of a root of unity. Eigen's kissfft
/// takes sine and cosine of angles up to pi/4 that were rounded three times: t < 4 u. To first
/// order that is (3 + 3 sqrt 5 + 12) s + sqrt 5 < 22 s + 3 of u; other radices do no more.
[[nodiscard]] inline double convolution_roundoff(std::int64_t length) {
  constexpr double u = std::numeric_limits<double>::epsilon() / 2;
  return (22 * std::ceil(std::log2(static_cast<double>(length))) + 3) * u;
}

/// Products with one fixed vector a, by FFT; two real inputs a transform, as real and imaginary
/// part.
class Convolution {
 public:
  /// `length` has to be such that no wanted entry wraps around: entry p of the linear convolution
  /// shows up at p mod length. `fft` must outlive the object; its tables are made once per length.
  Convolution(Eigen::FFT<double>& fft, const Eigen::Ref<const Eigen::VectorXd>& a,
              std::int64_t length)
      : fft_(fft),
        spectrum_(static_cast<std::size_t>(length)),
        buffer_(static_cast<std::size_t>(length)),
        transformed_(static_cast<std::size_t>(length)) {
    check::at_least("Convolution.length", length, a.size());
    for (Eigen::Index i = 0; i < a.size(); ++i) buffer_[static_cast<std::size_t>(i)] = a(i);
    fft_.fwd(spectrum_.data(), buffer_.data(), length);
  }

  /// Cyclic convolution with u + i v, both padded with zeros; `load(i)` gives entry i < count,
  /// `store(i, value)` takes entries [first, last) of the result.
  template <class Load, class Store>
  void run(std::int64_t count, const Load& load, std::int64_t first, std::int64_t last,
           const Store& store) {
    const auto length = static_cast<Eigen::Index>(buffer_.size());
    for (std::int64_t i = 0; i < count; ++i) buffer_[static_cast<std::size_t>(i)] = load(i);
    std::fill(buffer_.begin() + count, buffer_.end(), 0.0);
    fft_.fwd(transformed_.data(), buffer_.data(), length);
    // std::complex's own product looks for NaN, at three times the cost.
    for (std::size_t i = 0; i < buffer_.size(); ++i) {
      const double a = spectrum_[i].real(), b = spectrum_[i].imag();
      const double x = transformed_[i].real(), y = transformed_[i].imag();
      transformed_[i] = {a * x - b * y, a * y + b * x};
    }
    fft_.inv(buffer_.data(), transformed_.data(), length);
    for (std::int64_t i = first; i < last; ++i) store(i, buffer_[static_cast<std::size_t>(i)]);
  }

 private:
  Eigen::FFT<double>& fft_;
  std::vector<std::complex<double>> spectrum_, buffer_, transformed_;
};

/// conv(b, m) v in O(m log m): the last m = b.size() entries of the result are the first m of the
/// convolution of b with the last m of v, the others zero. v [n].
[[nodiscard]] inline Eigen::VectorXd sub_convolution(const Eigen::VectorXd& b,
                                                     const Eigen::VectorXd& v) {
  const std::int64_t m = b.size(), n = v.size();
  check::in_range("b.size", m, 1, n);
  Eigen::VectorXd out = Eigen::VectorXd::Zero(n);
  Eigen::FFT<double> fft;
  Convolution(fft, b, transform_length(2 * m - 1))
      .run(
          m, [&](std::int64_t i) { return std::complex<double>(v(n - m + i)); }, 0, m,
          [&](std::int64_t i, std::complex<double> y) { out(n - m + i) = y.real(); });
  return out;
}

}  // namespace bda::inline v0::conv_basis
