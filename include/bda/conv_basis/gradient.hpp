#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "bda/conv_basis/attention.hpp"

/// Backward through causal attention whose attention matrix f is a sum of convolutions (paper, the
/// attention training section): with n^(1+o(1)) operations where k d is small.
namespace bda::inline v0::conv_basis {

/// Gradients of a loss with respect to the operands of attention.
struct AttentionGradient {
  Eigen::MatrixXd q, k;  // [n, d]
  Eigen::MatrixXd v;     // [n, d_v]
};

namespace detail {

/// (dL/dS) x and (dL/dS)^T x for S the scores and Y = f V:
/// dL/dS = f o (dY V^T) - diag(r) f, r = rowsum(dY o Y), is n x n but only ever multiplied by a few
/// columns: f o (dY V^T) x = sum over l of dY_l o (f (V_l o x)), d_v products of f.
class ScoreGradient {
 public:
  ScoreGradient(const AttentionMatrix& f, const Eigen::MatrixXd& v, const Eigen::MatrixXd& out,
                const Eigen::MatrixXd& out_gradient)
      : f_(f), v_(v), dy_(out_gradient), r_(dy_.cwiseProduct(out).rowwise().sum()) {}

  [[nodiscard]] Eigen::MatrixXd times(const Eigen::MatrixXd& x) const {
    Eigen::MatrixXd y = -rows_scaled(f_.times(x), r_);
    for (Eigen::Index l = 0; l < v_.cols(); ++l)
      y += rows_scaled(f_.times(rows_scaled(x, v_.col(l))), dy_.col(l));
    return y;
  }
  [[nodiscard]] Eigen::MatrixXd transposed_times(const Eigen::MatrixXd& x) const {
    Eigen::MatrixXd y = -f_.transposed_times(rows_scaled(x, r_));
    for (Eigen::Index l = 0; l < v_.cols(); ++l)
      y += rows_scaled(f_.transposed_times(rows_scaled(x, dy_.col(l))), v_.col(l));
    return y;
  }

 private:
  static Eigen::MatrixXd rows_scaled(const Eigen::MatrixXd& x,
                                     const Eigen::Ref<const Eigen::VectorXd>& by) {
    return by.asDiagonal() * x;
  }

  const AttentionMatrix& f_;
  const Eigen::MatrixXd& v_;
  const Eigen::MatrixXd& dy_;
  Eigen::VectorXd r_;
};

}  // namespace detail

/// For Y = f V, f the softmax of scale M o (Q K^T), and `out_gradient` = dL/dY [n, d_v]:
/// O(k n d d_v log n). Throws for shapes that do not fit.
[[nodiscard]] inline AttentionGradient attention_gradient(const AttentionMatrix& f,
                                                          const Eigen::MatrixXd& q,
                                                          const Eigen::MatrixXd& k,
                                                          const Eigen::MatrixXd& v, double scale,
                                                          const Eigen::MatrixXd& out_gradient) {
  const std::int64_t n = f.size();
  check::equal("q.rows", q.rows(), n, "size of f");
  check::equal("k.rows", k.rows(), n, "size of f");
  check::equal("k.cols", k.cols(), q.cols(), "q.cols");
  check::equal("v.rows", v.rows(), n, "size of f");
  check::equal("out_gradient.rows", out_gradient.rows(), n, "size of f");
  check::equal("out_gradient.cols", out_gradient.cols(), v.cols(), "v.cols");
  const Eigen::MatrixXd out = f.times(v);
  const detail::ScoreGradient scores(f, v, out, out_gradient);
  return {scale * scores.times(k), scale * scores.transposed_times(q),
          f.transposed_times(out_gradient)};
}

/// The attention loss of the paper, L(X) = |f V - E|_F^2 / 2 with scores M o (A1 X A2^T), and its
/// gradient [d, d] with respect to X.
struct AttentionLoss {
  double loss = 0;
  Eigen::MatrixXd gradient;
};

/// `f` belongs to the scores of a1 X a2^T; a1, a2 [n, d], v and target = E [n, d_v].
/// dL/dX = A1^T (dL/dS) A2, O(k n d d_v log n). Throws for shapes that do not fit.
[[nodiscard]] inline AttentionLoss attention_loss(const AttentionMatrix& f,
                                                  const Eigen::MatrixXd& a1,
                                                  const Eigen::MatrixXd& a2,
                                                  const Eigen::MatrixXd& v,
                                                  const Eigen::MatrixXd& target) {
  check::equal("a1.rows", a1.rows(), f.size(), "size of f");
  check::equal("a2.rows", a2.rows(), f.size(), "size of f");
  check::equal("v.rows", v.rows(), f.size(), "size of f");
  check::equal("target.rows", target.rows(), v.rows(), "v.rows");
  check::equal("target.cols", target.cols(), v.cols(), "v.cols");
  const Eigen::MatrixXd out = f.times(v), error = out - target;
  const detail::ScoreGradient scores(f, v, out, error);
  return {error.squaredNorm() / 2, a1.transpose() * scores.times(a2)};
}

}  // namespace bda::inline v0::conv_basis
