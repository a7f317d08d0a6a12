#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bda/core/dtype.hpp"

namespace perplexity {

/// Bytes of stored weights before and after decomposition.
struct Bytes {
  std::int64_t original = 0, bd = 0;
};

/// One side (QK or VO) of one layer: figures over its heads. Residuals are relative Frobenius
/// errors of the stored product, alpha is the noise amplification, coefficients are |C|.
struct SideSummary {
  double residual_mean = 0, residual_max = 0, mean_squared_error = 0;
  double alpha_mean = 0, alpha_max = 0, coefficient_max = 0;
};

/// Empty where a side is not decomposed.
struct LayerSummary {
  std::optional<SideSummary> qk, vo;
};

/// One model on one evaluation set, original and decomposed.
struct Comparison {
  std::string model, evaluation;  // names of the folder and the file
  std::string model_type;
  bda::DType dtype{}, attention_dtype{};
  std::string basis, sides, rounding, device;  // as on the command line
  bool exact = true;  // false where a side was forced that is not the same attention
  std::int64_t windows = 0, tokens_per_window = 0;

  std::optional<double> perplexity_original;  // absent for a converted checkpoint alone
  double perplexity_bd = 0;
  std::optional<double> perplexity_reference;  // of the file's nll
  std::optional<double> max_token_loss_error;  // original against the file's nll

  std::vector<LayerSummary> layers;  // empty for a converted checkpoint
  Bytes model_bytes, attention_bytes;
  double seconds_original = 0, seconds_prepare = 0, seconds_bd = 0;

  [[nodiscard]] std::optional<double> relative_change_percent() const {
    if (!perplexity_original) return std::nullopt;
    return (perplexity_bd / *perplexity_original - 1) * 100;
  }
  [[nodiscard]] double max_alpha() const {
    double largest = 0;
    for (const LayerSummary& layer : layers)
      for (const auto* side : {&layer.qk, &layer.vo})
        if (*side) largest = std::max(largest, (*side)->alpha_max);
    return largest;
  }
  /// Whether the original computes what the reference did: each token's loss to 1e-4 and the
  /// perplexity to 1e-5 of it. Empty without reference, and where the weights or the arithmetic
  /// are rounded to less than double: then a difference is no disagreement.
  [[nodiscard]] std::optional<bool> agrees() const {
    if (!perplexity_original || !perplexity_reference || dtype != bda::DType::kF64)
      return std::nullopt;
    return *max_token_loss_error <= 1e-4 &&
           std::abs(*perplexity_original / *perplexity_reference - 1) <= 1e-5;
  }
};

}  // namespace perplexity
