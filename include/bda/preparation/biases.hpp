#pragma once

#include <cstdint>
#include <vector>

#include "bda/decomposition/coefficients.hpp"
#include "bda/linalg/product.hpp"
#include "bda/linalg/rank.hpp"

namespace bda::inline v0::detail {

/// A head's key or value bias b [1, r] in the decomposed coordinates: b = constant R + lost.
struct BiasSplit {
  linalg::RowMatrix<double> constant;  // added to K' or V'
  linalg::RowMatrix<double> lost;      // outside R's row space: zero unless rank-deficient
  bool exact = true;                   // lost is rounding
};

/// `basis` is the head's R.
template <class S>
BiasSplit split_bias(const linalg::RowMatrix<S>& bias, const linalg::RowMatrix<S>& basis) {
  BiasSplit split;
  split.constant = linalg::PseudoInverse<S>(basis, kRankTolerance).divide(bias);
  split.lost = bias;
  linalg::add_product(split.lost, split.constant, basis, S(-1));
  split.exact = split.lost.norm() <= 1e-9 * bias.norm();
  return split;
}

/// Row h of a bias [heads, width] as doubles; zeros where there is none.
template <class U>
linalg::RowMatrix<double> bias_row(const std::vector<U>& bias, std::int64_t head,
                                   std::int64_t stride, std::int64_t offset, std::int64_t width) {
  linalg::RowMatrix<double> row = linalg::RowMatrix<double>::Zero(1, width);
  if (bias.empty()) return row;
  for (std::int64_t i = 0; i < width; ++i)
    row(0, i) = static_cast<double>(bias[static_cast<std::size_t>(head * stride + offset + i)]);
  return row;
}

}  // namespace bda::inline v0::detail
