#pragma once

#include <Eigen/Core>
#include <concepts>
#include <cstdint>

#include "bda/core/checks.hpp"

namespace bda::inline v0::conv_basis {

/// A lower-triangular matrix that can be asked for the first `count` entries of a column, from the
/// diagonal down: all that recovery needs of it.
template <class T>
concept ColumnSource = requires(const T& source, std::int64_t j) {
  { source.size() } -> std::convertible_to<std::int64_t>;
  { source.column(j, j) } -> std::convertible_to<Eigen::VectorXd>;
};

/// scale M o (Q K^T), M the causal mask: attention scores, of which no more is computed than is
/// asked for: O(count d) an answer. Refers to q and k [n, d], which must outlive it.
class ScoreColumns {
 public:
  /// Throws where the shapes differ or a value is not finite.
  ScoreColumns(const Eigen::MatrixXd& q, const Eigen::MatrixXd& k, double scale)
      : q_(q), k_(k), scale_(scale) {
    check::at_least("q.rows", q.rows(), 1);
    check::equal("k.rows", k.rows(), q.rows(), "q.rows");
    check::equal("k.cols", k.cols(), q.cols(), "q.cols");
    if (!q.allFinite()) throw Error("q", "finite values", "Inf or NaN");
    if (!k.allFinite()) throw Error("k", "finite values", "Inf or NaN");
  }

  [[nodiscard]] std::int64_t size() const { return q_.rows(); }
  [[nodiscard]] Eigen::VectorXd column(std::int64_t j, std::int64_t count) const {
    return q_.middleRows(j, count) * (scale_ * k_.row(j).transpose());
  }

 private:
  const Eigen::MatrixXd& q_;
  const Eigen::MatrixXd& k_;
  double scale_;
};

}  // namespace bda::inline v0::conv_basis
