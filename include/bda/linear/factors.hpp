#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string>

#include "bda/core/checks.hpp"
#include "bda/core/error.hpp"
#include "bda/linalg/eigen.hpp"

/// Linear layers whose weight was pruned to a low rank (BD paper, section on pruned models;
/// pivoting factorization, arXiv 2501.19090). Row-vector convention: `y = x W + bias`, W [in, out].
namespace bda::inline v0::linear {

/// W = left right, of rank r: what pruning leaves, and what a layer is made of at set-up.
struct FactorPair {
  linalg::RowMatrix<double> left;   // [in, r]
  linalg::RowMatrix<double> right;  // [r, out]

  [[nodiscard]] std::int64_t in_dim() const { return left.rows(); }
  [[nodiscard]] std::int64_t out_dim() const { return right.cols(); }
  [[nodiscard]] std::int64_t rank() const { return left.cols(); }
};

/// Throws unless the factors fit, are finite, and 1 <= r <= out.
inline void validate(const FactorPair& f) {
  check::at_least("factors.left.rows", f.left.rows(), 1);
  check::equal("factors.right.rows", f.right.rows(), f.left.cols(), "left.cols");
  check::in_range("factors.left.cols", f.left.cols(), 1, f.right.cols());
  if (!linalg::all_finite(f.left)) throw Error("factors.left", "finite values", "Inf or NaN");
  if (!linalg::all_finite(f.right)) throw Error("factors.right", "finite values", "Inf or NaN");
}

/// What a layer costs: values stored, and as many multiply-adds for each row of x.
[[nodiscard]] constexpr std::int64_t dense_cost(std::int64_t in, std::int64_t out) {
  return in * out;
}
[[nodiscard]] constexpr std::int64_t factor_pair_cost(std::int64_t in, std::int64_t out,
                                                      std::int64_t rank) {
  return rank * (in + out);
}
/// A quarter less than the factor pair where in = out = 2 rank.
[[nodiscard]] constexpr std::int64_t basis_cost(std::int64_t in, std::int64_t out,
                                                std::int64_t rank) {
  return rank * (in + out - rank);
}

}  // namespace bda::inline v0::linear
