#pragma once

#include <bda/decomposition/basis.hpp>
#include <bda/decomposition/head_factors.hpp>
#include <cstdint>
#include <span>
#include <vector>

namespace bda_test {

/// How unequal a head's directions and channels are: its factors' singular values fall as
/// i^-decay, and the channels are scaled by exp(spread z), z standard normal.
struct Spectrum {
  double decay = 0, spread = 0;
};
inline constexpr Spectrum kGaussian{0, 0}, kModerate{0.5, 0.5}, kSteep{1, 1};

/// Heads with m left rows, d channels and width r. For float and double.
template <class S = double>
std::vector<bda::HeadFactors<S>> random_heads(std::uint64_t seed, int count, Eigen::Index m,
                                              Eigen::Index d, Eigen::Index r,
                                              Spectrum spectrum = kGaussian);

/// As the strategies take them: their scalar is not deduced from a vector.
template <class S>
std::span<const bda::HeadFactors<S>> view(const std::vector<bda::HeadFactors<S>>& heads) {
  return heads;
}

/// The same heads in double.
std::vector<bda::HeadFactors<double>> widened(const std::vector<bda::HeadFactors<float>>& heads);

/// alpha of each head, after the basis's rotation where it has one.
Eigen::VectorXd alphas(const std::vector<bda::HeadFactors<double>>& heads, const bda::Basis& basis);

/// |W P - B [I, Cᵀ]|_F of a head decomposed over `basis`, over what rounding in double can
/// explain; W in rotated coordinates where there are any.
double reproduction_error(bda::HeadFactors<double> head, const bda::Basis& basis);

}  // namespace bda_test
