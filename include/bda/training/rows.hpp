#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "bda/model/rope.hpp"
#include "bda/training/projection.hpp"

/// Backward of what happens to single rows: norms and rotary embeddings.
namespace bda::inline v0::training {

/// row / sqrt(mean(row^2) + epsilon) * gain over `width` = gain.size() values, row by row of blocks
/// of that width side by side.
template <class C>
[[nodiscard]] Rows<C> rms_norm_forward(const Rows<C>& x, const std::vector<C>& gain,
                                       double epsilon) {
  const auto width = static_cast<Eigen::Index>(gain.size());
  const Eigen::Map<const Eigen::Matrix<C, 1, Eigen::Dynamic>> g(gain.data(), width);
  Rows<C> y(x.rows(), x.cols());
  for (Eigen::Index t = 0; t < x.rows(); ++t)
    for (Eigen::Index first = 0; first < x.cols(); first += width) {
      const auto from = x.row(t).segment(first, width);
      const C scale =
          1 / std::sqrt(from.squaredNorm() / static_cast<C>(width) + static_cast<C>(epsilon));
      y.row(t).segment(first, width) = (scale * from).cwiseProduct(g);
    }
  return y;
}

/// Adds to the gain's gradient; returns dx. With s the scale and n = s x, dx = s (dn - n mean(n
/// dn)) where dn = dy gain.
template <class C>
Rows<C> rms_norm_backward(const Rows<C>& x, const std::vector<C>& gain, double epsilon,
                          const Rows<C>& dy, std::vector<C>& gain_gradient) {
  using Row = Eigen::Matrix<C, 1, Eigen::Dynamic>;
  const auto width = static_cast<Eigen::Index>(gain.size());
  const Eigen::Map<const Row> g(gain.data(), width);
  Eigen::Map<Row> dg(gain_gradient.data(), width);
  Rows<C> dx(x.rows(), x.cols());
  for (Eigen::Index t = 0; t < x.rows(); ++t)
    for (Eigen::Index first = 0; first < x.cols(); first += width) {
      const auto from = x.row(t).segment(first, width);
      const C scale =
          1 / std::sqrt(from.squaredNorm() / static_cast<C>(width) + static_cast<C>(epsilon));
      const Row n = scale * from;
      const auto d = dy.row(t).segment(first, width);
      dg += d.cwiseProduct(n);
      const Row dn = d.cwiseProduct(g);
      dx.row(t).segment(first, width) = scale * (dn - n * (n.dot(dn) / static_cast<C>(width)));
    }
  return dx;
}

/// Rotates `row` [rope_dim] as position `position`, or back by the transpose of that map (which is
/// its backward; not its inverse where RopeConfig::magnitude is not 1).
template <class C, class Row>
void rotate(const RopeConfig& rope, std::int64_t position, bool transposed, Row&& row) {
  const auto planes = static_cast<std::int64_t>(rope.frequencies.size());
  const bool interleaved = rope.style == RopeStyle::kInterleaved;
  for (std::int64_t i = 0; i < planes; ++i) {
    const double angle =
        static_cast<double>(position) * rope.frequencies[static_cast<std::size_t>(i)];
    const C c = static_cast<C>(std::cos(angle) * rope.magnitude);
    const C s = static_cast<C>(std::sin(angle) * rope.magnitude) * (transposed ? C(-1) : C(1));
    C& a = row(interleaved ? 2 * i : i);
    C& b = row(interleaved ? 2 * i + 1 : i + planes);
    const C x = a, y = b;
    a = x * c - y * s;
    b = x * s + y * c;
  }
}

}  // namespace bda::inline v0::training
