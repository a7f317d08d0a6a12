#pragma once

#include <cstdint>
#include <string>

#include "bda/decomposition/basis_strategy.hpp"
#include "bda/decomposition/decompose_heads.hpp"
#include "bda/linalg/rank.hpp"

namespace bda::inline v0 {

/// One matrix as basis and coefficients, over real scalars S (float, double).
template <class S>
struct MatrixDecomposition {
  Basis basis;                        // S, and the rotation for latent_rotation
  linalg::RowMatrix<S> basis_matrix;  // column form B [m, r]; row form B [r, n]
  linalg::RowMatrix<S> coefficients;  // C, [n - r, r] and [m - r, r]
  DecompositionReport report;         // one head
};

namespace detail {

/// Pulls the factors W = left rightᵀ out of a dense W of rank r by column-pivoted QR. Throws where
/// W's numerical rank is larger: such a matrix has no exact decomposition over r channels. (A
/// smaller rank is fine.)
template <class S>
HeadFactors<double> factor_dense(const linalg::RowMatrix<S>& w, std::int64_t rank) {
  check::in_range("rank", rank, 1, std::min(w.rows(), w.cols()));
  if (!linalg::all_finite(w)) throw Error("W", "finite values", "Inf or NaN");
  // Entries are known to one rounding of the type they came in.
  const double tolerance =
      StorageTraits<S>::unit_roundoff * static_cast<double>(std::max(w.rows(), w.cols()));
  const linalg::RankFactors<double> found =
      linalg::rank_factors<double>(w.template cast<double>(), tolerance);
  if (found.rank() > rank)
    throw Error("rank", "at least the numerical rank of W, " + std::to_string(found.rank()),
                std::to_string(rank));
  HeadFactors<double> factors{linalg::RowMatrix<double>::Zero(w.rows(), rank),
                              linalg::RowMatrix<double>::Zero(w.cols(), rank)};
  factors.left.leftCols(found.rank()) = found.left;
  factors.right.leftCols(found.rank()) = found.right;
  return factors;
}

template <class S>
MatrixDecomposition<S> decompose_factors(HeadFactors<double> head, const BasisStrategy& strategy,
                                         SelectionOptions options) {
  const std::span<const HeadFactors<double>> one(&head, 1);
  options.storage = StorageTraits<S>::dtype;
  MatrixDecomposition<S> result;
  result.basis = select_basis(strategy, one, options);
  if (result.basis.rotation.size() > 0)
    head.right = linalg::transposed_multiply(result.basis.rotation, head.right);
  auto done = decompose_heads<double>(one, result.basis.channels, options.storage, Rounding::kPlain,
                                      options.threads);
  result.basis_matrix = done.heads[0].basis.template cast<S>();
  result.coefficients = done.heads[0].coefficients.template cast<S>();
  result.report = std::move(done.report);
  return result;
}

template <class S>
MatrixDecomposition<S> transposed_basis(MatrixDecomposition<S> columns) {
  columns.basis_matrix = columns.basis_matrix.transpose().eval();
  return columns;
}

}  // namespace detail

/// Column form from factors: `W = left rightᵀ`, [m, n], becomes `W[:, S] = B`, `W[:, rest] = B Cᵀ`
/// (BD paper, section 3.1, solved in double from the factors). With a rotation Q it is W Q that is
/// decomposed. S is float or double. Throws as `decompose_heads`.
template <class S>
MatrixDecomposition<S> column_decomposition(const linalg::RowMatrix<S>& left,
                                            const linalg::RowMatrix<S>& right,
                                            const BasisStrategy& strategy,
                                            const SelectionOptions& options = {}) {
  return detail::decompose_factors<S>({left.template cast<double>(), right.template cast<double>()},
                                      strategy, options);
}

/// Row form from factors: `W = left rightᵀ`, [m, n], becomes `W[S, :] = B`, `W[rest, :] = C B`.
template <class S>
MatrixDecomposition<S> row_decomposition(const linalg::RowMatrix<S>& left,
                                         const linalg::RowMatrix<S>& right,
                                         const BasisStrategy& strategy,
                                         const SelectionOptions& options = {}) {
  return detail::transposed_basis(column_decomposition<S>(right, left, strategy, options));
}

/// Column form of a dense W [m, n] of rank at most `rank`.
template <class S>
MatrixDecomposition<S> column_decomposition(const linalg::RowMatrix<S>& w, std::int64_t rank,
                                            const BasisStrategy& strategy,
                                            const SelectionOptions& options = {}) {
  return detail::decompose_factors<S>(detail::factor_dense(w, rank), strategy, options);
}

/// Row form of a dense W [m, n] of rank at most `rank`.
template <class S>
MatrixDecomposition<S> row_decomposition(const linalg::RowMatrix<S>& w, std::int64_t rank,
                                         const BasisStrategy& strategy,
                                         const SelectionOptions& options = {}) {
  return detail::transposed_basis(
      column_decomposition<S>(w.transpose().eval(), rank, strategy, options));
}

}  // namespace bda::inline v0
