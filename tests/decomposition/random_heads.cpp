#include "decomposition/random_heads.hpp"

#include <Eigen/LU>
#include <Eigen/QR>
#include <bda/decomposition/noise.hpp>
#include <cmath>
#include <random>

// Here once, not in every test: most of a test's compile time would go into it.

namespace bda_test {

template <class S>
std::vector<bda::HeadFactors<S>> random_heads(std::uint64_t seed, int count, Eigen::Index m,
                                              Eigen::Index d, Eigen::Index r, Spectrum spectrum) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal;
  const auto random = [&](Eigen::Index rows, Eigen::Index cols) -> Eigen::MatrixXd {
    return Eigen::MatrixXd::NullaryExpr(rows, cols, [&] { return normal(bits); });
  };
  const Eigen::VectorXd decay =
      Eigen::ArrayXd::LinSpaced(r, 1, static_cast<double>(r)).pow(-spectrum.decay);
  const auto mixed = [&](Eigen::Index rows) -> Eigen::MatrixXd {
    const Eigen::MatrixXd turn = random(r, r).householderQr().householderQ();
    return random(rows, r) * decay.asDiagonal() * turn;
  };
  std::vector<bda::HeadFactors<S>> heads;
  for (int h = 0; h < count; ++h) {
    const Eigen::VectorXd scale = (spectrum.spread * random(d, 1)).array().exp();
    const Eigen::MatrixXd left = mixed(m), right = scale.asDiagonal() * mixed(d);
    bda::HeadFactors<S>& head = heads.emplace_back();
    head.left = left.template cast<S>();
    head.right = right;
  }
  return heads;
}

template std::vector<bda::HeadFactors<float>> random_heads(std::uint64_t, int, Eigen::Index,
                                                           Eigen::Index, Eigen::Index, Spectrum);
template std::vector<bda::HeadFactors<double>> random_heads(std::uint64_t, int, Eigen::Index,
                                                            Eigen::Index, Eigen::Index, Spectrum);

std::vector<bda::HeadFactors<double>> widened(const std::vector<bda::HeadFactors<float>>& heads) {
  std::vector<bda::HeadFactors<double>> wide(heads.size());
  for (std::size_t h = 0; h < heads.size(); ++h) {
    wide[h].left = heads[h].left.cast<double>();
    wide[h].right = heads[h].right;
  }
  return wide;
}

Eigen::VectorXd alphas(const std::vector<bda::HeadFactors<double>>& heads,
                       const bda::Basis& basis) {
  Eigen::VectorXd result(static_cast<Eigen::Index>(heads.size()));
  for (std::size_t h = 0; h < heads.size(); ++h) {
    bda::HeadFactors<double> head = heads[h];
    if (basis.rotation.size() > 0) head.right = (basis.rotation.transpose() * head.right).eval();
    result(static_cast<Eigen::Index>(h)) = bda::noise_amplification(head, basis.channels);
  }
  return result;
}

double reproduction_error(bda::HeadFactors<double> head, const bda::Basis& basis) {
  const Eigen::MatrixXd original = head.left * head.right.transpose();
  Eigen::MatrixXd expected = original;
  if (basis.rotation.size() > 0) {
    head.right = (basis.rotation.transpose() * head.right).eval();
    expected = original * basis.rotation;
  }
  const Eigen::MatrixXd rows = head.right(basis.channels.indices(), Eigen::all);
  const Eigen::MatrixXd rest = head.right(basis.channels.rest(), Eigen::all);
  const Eigen::MatrixXd c =
      Eigen::PartialPivLU<Eigen::MatrixXd>(rows.transpose()).solve(rest.transpose()).transpose();
  const Eigen::MatrixXd b = head.left * rows.transpose();
  Eigen::MatrixXd difference = expected;
  difference(Eigen::all, basis.channels.indices()) -= b;
  difference(Eigen::all, basis.channels.rest()) -= b * c.transpose();
  // A product of inner length k is off by at most k eps |.||.| in norm. Those of length d are the
  // rotation (three of them counting its departure from orthogonality), those of length r the two
  // with W, B and C and the solve, whose residual LU with pivoting bounds the same way, up to a
  // growth of a few.
  const double d = static_cast<double>(head.right.rows());
  const double bound = 8 * d * 0x1p-52 * head.left.norm() * head.right.norm() * (1 + c.norm());
  return difference.norm() / bound;
}

}  // namespace bda_test
