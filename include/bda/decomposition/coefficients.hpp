#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bda/core/index_set.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/lu.hpp"
#include "bda/linalg/rank.hpp"

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

/// Solves for the coefficients of the channels `rest`; nothing where the basis channels span less
/// than the head does. `basis_rank` receives the numerical rank of R. (S is double. A template is
/// compiled only where it is used, and solvers take seconds.)
template <class S>
std::optional<HeadSolution> try_solve(const linalg::RowMatrix<S>& right, const IndexSet& basis,
                                      const std::vector<std::int64_t>& rest,
                                      std::int64_t& basis_rank) {
  HeadSolution s;
  s.basis = linalg::gather_rows(right, basis.indices());
  s.rest = linalg::gather_rows(right, rest);
  const linalg::Lu<S> lu(s.basis);
  basis_rank = s.rank = basis.size();
  if (lu.reciprocal_condition() >= kSuspectCondition) {
    s.coefficients = lu.divide(s.rest);
    return s;
  }
  const linalg::PseudoInverse<S> inverse(s.basis, kRankTolerance);
  basis_rank = s.rank = inverse.rank();
  s.coefficients = inverse.divide(s.rest);
  // The minimum-norm solution is exact where R spans all that the head's rows span.
  const double error = (linalg::multiply(s.coefficients, s.basis) - s.rest).norm();
  if (!(error <= 1e-9 * right.norm())) return std::nullopt;
  return s;
}

}  // namespace detail

/// The coefficients of one head for the basis S: C = right[rest, :] right[S, :]⁻¹, solved from the
/// factors by LU in double (BD paper, section 3.1; the product W is never formed).
///
/// A rank-deficient head (all zero, duplicate channels) is solved exactly by the pseudo-inverse.
/// Throws where the basis channels have a smaller rank than the head, naming the head and both.
template <class S>
HeadSolution solve_head(const linalg::RowMatrix<S>& right, const IndexSet& basis,
                        std::int64_t head_index) {
  std::int64_t basis_rank = 0;
  if (auto solution = detail::try_solve(right, basis, basis.rest(), basis_rank))
    return *std::move(solution);
  throw Error("heads[" + std::to_string(head_index) + "].right[basis]",
              "the rank of the whole head, " +
                  std::to_string(linalg::rank_factors(right, detail::kRankTolerance).rank()) +
                  " (choose another basis strategy)",
              "rank " + std::to_string(basis_rank) + " of " + std::to_string(basis.size()) +
                  " basis channels");
}

}  // namespace bda::inline v0
