#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "bda/conv_basis/basis.hpp"

namespace bda::inline v0::conv_basis {

/// The largest entry of H on and below its diagonal; where m_1 < n that includes zeros.
[[nodiscard]] inline double largest_entry(const ConvBasis& h) {
  double largest = h.terms() > 0 && h.start(0) == 0 ? h.column(0)(0) : 0.0;
  for (std::int64_t i = 0; i < h.terms(); ++i) largest = std::max(largest, h.column(i).maxCoeff());
  return largest;
}

/// M o exp(H - shift), M the causal mask (paper, the softmax transform): with the terms
/// b~_1 = exp(b_1), b~_i = exp(b_1 + ... + b_i) - exp(b_1 + ... + b_(i-1)). Where m_1 < n the first
/// columns of H are zero, their exponentials are not: conv(1, n) comes first, and b~ of the first
/// term is exp(b_1) - 1.
///
/// One `shift` for the whole matrix cancels in the softmax; the largest entry keeps everything
/// finite. Throws where an exponential overflows.
[[nodiscard]] inline ConvBasis exponential(const ConvBasis& h, double shift = 0) {
  ConvBasis out(h.size());
  if (h.terms() == 0 || h.start(0) > 0)
    out.add_column(Eigen::VectorXd::Constant(h.size(), std::exp(-shift)));
  for (std::int64_t i = 0; i < h.terms(); ++i)
    out.add_column((h.column(i).array() - shift).exp().matrix());
  return out;
}

}  // namespace bda::inline v0::conv_basis
