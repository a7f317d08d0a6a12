#pragma once

#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/solve.hpp"

namespace bda::inline v0 {

/// The heads of a group as basis selection should see them: rank-deficient ones (all zero,
/// duplicate channels) have their missing directions filled with arbitrary orthonormal ones, which
/// their left factor does not see, so that every head has r independent rows. A basis that suits
/// the filled head spans the original one, whose coefficients the pseudo-inverse then gives.
template <class S>
class SelectionHeads {
 public:
  SelectionHeads(std::span<const HeadFactors<S>> heads, int threads) : heads_(heads) {
    std::vector<char> deficient(heads.size());
    parallel_for(static_cast<std::int64_t>(heads.size()), threads, [&](std::int64_t h) {
      deficient[static_cast<std::size_t>(h)] = suspect(heads[static_cast<std::size_t>(h)].right);
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
    // right = Q [T, 0; 0, 0] Z Pᵀ
    const auto cod = detail::rank_revealing(head.right);
    const Eigen::Index rank = cod.rank();
    if (rank == r) return;
    const Eigen::MatrixXd range = cod.householderQ() * Eigen::MatrixXd::Identity(d, rank);
    const Eigen::MatrixXd seen = cod.colsPermutation() * cod.matrixZ().transpose();  // [r, r]
    const auto kept = seen.leftCols(rank), null = seen.rightCols(r - rank);
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    Eigen::MatrixXd missing =
        Eigen::MatrixXd::NullaryExpr(d, r - rank, [&] { return normal(random); });
    missing -= range * (range.transpose() * missing);
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(missing);
    const Eigen::MatrixXd directions = qr.householderQ() * Eigen::MatrixXd::Identity(d, r - rank);
    const double scale = rank > 0 ? head.right.norm() / std::sqrt(static_cast<double>(rank)) : 1.0;
    head.right += scale * directions * null.transpose();
    head.left =
        (head.left.template cast<double>() * kept * kept.transpose()).eval().template cast<S>();
  }

  std::span<const HeadFactors<S>> heads_;
  std::vector<HeadFactors<S>> filled_;
};

}  // namespace bda::inline v0
