#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "bda/core/index_set.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/head_factors.hpp"

namespace bda::inline v0 {

/// How much a decomposition amplifies the rounding of what it stores:
/// alpha² = sum_j |B_j|² (1 + |C_j|²) / |W|_F², over basis channels j, with B_j the column of the
/// basis and C_j the coefficients that multiply it. Storing B and C with relative rounding error u
/// per entry (root mean square) gives W back with relative error u alpha. A plain factor pair has
/// alpha of 1 to 1.6; a basis of nearly dependent channels has hundreds.
///
/// `left` may be condensed (linalg::condense). Zero for an all-zero head; infinity where the basis
/// channels span less than the head does.
template <class S>
double noise_amplification(const HeadFactors<S>& head, const IndexSet& basis) {
  const linalg::RowMatrix<double> right = head.right.template cast<double>();
  const linalg::RowMatrix<double> left = head.left.template cast<double>();
  const double norm2 = linalg::multiply_transposed(left, right).squaredNorm();
  if (norm2 == 0) return 0;
  std::int64_t rank = 0;
  const auto solution = detail::try_solve(right, basis, basis.rest(), rank);
  if (!solution) return std::numeric_limits<double>::infinity();
  const Eigen::RowVectorXd b2 =
      linalg::multiply_transposed(left, solution->basis).colwise().squaredNorm();
  const Eigen::RowVectorXd c2 = solution->coefficients.colwise().squaredNorm();
  return std::sqrt((b2.array() * (1 + c2.array())).sum() / norm2);
}

}  // namespace bda::inline v0
