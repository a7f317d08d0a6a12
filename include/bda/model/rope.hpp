#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "bda/core/checks.hpp"

namespace bda::inline v0 {

/// Which channels a rotary embedding pairs up.
enum class RopeStyle {
  kInterleaved,  // (0,1), (2,3), ...: DeepSeek
  kHalfSplit     // (0, w/2), (1, w/2 + 1), ...: Llama
};

/// A rotary position embedding, whatever scaling rule made its frequencies.
struct RopeConfig {
  RopeStyle style = RopeStyle::kInterleaved;
  std::vector<double> frequencies;  // [rope_dim / 2], radians per position
  double magnitude = 1.0;           // multiplies cos and sin (YaRN)
};

/// theta^(-2i / rope_dim), the unscaled frequencies.
[[nodiscard]] inline std::vector<double> rope_frequencies(std::int64_t rope_dim, double theta) {
  check::multiple_of("rope_dim", rope_dim, 2);
  std::vector<double> f(static_cast<std::size_t>(rope_dim / 2));
  for (std::size_t i = 0; i < f.size(); ++i)
    f[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rope_dim));
  return f;
}

/// The parameters of YaRN (arXiv 2309.00071), by their names in config.json.
struct YarnScaling {
  double factor = 1.0;
  double original_max_position_embeddings = 4096;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 1, mscale_all_dim = 0;
};

/// YaRN's attention temperature, 0.1 m ln(s) + 1.
[[nodiscard]] inline double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// Frequencies interpolated below `beta_slow` rotations per original window, kept above
/// `beta_fast`, blended linearly between.
[[nodiscard]] inline std::vector<double> yarn_frequencies(std::int64_t rope_dim, double theta,
                                                          const YarnScaling& yarn) {
  std::vector<double> f = rope_frequencies(rope_dim, theta);
  const auto dim_of_rotations = [&](double rotations) {
    return static_cast<double>(rope_dim) *
           std::log(yarn.original_max_position_embeddings / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  const double low = std::max(std::floor(dim_of_rotations(yarn.beta_fast)), 0.0);
  double high =
      std::min(std::ceil(dim_of_rotations(yarn.beta_slow)), static_cast<double>(rope_dim) - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < f.size(); ++i) {
    const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    f[i] = f[i] / yarn.factor * interpolated + f[i] * (1 - interpolated);
  }
  return f;
}

/// The parameters of Llama 3.1's scaling, by their names in config.json.
struct Llama3Scaling {
  double factor = 8;
  double low_freq_factor = 1, high_freq_factor = 4;  // in rotations per original window
  double original_max_position_embeddings = 8192;
};

/// Frequencies divided by `factor` below `low_freq_factor` rotations per original window, kept
/// above `high_freq_factor`, blended between linearly in the number of rotations.
[[nodiscard]] inline std::vector<double> llama3_frequencies(std::int64_t rope_dim, double theta,
                                                            const Llama3Scaling& scaling) {
  std::vector<double> f = rope_frequencies(rope_dim, theta);
  for (double& frequency : f) {
    const double rotations =
        scaling.original_max_position_embeddings * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((rotations - scaling.low_freq_factor) /
                                       (scaling.high_freq_factor - scaling.low_freq_factor),
                                   0.0, 1.0);
    frequency = frequency / scaling.factor * (1 - kept) + frequency * kept;
  }
  return f;
}

}  // namespace bda::inline v0
