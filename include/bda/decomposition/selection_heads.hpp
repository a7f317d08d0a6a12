#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/cholesky.hpp"
#include "bda/linalg/qr.hpp"

namespace bda::inline v0 {

/// The heads of a group as basis selection should see them: rank-deficient ones (all zero,
/// duplicate channels) have their missing directions filled with arbitrary orthonormal ones, which
/// their left factor does not see, so that every head has r independent rows. A basis that suits
/// the filled head spans the original one, whose coefficients the pseudo-inverse then gives.
template <class S>
class SelectionHeads {
 public:
  /// Throws on invalid heads.
  SelectionHeads(std::span<const HeadFactors<S>> heads, int threads) : heads_(heads) {
    check_shapes(heads);
    std::vector<char> deficient(heads.size());
    parallel_for(static_cast<std::int64_t>(heads.size()), threads, [&](std::int64_t h) {
      const auto i = static_cast<std::size_t>(h);
      check_finite(heads[i], i);
      deficient[i] = suspect(heads[i].right);
    });
    if (std::find(deficient.begin(), deficient.end(), 1) == deficient.end()) return;
    filled_.assign(heads.begin(), heads.end());
    for (std::size_t h = 0; h < heads.size(); ++h)
      if (deficient[h]) fill(filled_[h], h);
    heads_ = filled_;
  }
  SelectionHeads(const SelectionHeads&) = delete;
  SelectionHeads& operator=(const SelectionHeads&) = delete;

  [[nodiscard]] std::span<const HeadFactors<S>> heads() const { return heads_; }

 private:
  /// A cheap test on the Gram matrix; `fill` decides by a pivoted factorisation.
  static bool suspect(const linalg::RowMatrix<double>& right) {
    const Eigen::VectorXd scale = linalg::condense(right).rowwise().norm();
    return !(scale.minCoeff() > 1e-6 * scale.maxCoeff());
  }

  static void fill(HeadFactors<S>& head, std::size_t seed) {
    const Eigen::Index d = head.right.rows(), r = head.right.cols();
    const auto [range, seen] = linalg::rank_factors(head.right, detail::kRankTolerance);
    const Eigen::Index rank = range.cols();
    if (rank == r) return;
    const linalg::RowMatrix<double> inputs = linalg::qr(seen, r).q;  // [r, r]
    const auto kept = inputs.leftCols(rank), null = inputs.rightCols(r - rank);
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    linalg::RowMatrix<double> missing(d, r - rank);
    for (Eigen::Index i = 0; i < missing.size(); ++i) missing.data()[i] = normal(random);
    linalg::add_product(missing, range, linalg::transposed_multiply(range, missing), -1.0);
    const linalg::RowMatrix<double> directions = linalg::qr(missing, r - rank).q;
    const double scale = rank > 0 ? head.right.norm() / std::sqrt(static_cast<double>(rank)) : 1.0;
    linalg::add_product_transposed(head.right, directions, null, scale);
    const linalg::RowMatrix<double> left = head.left.template cast<double>();
    head.left = linalg::multiply_transposed(linalg::multiply(left, kept), kept).template cast<S>();
  }

  std::span<const HeadFactors<S>> heads_;
  std::vector<HeadFactors<S>> filled_;
};

}  // namespace bda::inline v0
