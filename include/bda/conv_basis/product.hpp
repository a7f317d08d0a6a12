#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>

#include "bda/conv_basis/basis.hpp"
#include "bda/conv_basis/convolution.hpp"

/// Products of a whole basis with vectors.
namespace bda::inline v0::conv_basis {

namespace detail {

/// Of the convolution of column i (m entries) with the m_i - m_(i+1) entries it meets, or of the
/// transpose's with all m of which that many are wanted: wrap-around touches the others only.
inline std::int64_t product_length(const ConvBasis& h, std::int64_t i) {
  return transform_length(h.width(i) + (h.end(i) - h.start(i)) - 1);
}

/// Visits the columns of `v` in pairs; the last may be paired with none (-1).
template <class Visit>
void for_each_pair(Eigen::Index columns, const Visit& visit) {
  for (Eigen::Index c = 0; c < columns; c += 2) visit(c, c + 1 < columns ? c + 1 : -1);
}

/// Entry `row` of columns a and b (b = -1: none) as one complex number.
inline std::complex<double> pair_entry(const Eigen::MatrixXd& v, Eigen::Index row, Eigen::Index a,
                                       Eigen::Index b) {
  return {v(row, a), b < 0 ? 0.0 : v(row, b)};
}

inline void add_pair(Eigen::MatrixXd& out, Eigen::Index row, Eigen::Index a, Eigen::Index b,
                     std::complex<double> value) {
  out(row, a) += value.real();
  if (b >= 0) out(row, b) += value.imag();
}

}  // namespace detail

/// H v in O(k n c log n), v [n, c]: column i of the basis is convolved with the entries of v that
/// meet it, so that nothing cancels where H has no negative entries.
[[nodiscard]] inline Eigen::MatrixXd multiply(const ConvBasis& h, const Eigen::MatrixXd& v) {
  check::equal("v.rows", v.rows(), h.size(), "size of H");
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(v.rows(), v.cols());
  Eigen::FFT<double> fft;
  for (std::int64_t i = 0; i < h.terms(); ++i) {
    const std::int64_t start = h.start(i), m = h.width(i);
    Convolution with(fft, h.column(i), detail::product_length(h, i));
    detail::for_each_pair(v.cols(), [&](Eigen::Index a, Eigen::Index b) {
      with.run(
          h.end(i) - start, [&](std::int64_t t) { return detail::pair_entry(v, start + t, a, b); },
          0, m, [&](std::int64_t t, auto y) { detail::add_pair(out, start + t, a, b, y); });
    });
  }
  return out;
}

/// H^T v in O(k n c log n), v [n, c]: the same convolutions on v read backwards.
[[nodiscard]] inline Eigen::MatrixXd multiply_transposed(const ConvBasis& h,
                                                         const Eigen::MatrixXd& v) {
  check::equal("v.rows", v.rows(), h.size(), "size of H");
  const std::int64_t last = h.size() - 1;
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(v.rows(), v.cols());
  Eigen::FFT<double> fft;
  for (std::int64_t i = 0; i < h.terms(); ++i) {
    Convolution with(fft, h.column(i), detail::product_length(h, i));
    detail::for_each_pair(v.cols(), [&](Eigen::Index a, Eigen::Index b) {
      with.run(
          h.width(i), [&](std::int64_t t) { return detail::pair_entry(v, last - t, a, b); },
          h.size() - h.end(i), h.width(i),
          [&](std::int64_t t, auto y) { detail::add_pair(out, last - t, a, b, y); });
    });
  }
  return out;
}

/// Bound on the rounding error of every entry of `multiply(h, v)`, v [n, 1] or more columns: each
/// convolution's own (a pair's two columns share their norm), and the k - 1 additions.
[[nodiscard]] inline double multiply_roundoff(const ConvBasis& h, const Eigen::MatrixXd& v) {
  constexpr double u = std::numeric_limits<double>::epsilon() / 2;
  double bound = 0;
  for (std::int64_t i = 0; i < h.terms(); ++i) {
    double pair = 0;  // the largest norm of two neighbouring columns
    const auto part = v.middleRows(h.start(i), h.end(i) - h.start(i));
    detail::for_each_pair(v.cols(), [&](Eigen::Index a, Eigen::Index b) {
      pair = std::max(pair, std::hypot(part.col(a).norm(), b < 0 ? 0 : part.col(b).norm()));
    });
    const double size = h.column(i).norm() * pair;
    bound += (convolution_roundoff(detail::product_length(h, i)) +
              u * static_cast<double>(h.terms() - 1)) *
             size;
  }
  return bound;
}

}  // namespace bda::inline v0::conv_basis
