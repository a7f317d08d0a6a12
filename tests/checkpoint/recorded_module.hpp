#pragma once

#include <bda/checkpoint.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "attention/oracle.hpp"
#include "checkpoint/temporary_folder.hpp"

/// What transformers computed in one attention module of a fixture, and how far it can be off.
namespace bda_test {

/// transformers makes angles and scales its own way: frequencies are good to 140 u in either
/// implementation (test_rope_parameters.cpp, factor up to 4), scale and magnitude to 8 u.
inline constexpr bda::testing::Constants kOwnConstants{.angle = 142 * 0x1p-53,
                                                       .factor = 10 * 0x1p-53};

struct RecordedModule {
  std::vector<double> x, context, position_bias, output;  // [tokens, dim], [heads, tokens, keys]
  std::int64_t tokens = 0, keys = 0;
  bool cross = false;
  bda::AttentionMask<double> mask;

  /// `prefix` is what the file calls the module; `pattern` what its model masks.
  RecordedModule(const bda::checkpoint::SafetensorsFile& file, const std::string& prefix,
                 const bda::checkpoint::AttentionPattern& pattern)
      : x(values(file, prefix + "input")),
        output(values(file, prefix + "output")),
        tokens(file.at(prefix + "input").shape[0]),
        keys(tokens),
        cross(pattern.cross) {
    if (cross) {
      context = values(file, prefix + "context");
      keys = file.at(prefix + "context").shape[0];
    }
    mask.causal = pattern.causal;
    mask.window = pattern.window;
    if (!pattern.position_bias) return;
    position_bias = values(file, prefix + "position_bias");
    const auto& shape = file.at(prefix + "position_bias").shape;
    mask.bias = {position_bias.data(), {shape[0], shape[1], shape[2]}};
  }
  RecordedModule(const RecordedModule&) = delete;  // mask.bias points into it
  RecordedModule& operator=(const RecordedModule&) = delete;

  /// What the layer gives by its definition, each value with a bound of what rounding in double
  /// may do to it in any implementation.
  [[nodiscard]] bda::testing::Rows bounded(const bda::AttentionWeights<double>& w) const {
    const bda::testing::Oracle<double> oracle(w, 0, false, kOwnConstants);
    return oracle.run(rows(x, tokens), rows(cross ? context : x, keys), mask, 0, 0);
  }

  [[nodiscard]] static bda::testing::Rows rows(const std::vector<double>& from,
                                               std::int64_t count) {
    bda::testing::Rows out(static_cast<std::size_t>(count));
    const std::size_t width = from.size() / out.size();
    for (std::size_t i = 0; i < from.size(); ++i) out[i / width].emplace_back(from[i]);
    return out;
  }

 private:
  static std::vector<double> values(const bda::checkpoint::SafetensorsFile& file,
                                    const std::string& name) {
    return bda::checkpoint::read_values<double>(file.at(name));
  }
};

}  // namespace bda_test
