#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bda/core/checks.hpp"

/// Attention by sums of convolutions (Conv-Basis, arXiv 2405.05219): an approximate method beside
/// Basis Decomposition, for score matrices whose columns repeat along the diagonal.
///
/// `conv(b, m)`, n x n, is zero but for its last m rows and columns, which are the lower-triangular
/// Toeplitz matrix with first column b. All matrices here are column-major double.
namespace bda::inline v0::conv_basis {

/// A lower-triangular H, n x n, as `sum over i of conv(b_i, m_i)`, n >= m_1 > ... > m_k >= 1.
///
/// Held as partial sums: from column s_i = n - m_i up to the next start, every column of H, from
/// the diagonal down, is the head of `b_1 + ... + b_i`. So the columns of H themselves are stored,
/// not their differences: nothing is rounded, and an exponential of H is one of the entries.
class ConvBasis {
 public:
  explicit ConvBasis(std::int64_t size) : size_(size) {
    check::at_least("ConvBasis.size", size, 1);
  }

  /// Adds conv(b_i, m_i), given as `column` = b_1 + ... + b_i, m_i values.
  /// Throws unless 1 <= m_i < m_(i-1) (m_1 <= n) and all values are finite.
  void add_column(Eigen::VectorXd column) {
    check::in_range("ConvBasis.column.size", column.size(), 1,
                    columns_.empty() ? size_ : columns_.back().size() - 1);
    if (!column.allFinite()) throw Error("ConvBasis.column", "finite values", "Inf or NaN");
    columns_.push_back(std::move(column));
  }

  /// n, the rows and columns of H.
  [[nodiscard]] std::int64_t size() const { return size_; }
  /// k, the number of convolutions.
  [[nodiscard]] std::int64_t terms() const { return static_cast<std::int64_t>(columns_.size()); }
  /// m_i.
  [[nodiscard]] std::int64_t width(std::int64_t i) const { return column(i).size(); }
  /// s_i = n - m_i, the first column of H that conv(b_i, m_i) reaches.
  [[nodiscard]] std::int64_t start(std::int64_t i) const { return size_ - width(i); }
  /// s_(i+1), or n for the last one.
  [[nodiscard]] std::int64_t end(std::int64_t i) const {
    return i + 1 < terms() ? start(i + 1) : size_;
  }
  /// b_1 + ... + b_i, m_i values: column s_i of H from the diagonal down.
  [[nodiscard]] const Eigen::VectorXd& column(std::int64_t i) const {
    return columns_[static_cast<std::size_t>(i)];
  }
  /// b_i itself, m_i values (i counts from 0).
  [[nodiscard]] Eigen::VectorXd term(std::int64_t i) const {
    if (i == 0) return column(0);
    return column(i) - column(i - 1).head(width(i));
  }

  /// Column j of H from the diagonal down: `count` <= n - j values.
  [[nodiscard]] Eigen::VectorXd column_of_matrix(std::int64_t j, std::int64_t count) const {
    check::in_range("j", j, 0, size_ - 1);
    check::in_range("count", count, 0, size_ - j);
    std::int64_t i = -1;
    while (i + 1 < terms() && start(i + 1) <= j) ++i;
    if (i < 0) return Eigen::VectorXd::Zero(count);
    return column(i).head(count);
  }

  /// H, n x n: for tests and small examples.
  [[nodiscard]] Eigen::MatrixXd dense() const {
    Eigen::MatrixXd h = Eigen::MatrixXd::Zero(size_, size_);
    for (std::int64_t i = 0; i < terms(); ++i)
      for (std::int64_t j = start(i); j < end(i); ++j)
        h.col(j).tail(size_ - j) = column(i).head(size_ - j);
    return h;
  }

 private:
  std::int64_t size_;
  std::vector<Eigen::VectorXd> columns_;
};

/// The basis of a lower-triangular H, n x n, with the smallest k; it is unique, as b_i must be what
/// column n - m_i adds to the one before (paper, section 3; k = 0 for H = 0). Reads all of H.
///
/// Throws where H is not square, not lower-triangular or not finite.
[[nodiscard]] inline ConvBasis decompose(const Eigen::MatrixXd& h) {
  const std::int64_t n = h.rows();
  check::equal("H.cols", h.cols(), n, "rows");
  ConvBasis basis(n);
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = 0; i < j; ++i)
      if (h(i, j) != 0)
        throw Error("H(" + std::to_string(i) + ", " + std::to_string(j) + ")",
                    "0, as H is lower-triangular", std::to_string(h(i, j)));
    const auto column = h.col(j).tail(n - j);
    // NaN differs from itself, so that add_column sees it.
    if (basis.terms() == 0 ? (column.array() != 0).any()
                           : column != basis.column(basis.terms() - 1).head(n - j))
      basis.add_column(column);
  }
  return basis;
}

}  // namespace bda::inline v0::conv_basis
