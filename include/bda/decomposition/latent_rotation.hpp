#pragma once

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
#include "bda/linalg/cholesky.hpp"
#include "bda/linalg/qr.hpp"

namespace bda::inline v0 {

namespace detail {

struct RotationLimits {
  int iterations;
  double tolerance;  // of the objective over ten iterations, relative
};

/// LatentRotation's search in the precision Real.
template <class Real>
class RotationSearch {
 public:
  using Objective = RotationObjective<Real>;
  using Matrix = typename Objective::Matrix;

  RotationSearch(const Objective& objective, RotationLimits limits, int threads)
      : objective_(objective), limits_(limits), threads_(threads) {}

  /// Orthonormal [d, columns].
  [[nodiscard]] Matrix minimise(Eigen::Index d, Eigen::Index columns) const {
    std::mt19937_64 bits(1);  // any generic start does; seeded, and portable unlike distributions
    linalg::RowMatrix<double> random(d, columns);
    for (Eigen::Index j = 0; j < columns; ++j)
      for (Eigen::Index i = 0; i < d; ++i)
        random(i, j) = static_cast<double>(bits() >> 11) * 0x1p-52 - 1;
    Matrix a = linalg::qr(random, columns).q.cast<Real>();
    double step = 0;
    for (const Smoothing& stage : kApproach) descend(stage, kApproachIterations, a, step);
    descend(kFinal, limits_.iterations, a, step);
    return a;
  }

  /// The orthogonal [d, d] whose first `front` columns are those of `a` and whose last are its
  /// others, up to signs (which alpha does not see), with any complement between them.
  static linalg::RowMatrix<double> complete(const Matrix& a, Eigen::Index front) {
    const Eigen::Index d = a.rows(), back = a.cols() - front;
    const linalg::RowMatrix<double> q =
        linalg::qr(linalg::RowMatrix<double>(a.template cast<double>()), d).q;
    linalg::RowMatrix<double> rotation(d, d);
    rotation << q.leftCols(front), q.rightCols(d - a.cols()), q.middleCols(front, back);
    return rotation;
  }

 private:
  // With the ridge a basis may pass through dependence, without it that costs infinitely much.
  static constexpr std::array<Smoothing, 3> kApproach{{{0.25, 1}, {0.06, 1}, {0.015, 1}}};
  static constexpr Smoothing kFinal{0, 1e-3};
  static constexpr int kApproachIterations = 5;  // each

  /// Improves `a`; `step` goes from stage to stage.
  void descend(Smoothing smoothing, int iterations, Matrix& a, double& step) const {
    constexpr std::size_t kMemory = 5;  // the next value may exceed all but the largest of these
    constexpr std::size_t kPatience = 10;
    const double size = a.norm();
    Matrix slope, next, next_slope, best = a;
    double value = objective_(a, smoothing, slope);
    if (!std::isfinite(value)) return;
    project(a, slope);
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
        next = orthonormal(a - static_cast<Real>(step) * slope);
        value = objective_(next, smoothing, next_slope);
        if (value <= bound) break;
      }
      project(next, next_slope);
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
          lowest[lowest.size() - 1 - kPatience] < (1 + limits_.tolerance) * lowest.back())
        break;
    }
    a = best;
  }

  /// Turns the gradient at `a` into the Riemannian one: off the part that changes AᵀA.
  void project(const Matrix& a, Matrix& gradient) const {
    Matrix inner = Matrix::Zero(a.cols(), a.cols());
    Objective::for_blocks(a.cols(), threads_, [&](Eigen::Index first, Eigen::Index size) {
      linalg::add_transposed_product(inner.middleCols(first, size), a,
                                     gradient.middleCols(first, size));
    });
    const Matrix symmetric = Real(0.5) * (inner + inner.transpose());
    Objective::for_blocks(a.rows(), threads_, [&](Eigen::Index first, Eigen::Index size) {
      linalg::add_product(gradient.middleRows(first, size), a.middleRows(first, size), symmetric,
                          Real(-1));
    });
  }

  /// The Q factor, by Cholesky: a step along the tangent only adds to AᵀA = I, so that it is well
  /// conditioned.
  [[nodiscard]] Matrix orthonormal(Matrix a) const {
    const Matrix upper = linalg::Cholesky<Real>(linalg::gram<Real>(a)).upper();
    Objective::for_blocks(a.rows(), threads_, [&](Eigen::Index first, Eigen::Index size) {
      linalg::divide_by_triangle<linalg::Triangle::kUpper>(a.middleRows(first, size), upper);
    });
    return a;
  }

  const Objective& objective_;
  RotationLimits limits_;
  int threads_;
};

}  // namespace detail

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
    return {IndexSet::slice(d, 0, r),
            Search::complete(search(objective, options.threads).minimise(d, r), r)};
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
        Search::complete(search(objective, options.threads).minimise(d, columns), columns - r_vo);
    return {Basis{IndexSet::slice(d, 0, r_qk), rotation},
            Basis{IndexSet::slice(d, d - r_vo, r_vo), rotation}};
  }

 private:
  using Search = detail::RotationSearch<float>;

  [[nodiscard]] Search search(const RotationObjective<float>& objective, int threads) const {
    check::at_least("LatentRotation.max_iterations", max_iterations, 1);
    if (!(tolerance > 0))
      throw Error("LatentRotation.tolerance", "a positive value", std::to_string(tolerance));
    return {objective, {max_iterations, tolerance}, threads};
  }
};

}  // namespace bda::inline v0
