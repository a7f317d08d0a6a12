#pragma once

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <variant>

#include "bda/linear/factors.hpp"

namespace bda::inline v0::linear {

/// The rank itself.
struct RankTarget {
  std::int64_t rank;
};
/// The smallest rank whose singular values hold this share of |W|_F², 0 < share <= 1.
struct EnergyTarget {
  double share;
};
using TruncationTarget = std::variant<RankTarget, EnergyTarget>;

struct Truncation {
  FactorPair factors;
  Eigen::VectorXd singular_values;  // all min(in, out), descending
  double error = 0;                 // |left right - W|_F / |W|_F, 0 for W = 0
};

/// The matrix of lower rank that is nearest to W [in, out] in the Frobenius norm (Eckart and
/// Young), by SVD in double; each factor takes the root of the singular values, so that 16-bit
/// storage serves both alike. Throws where W is empty or not finite, and for a rank outside [1,
/// min(in, out)] or a share outside (0, 1].
[[nodiscard]] inline Truncation truncate(const linalg::RowMatrix<double>& w,
                                         const TruncationTarget& target) {
  check::at_least("W.size", w.size(), 1);
  if (!linalg::all_finite(w)) throw Error("W", "finite values", "Inf or NaN");
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(w, Eigen::ComputeThinU | Eigen::ComputeThinV);
  Truncation t;
  t.singular_values = svd.singularValues();
  const double energy = t.singular_values.squaredNorm();
  std::int64_t rank = 1;
  if (const auto* fixed = std::get_if<RankTarget>(&target)) {
    check::in_range("target.rank", fixed->rank, 1, t.singular_values.size());
    rank = fixed->rank;
  } else {
    const double share = std::get<EnergyTarget>(target).share;
    if (!(share > 0 && share <= 1))
      throw Error("target.share", "above 0 and at most 1", std::to_string(share));
    double held = t.singular_values(0) * t.singular_values(0);
    while (held < share * energy && rank < t.singular_values.size()) {
      held += t.singular_values(rank) * t.singular_values(rank);
      ++rank;
    }
  }
  const Eigen::VectorXd root = t.singular_values.head(rank).cwiseSqrt();
  t.factors.left = svd.matrixU().leftCols(rank) * root.asDiagonal();
  t.factors.right = (svd.matrixV().leftCols(rank) * root.asDiagonal()).transpose();
  const double lost = t.singular_values.tail(t.singular_values.size() - rank).norm();
  t.error = energy > 0 ? lost / std::sqrt(energy) : 0;
  return t;
}

}  // namespace bda::inline v0::linear
