#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "bda/conv_basis/exponential.hpp"
#include "bda/conv_basis/product.hpp"
#include "bda/conv_basis/recover.hpp"

namespace bda::inline v0::conv_basis {

/// f = D^-1 (M o exp(H)), the causal softmax of scores H with a conv basis: n x n, never formed.
class AttentionMatrix {
 public:
  /// Throws where a row's normalizer is lost in the transforms' rounding: rows whose largest score
  /// is far below the largest of all, as no maximum can be subtracted row by row.
  explicit AttentionMatrix(const ConvBasis& scores)
      : shift_(largest_entry(scores)), exponentials_(exponential(scores, shift_)) {
    const Eigen::MatrixXd ones = Eigen::MatrixXd::Ones(scores.size(), 1);
    normalizer_ = multiply(exponentials_, ones);
    Eigen::Index row = 0;
    const double smallest = normalizer_.minCoeff(&row);
    const double error = multiply_roundoff(exponentials_, ones);
    if (!(smallest > 2 * error))
      throw Error(
          "scores, row " + std::to_string(row),
          "a sum of exp(score - largest score of all) above its rounding error, " + text(2 * error),
          text(smallest));
    normalizer_error_ = error;
    entry_error_ = 0;
    for (std::int64_t i = 0; i < scores.terms(); ++i)
      entry_error_ = std::max(entry_error_, shift_ - scores.column(i).minCoeff());
    // exp(x) of a rounded x = score - shift, itself within one ulp
    entry_error_ = (std::abs(shift_) + entry_error_ + 2) * std::numeric_limits<double>::epsilon();
  }

  [[nodiscard]] std::int64_t size() const { return exponentials_.size(); }
  /// exp(H - shift) and its row sums.
  [[nodiscard]] const ConvBasis& exponentials() const { return exponentials_; }
  [[nodiscard]] const Eigen::VectorXd& normalizer() const { return normalizer_; }

  /// f v, v [n, c], in O(k n c log n).
  [[nodiscard]] Eigen::MatrixXd times(const Eigen::MatrixXd& v) const {
    Eigen::MatrixXd out = multiply(exponentials_, v);
    out.array().colwise() /= normalizer_.array();
    return out;
  }
  /// f^T v.
  [[nodiscard]] Eigen::MatrixXd transposed_times(const Eigen::MatrixXd& v) const {
    return multiply_transposed(exponentials_, v.array().colwise() / normalizer_.array());
  }

  /// Bound on the rounding error of every entry of `times(v)`: those of numerator and normalizer
  /// over the smallest normalizer, and the exponentials' own relative error, which reaches the
  /// quotient twice.
  [[nodiscard]] double roundoff(const Eigen::MatrixXd& v) const {
    if (v.size() == 0) return 0;
    const double largest = v.cwiseAbs().maxCoeff();
    const double sums = multiply_roundoff(exponentials_, v) + largest * normalizer_error_;
    return sums / (normalizer_.minCoeff() - normalizer_error_) +
           (2 * entry_error_ + std::numeric_limits<double>::epsilon()) * largest;
  }

 private:
  static std::string text(double value) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.3g", value);
    return buffer;
  }

  double shift_;
  ConvBasis exponentials_;
  Eigen::VectorXd normalizer_;
  double normalizer_error_ = 0, entry_error_ = 0;
};

/// Output of conv-basis attention, with what is known of its error.
struct ConvAttention {
  Eigen::MatrixXd out;  // [n, d_v]
  Recovery recovery;    // of the scores
  /// Paper, error analysis: every entry of `out` is within 2 (exp(2 epsilon) - 1) max|v| of exact
  /// attention, if the assumptions hold.
  double approximation_bound = 0;
  double rounding_bound = 0;  // of the transforms and exponentials, on top of that
};

/// 2 (exp(deviation) - 1) max|v|: what scores that are off by at most `deviation` can do to an
/// output. With |a~ - a| <= t a for every exponential, |a~ v / a~ 1 - a v / a 1| <= 2 t max|v|.
[[nodiscard]] inline double output_bound(double deviation, const Eigen::MatrixXd& v) {
  return v.size() == 0 ? 0 : 2 * std::expm1(deviation) * v.cwiseAbs().maxCoeff();
}

/// Causal softmax(scale q k^T) v by a recovered conv basis, O(k n d log n); q, k [n, d], v [n,
/// d_v]. Throws as `recover`, `AttentionMatrix`, and for shapes that do not fit.
[[nodiscard]] inline ConvAttention attend(const Eigen::MatrixXd& q, const Eigen::MatrixXd& k,
                                          const Eigen::MatrixXd& v, double scale,
                                          const RecoverOptions& options) {
  check::equal("v.rows", v.rows(), q.rows(), "q.rows");
  Recovery recovery = recover(ScoreColumns(q, k, scale), options);
  const AttentionMatrix f(recovery.basis);
  ConvAttention result{f.times(v), std::move(recovery), output_bound(2 * options.epsilon, v),
                       f.roundoff(v)};
  return result;
}

}  // namespace bda::inline v0::conv_basis
