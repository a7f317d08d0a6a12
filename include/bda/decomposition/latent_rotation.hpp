#pragma once

#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/head_span.hpp"
#include "bda/decomposition/rotation_objective.hpp"

namespace bda::inline v0 {

/// An orthogonal rotation of the channels after which one slice of them is a nearly orthogonal
/// basis for every head at once, for attention whose channels can be rotated for free (the latent
/// of multi-head latent attention).
///
/// Minimises the sum over heads of alpha² (RotationObjective) over orthonormal basis directions:
/// Riemannian gradient descent with Barzilai-Borwein steps and a QR retraction. In float, which is
/// ample for a choice: the result is orthonormalised in double, and no product is computed here.
/// A random start has poles nearby, where some head's basis is dependent; a smoothed objective is
/// minimised first, with the smoothing lowered in stages.
struct LatentRotation {
  static constexpr std::string_view name = "latent_rotation";

  int max_iterations = 60;  // after about fifteen on the smoothed objective
  double tolerance = 2e-3;  // ends when ten iterations have lowered the objective by less, relative

  /// The basis is the first r channels after the rotation. Throws Error on invalid heads, a
  /// rank-deficient head, or options that are not positive.
  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    const std::vector<HeadSpan> spans = head_spans(heads, options.threads);
    const Eigen::Index d = heads[0].channels(), r = heads[0].rank();
    RotationObjective<float> objective(r, options.threads);
    objective.add(spans, 0);
    return {IndexSet::slice(d, 0, r), complete(minimise(objective, d, r, options.threads), r)};
  }

  /// One rotation for both sides of a layer: afterwards the first channels are the basis of `qk`,
  /// the last of `vo`. Throws as `select`, and where the two differ in d.
  template <class S>
  std::pair<Basis, Basis> select_joint(std::span<const HeadFactors<S>> qk,
                                       std::span<const HeadFactors<S>> vo,
                                       const SelectionOptions& options) const {
    const std::vector<HeadSpan> qk_spans = head_spans(qk, options.threads);
    const std::vector<HeadSpan> vo_spans = head_spans(vo, options.threads);
    const Eigen::Index d = qk[0].channels(), r_qk = qk[0].rank(), r_vo = vo[0].rank();
    check::equal("vo[0].right.rows", vo[0].channels(), d, "as qk[0]");
    const Eigen::Index columns = std::min(d, r_qk + r_vo);  // fewer: the two bases overlap
    RotationObjective<float> objective(columns, options.threads);
    objective.add(qk_spans, 0);
    objective.add(vo_spans, columns - r_vo);
    const linalg::RowMatrix<double> rotation =
        complete(minimise(objective, d, columns, options.threads), columns - r_vo);
    return {Basis{IndexSet::slice(d, 0, r_qk), rotation},
            Basis{IndexSet::slice(d, d - r_vo, r_vo), rotation}};
  }

 private:
  using Objective = RotationObjective<float>;
  using Matrix = Objective::Matrix;

  // With the ridge a basis may pass through dependence, without it that costs infinitely much.
  static constexpr std::array<Smoothing, 3> kApproach{{{0.25, 1}, {0.06, 1}, {0.015, 1}}};
  static constexpr Smoothing kFinal{0, 1e-3};
  static constexpr int kApproachIterations = 5;  // each

  /// Orthonormal [d, columns].
  [[nodiscard]] Matrix minimise(const Objective& objective, Eigen::Index d, Eigen::Index columns,
                                int threads) const {
    check::at_least("LatentRotation.max_iterations", max_iterations, 1);
    if (!(tolerance > 0))
      throw Error("LatentRotation.tolerance", "a positive value", std::to_string(tolerance));
    std::mt19937_64 bits(1);  // any generic start does; seeded, and portable unlike distributions
    const Eigen::MatrixXd random = Eigen::MatrixXd::NullaryExpr(
        d, columns, [&] { return static_cast<double>(bits() >> 11) * 0x1p-52 - 1; });
    Matrix a = (random.householderQr().householderQ() * Eigen::MatrixXd::Identity(d, columns))
                   .template cast<float>();
    double step = 0;
    for (const Smoothing& stage : kApproach)
      descend(objective, stage, kApproachIterations, threads, a, step);
    descend(objective, kFinal, max_iterations, threads, a, step);
    return a;
  }

  /// Improves `a`; `step` goes from stage to stage.
  void descend(const Objective& objective, Smoothing smoothing, int iterations, int threads,
               Matrix& a, double& step) const {
    constexpr std::size_t kMemory = 5;  // the next value may exceed all but the largest of these
    constexpr std::size_t kPatience = 10;
    const double size = a.norm();
    Matrix slope, next, next_slope, best = a;
    double value = objective(a, smoothing, slope);
    if (!std::isfinite(value)) return;
    project(a, slope, threads);
    std::vector<double> values{value}, lowest{value};
    for (int i = 0; i < iterations; ++i) {
      const double norm = slope.norm();
      if (norm <= 1e-6 * value) break;  // stationary, to float
      if (!(step > 0)) step = 0.1 * size / norm;
      step = std::min(step, 0.5 * size / norm);
      const double bound = *std::max_element(
          values.end() - static_cast<std::ptrdiff_t>(std::min(kMemory, values.size())),
          values.end());
      for (;; step *= 0.25) {
        if (step * norm < 1e-6 * size) {  // no lower value within reach of float
          a = best;
          return;
        }
        next = orthonormal(a - static_cast<float>(step) * slope, threads);
        value = objective(next, smoothing, next_slope);
        if (value <= bound) break;
      }
      project(next, next_slope, threads);
      const Matrix moved = next - a, turned = next_slope - slope;
      const double product = std::abs(moved.cwiseProduct(turned).sum());
      step = i % 2 == 0 ? product / turned.squaredNorm() : moved.squaredNorm() / product;
      if (!std::isfinite(step)) step = 0;
      a.swap(next);
      slope.swap(next_slope);
      if (value < lowest.back()) best = a;
      values.push_back(value);
      lowest.push_back(std::min(value, lowest.back()));
      if (lowest.size() > kPatience &&
          lowest[lowest.size() - 1 - kPatience] < (1 + tolerance) * lowest.back())
        break;
    }
    a = best;
  }

  /// Turns the gradient at `a` into the Riemannian one: off the part that changes AᵀA.
  static void project(const Matrix& a, Matrix& gradient, int threads) {
    Matrix inner(a.cols(), a.cols());
    Objective::for_blocks(a.cols(), threads, [&](Eigen::Index first, Eigen::Index size) {
      inner.middleCols(first, size).noalias() = a.transpose() * gradient.middleCols(first, size);
    });
    const Matrix symmetric = 0.5F * (inner + inner.transpose());
    Objective::for_blocks(a.rows(), threads, [&](Eigen::Index first, Eigen::Index size) {
      gradient.middleRows(first, size).noalias() -= a.middleRows(first, size) * symmetric;
    });
  }

  /// The Q factor, by Cholesky: a step along the tangent only adds to AᵀA = I, so that it is well
  /// conditioned.
  static Matrix orthonormal(Matrix a, int threads) {
    Matrix gram = Matrix::Zero(a.cols(), a.cols());
    gram.selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
    const Eigen::LLT<Matrix> llt(gram);
    Objective::for_blocks(a.rows(), threads, [&](Eigen::Index first, Eigen::Index size) {
      auto rows = a.middleRows(first, size);
      llt.matrixU().solveInPlace<Eigen::OnTheRight>(rows);
    });
    return a;
  }

  /// The orthogonal [d, d] whose first `front` columns are those of `a` and whose last are its
  /// others, up to signs (which alpha does not see), with any complement between them.
  static linalg::RowMatrix<double> complete(const Matrix& a, Eigen::Index front) {
    const Eigen::Index d = a.rows(), back = a.cols() - front;
    const Eigen::MatrixXd q =
        a.cast<double>().householderQr().householderQ() * Eigen::MatrixXd::Identity(d, d);
    linalg::RowMatrix<double> rotation(d, d);
    rotation << q.leftCols(front), q.rightCols(d - a.cols()), q.middleCols(front, back);
    return rotation;
  }
};

}  // namespace bda::inline v0
