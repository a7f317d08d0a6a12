#pragma once

#include <Eigen/LU>
#include <Eigen/QR>
#include <cstdint>
#include <optional>
#include <string>

#include "bda/core/index_set.hpp"
#include "bda/decomposition/head_factors.hpp"

namespace bda::inline v0 {

/// The two r-column pieces that a basis S cuts the right factor into, and the coefficients that
/// connect them: `rest = coefficients * basis`.
struct HeadSolution {
  using Mat = linalg::RowMatrix<double>;
  Mat basis;              // R = right[S, :], [r, r]; B = left Rᵀ
  Mat rest;               // right[rest, :], [d - r, r]
  Mat coefficients;       // C = rest R⁻¹ (the pseudo-inverse where the head is rank-deficient)
  std::int64_t rank = 0;  // of R; less than r only for a rank-deficient head
};

namespace detail {

/// Below this reciprocal condition a head is treated as possibly rank-deficient. Trained weights
/// do not come near it (their worst bases have 1e-6); exact duplicates and zeros are at 1e-16.
inline constexpr double kSuspectCondition = 1e-11;
/// Pivots below this share of the largest count as zero.
inline constexpr double kRankTolerance = 1e-12;

/// Rank-revealing factorisation: rank, range, null space and minimum-norm solutions.
inline Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> rank_revealing(
    const Eigen::MatrixXd& matrix) {
  Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> cod(matrix.rows(), matrix.cols());
  cod.setThreshold(kRankTolerance);
  cod.compute(matrix);
  return cod;
}

/// Solves for the coefficients; nothing where the basis channels span less than the head does.
/// `basis_rank` receives the numerical rank of R.
inline std::optional<HeadSolution> try_solve(const linalg::RowMatrix<double>& right,
                                             const IndexSet& basis, std::int64_t& basis_rank) {
  HeadSolution s;
  s.basis = right(basis.indices(), Eigen::all);
  s.rest = right(basis.rest(), Eigen::all);
  // C R = rest, solved as Rᵀ Cᵀ = restᵀ.
  const Eigen::PartialPivLU<Eigen::MatrixXd> lu(s.basis.transpose());
  basis_rank = s.rank = basis.size();
  // Eigen's estimate is no estimate where a pivot is exactly zero (two equal columns).
  const bool regular = (lu.matrixLU().diagonal().array() != 0).all();
  if (regular && lu.rcond() >= kSuspectCondition) {
    s.coefficients = lu.solve(s.rest.transpose()).transpose();
    return s;
  }
  const auto cod = rank_revealing(s.basis.transpose());
  basis_rank = s.rank = cod.rank();
  s.coefficients = cod.solve(s.rest.transpose()).transpose();
  // The minimum-norm solution is exact where R spans all that the head's rows span.
  const double error = (s.coefficients * s.basis - s.rest).norm();
  if (!(error <= 1e-9 * right.norm())) return std::nullopt;
  return s;
}

}  // namespace detail

/// The coefficients of one head for the basis S: C = right[rest, :] right[S, :]⁻¹, solved from the
/// factors by LU in double (BD paper, section 3.1; the product W is never formed).
///
/// A rank-deficient head (all zero, duplicate channels) is solved exactly by the pseudo-inverse.
/// Throws where the basis channels have a smaller rank than the head, naming the head and both.
inline HeadSolution solve_head(const linalg::RowMatrix<double>& right, const IndexSet& basis,
                               std::int64_t head_index) {
  std::int64_t basis_rank = 0;
  if (auto solution = detail::try_solve(right, basis, basis_rank)) return *std::move(solution);
  throw Error("heads[" + std::to_string(head_index) + "].right[basis]",
              "the rank of the whole head, " +
                  std::to_string(detail::rank_revealing(right).rank()) +
                  " (choose another basis strategy)",
              "rank " + std::to_string(basis_rank) + " of " + std::to_string(basis.size()) +
                  " basis channels");
}

}  // namespace bda::inline v0
