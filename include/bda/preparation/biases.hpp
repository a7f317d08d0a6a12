#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bda/decomposition/coefficients.hpp"
#include "bda/linalg/eigen.hpp"

namespace bda::inline v0::detail {

/// A head's key or value bias b [r] in the decomposed coordinates: b = constant R + lost.
struct BiasSplit {
  Eigen::RowVectorXd constant;  // added to K' or V'
  Eigen::RowVectorXd lost;      // outside R's row space: zero unless the head is rank-deficient
  bool exact = true;            // lost is rounding
};

inline BiasSplit split_bias(const Eigen::RowVectorXd& bias, const HeadSolution& solution) {
  BiasSplit split;
  split.constant = rank_revealing(solution.basis.transpose()).solve(bias.transpose()).transpose();
  split.lost = bias - split.constant * solution.basis;
  split.exact = split.lost.norm() <= 1e-9 * bias.norm();
  return split;
}

/// Row h of a bias [heads, width] as doubles; zeros where there is none.
template <class U>
Eigen::RowVectorXd bias_row(const std::vector<U>& bias, std::int64_t head, std::int64_t stride,
                            std::int64_t offset, std::int64_t width) {
  Eigen::RowVectorXd row = Eigen::RowVectorXd::Zero(width);
  if (bias.empty()) return row;
  for (std::int64_t i = 0; i < width; ++i)
    row[i] = static_cast<double>(bias[static_cast<std::size_t>(head * stride + offset + i)]);
  return row;
}

}  // namespace bda::inline v0::detail
