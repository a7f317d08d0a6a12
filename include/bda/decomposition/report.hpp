#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/rounding.hpp"
#include "bda/linalg/product.hpp"

namespace bda::inline v0 {

/// How well one head was decomposed, as stored.
struct HeadReport {
  double residual = 0;             // |Ŵ - W|_F / |W|_F, of what was stored
  double mean_squared_error = 0;   // |Ŵ - W|_F² / (m d)
  double alpha = 0;                // noise amplification, see noise_amplification()
  double largest_coefficient = 0;  // max |C|
  std::int64_t rank = 0;           // of the head; less than r where it was rank-deficient
};

/// One report a head, and the figures of a table.
struct DecompositionReport {
  std::vector<HeadReport> heads;

  [[nodiscard]] double max_alpha() const { return max_of(&HeadReport::alpha); }
  [[nodiscard]] double max_residual() const { return max_of(&HeadReport::residual); }
  [[nodiscard]] double max_coefficient() const { return max_of(&HeadReport::largest_coefficient); }
  [[nodiscard]] double mean_residual() const { return mean_of(&HeadReport::residual); }
  [[nodiscard]] double mean_squared_error() const {
    return mean_of(&HeadReport::mean_squared_error);
  }

 private:
  [[nodiscard]] double max_of(double HeadReport::*field) const {
    double m = 0;
    for (const HeadReport& h : heads) m = std::max(m, h.*field);
    return m;
  }
  [[nodiscard]] double mean_of(double HeadReport::*field) const {
    double sum = 0;
    for (const HeadReport& h : heads) sum += h.*field;
    return heads.empty() ? 0 : sum / static_cast<double>(heads.size());
  }
};

/// Measures a rounded head against W = left rightᵀ, of m rows, without forming either product. With
/// E = B̂ - left Rᵀ and F = Ĉ R - rest the error is [E, E Ĉᵀ + left Fᵀ], so its norm needs only
/// r x r Gram matrices, and nothing cancels however small it is.
template <class W>
HeadReport report_head(Eigen::Index m, const HeadSolution& solution,
                       const RoundedHead<W>& rounded) {
  using Mat = linalg::RowMatrix<W>;
  const Mat r = solution.basis.cast<W>(), rest = solution.rest.cast<W>();
  const Mat& c = rounded.coefficients;
  const Eigen::Index width = r.cols();
  const auto gram = rounded.gram.topLeftCorner(width, width);        // leftᵀ left
  const auto gram_e = rounded.gram.bottomRightCorner(width, width);  // EᵀE
  const auto cross = rounded.gram.bottomLeftCorner(width, width);    // Eᵀ left
  Mat f = -rest;
  linalg::add_product(f, c, r);
  // tr(A G Bᵀ), for A = B the squared norm of A Lᵀ where G = LᵀL
  const auto trace = [](const Mat& a, const auto& g, const Mat& b) {
    return linalg::multiply(a, g).cwiseProduct(b).rowwise().sum().template cast<double>().sum();
  };
  const auto squared = [&](const Mat& a, const auto& g) { return trace(a, g, a); };
  const double error2 = static_cast<double>(gram_e.trace()) + squared(c, gram_e) +
                        2 * trace(c, cross, f) + squared(f, gram);

  const Eigen::VectorXd b2 =
      linalg::multiply(r, gram).cwiseProduct(r).rowwise().sum().template cast<double>();  // |B_j|²
  const double norm2 = b2.sum() + squared(rest, gram);
  const Eigen::VectorXd c2 = solution.coefficients.colwise().squaredNorm();
  const double noise = (b2.array() * (1 + c2.array())).sum();

  HeadReport report;
  const auto entries = static_cast<double>(m) * static_cast<double>(r.rows() + rest.rows());
  report.mean_squared_error = std::max(error2, 0.0) / entries;
  report.residual = norm2 > 0 ? std::sqrt(std::max(error2, 0.0) / norm2) : 0;
  report.alpha = norm2 > 0 ? std::sqrt(std::max(noise, 0.0) / norm2) : 0;
  report.largest_coefficient = c.size() > 0 ? static_cast<double>(c.cwiseAbs().maxCoeff()) : 0.0;
  report.rank = solution.rank;
  return report;
}

}  // namespace bda::inline v0
