#pragma once

#include <Eigen/LU>
#include <cmath>
#include <limits>

#include "bda/core/index_set.hpp"
#include "bda/decomposition/head_factors.hpp"

namespace bda::inline v0 {

/// How much a decomposition amplifies the rounding of what it stores:
/// alpha² = sum_j |B_j|² (1 + |C_j|²) / |W|_F², over basis channels j, with B_j the column of the
/// basis and C_j the coefficients that multiply it. Storing B and C with relative rounding error u
/// per entry (root mean square) gives W back with relative error u alpha. A plain factor pair has
/// alpha of 1 to 1.6; a basis of nearly dependent channels has hundreds.
///
/// `left` may be condensed (linalg::condense). Returns infinity for channels that are dependent.
template <class S>
double noise_amplification(const HeadFactors<S>& head, const IndexSet& basis) {
  using Mat = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic>;
  const Mat right = head.right.template cast<double>(), left = head.left.template cast<double>();
  const Mat r = right(basis.indices(), Eigen::all);
  const Eigen::PartialPivLU<Mat> lu(r.transpose());
  const Mat m = lu.solve(right.transpose());  // [r, d]: the rows of [I, Cᵀ] P
  const Eigen::VectorXd b2 = (left * r.transpose()).colwise().squaredNorm();
  const double noise = b2.dot(m.rowwise().squaredNorm());
  const double norm2 = (left.transpose() * left * right.transpose() * right).trace();
  const double alpha = std::sqrt(noise / norm2);
  return std::isfinite(alpha) ? alpha : std::numeric_limits<double>::infinity();
}

}  // namespace bda::inline v0
