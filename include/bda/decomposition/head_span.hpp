#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/cholesky.hpp"
#include "bda/linalg/lu.hpp"
#include "bda/linalg/qr.hpp"

namespace bda::inline v0 {

/// One head as the selection strategies see it: Wᵀ = right leftᵀ = |W|_F span weight Oᵀ for some
/// O with orthonormal columns.
///
/// What a basis costs depends on the head only through these: |B_j|² / |W|_F² is the squared norm
/// of row j of span weight, and the coefficients are those of `span`, since every basis of the
/// column space of `right` has the same.
struct HeadSpan {
  linalg::RowMatrix<double> span;    // U [d, r], orthonormal columns, column space of `right`
  linalg::RowMatrix<double> weight;  // N [r, r], |N|_F = 1
};

/// |B_j|² / |W|_F² of every channel, [d].
template <class S>
[[nodiscard]] Eigen::VectorXd basis_energy(const linalg::RowMatrix<S>& span,
                                           const linalg::RowMatrix<S>& weight) {
  return linalg::multiply(span, weight).rowwise().squaredNorm();
}

/// alpha² (noise.hpp) of a basis: `rows` are the rows of U in it, [r, r], `energy` their
/// basis_energy. Infinity where the rows are dependent: beyond alpha = 1e12 the coefficients have
/// no meaningful digit left in double precision.
template <class S>
double squared_noise_amplification(const linalg::RowMatrix<S>& rows,
                                   const Eigen::VectorXd& energy) {
  // [I, Cᵀ] = rows⁻ᵀ Uᵀ up to order, so 1 + |C_j|² is the squared norm of column j of rows⁻¹
  const linalg::RowMatrix<S> inverse = linalg::Lu<S>(rows).inverse();
  const double squared = energy.dot(inverse.colwise().squaredNorm());
  return squared < 1e24 ? squared : std::numeric_limits<double>::infinity();
}

/// Throws Error where a head's `right` has no r independent rows: then no basis exists, whatever
/// the channels. A head whose `left` is zero has no product to be relative to: every basis is
/// exact for it, and it counts as if its energy were spread evenly over the span.
template <class S>
HeadSpan head_span(const HeadFactors<S>& head, const std::string& name) {
  const auto d = head.channels(), r = head.rank();
  linalg::Qr<double> qr = linalg::qr(head.right, r);
  const Eigen::VectorXd pivots = qr.r.diagonal().cwiseAbs();
  const double negligible =
      static_cast<double>(d) * std::numeric_limits<double>::epsilon() * pivots.maxCoeff();
  const auto rank = (pivots.array() > negligible).count();
  if (rank < r)
    throw Error(name + ".right", "rank " + std::to_string(r),
                "rank " + std::to_string(rank) + " (smallest pivot " +
                    std::to_string(pivots.minCoeff()) + ", largest " +
                    std::to_string(pivots.maxCoeff()) + ")");
  HeadSpan result;
  result.span = std::move(qr.q);
  result.weight = linalg::multiply_transposed(qr.r, linalg::condense(head.left));
  const double norm = result.weight.norm();
  if (norm > 0)
    result.weight /= norm;
  else
    result.weight.diagonal().setConstant(1 / std::sqrt(static_cast<double>(r)));
  return result;
}

/// The spans of all heads. Throws on invalid heads.
template <class S>
std::vector<HeadSpan> head_spans(std::span<const HeadFactors<S>> heads, int threads) {
  check_shapes(heads);
  std::vector<HeadSpan> spans(heads.size());
  parallel_for(static_cast<std::int64_t>(heads.size()), threads, [&](std::int64_t h) {
    const auto i = static_cast<std::size_t>(h);
    check_finite(heads[i], i);
    spans[i] = head_span(heads[i], "heads[" + std::to_string(h) + "]");
  });
  return spans;
}

}  // namespace bda::inline v0
