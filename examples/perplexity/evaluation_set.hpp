#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/safetensors.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/matrix.hpp"

namespace perplexity {

/// Windows of tokens, each a sequence by itself, and what another implementation lost on them.
struct EvaluationSet {
  bda::Matrix<std::int64_t> tokens;  // [windows, length]
  /// [windows, length - 1] or empty: entry (w, t) is -log p(tokens(w, t + 1) | tokens(w, 0..t)).
  bda::Matrix<double> reference_losses;
};

/// Reads `tokens` and, where present, `nll`. `windows` keeps only the first ones. Throws bda::Error
/// for a file, a shape or a token (of `vocab_size`) that does not fit.
inline EvaluationSet read_evaluation_set(const std::filesystem::path& path,
                                         std::optional<std::int64_t> windows,
                                         std::int64_t vocab_size, std::int64_t max_positions) {
  namespace checkpoint = bda::checkpoint;
  const checkpoint::SafetensorsFile file(path);
  const checkpoint::Tensor& tokens = file.at("tokens");
  if (tokens.shape.size() != 2 || tokens.shape[0] < 1)
    throw bda::Error(tokens.label() + ".shape", "[windows, length]",
                     checkpoint::shape_text(tokens.shape));
  const std::int64_t stored = tokens.shape[0], length = tokens.shape[1];
  bda::check::in_range(tokens.label() + ".length", length, 2, max_positions);
  const std::int64_t kept = windows.value_or(stored);
  bda::check::in_range("--windows", kept, 1, stored);

  const auto first_rows = [&](auto values, std::int64_t width) {
    bda::Matrix<typename decltype(values)::value_type> m;
    values.resize(static_cast<std::size_t>(kept * width));
    m.rows = kept;
    m.cols = width;
    m.values = std::move(values);
    return m;
  };
  EvaluationSet set;
  set.tokens = first_rows(checkpoint::read_integers(tokens), length);
  for (std::size_t i = 0; i < set.tokens.values.size(); ++i)
    bda::check::in_range(tokens.label() + "[" + std::to_string(i) + "]", set.tokens.values[i], 0,
                         vocab_size - 1);
  if (const checkpoint::Tensor* nll = file.find("nll")) {
    if (nll->shape != std::vector<std::int64_t>{stored, length - 1})
      throw bda::Error(nll->label() + ".shape", checkpoint::shape_text({stored, length - 1}),
                       checkpoint::shape_text(nll->shape));
    set.reference_losses = first_rows(checkpoint::read_values<double>(*nll), length - 1);
  }
  return set;
}

}  // namespace perplexity
