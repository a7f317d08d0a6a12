#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "bda/core/tensor_view.hpp"
#include "bda/model/rope.hpp"

/// What happens to single rows between the products: norms and rotary embeddings.
namespace bda::inline v0::cpu {

/// row = row / sqrt(mean(row^2) + epsilon) * gain.
template <class C>
void rms_norm(C* row, const std::vector<C>& gain, double epsilon) {
  C squares = 0;
  for (std::size_t i = 0; i < gain.size(); ++i) squares += row[i] * row[i];
  const C scale = C(1) / std::sqrt(squares / static_cast<C>(gain.size()) + static_cast<C>(epsilon));
  for (std::size_t i = 0; i < gain.size(); ++i) row[i] = row[i] * scale * gain[i];
}

/// cos and sin of every position of a run times RopeConfig::magnitude. Angles are formed in double:
/// in float, position * frequency loses a digit for every digit of the position.
template <class C>
struct RotaryTable {
  C* cos = nullptr;  // [positions, rope_dim / 2]
  C* sin = nullptr;
  std::int64_t planes = 0;

  void fill(const RopeConfig& rope, std::int64_t first_position, std::int64_t positions) {
    for (std::int64_t p = 0; p < positions; ++p) {
      for (std::int64_t i = 0; i < planes; ++i) {
        const double angle =
            static_cast<double>(first_position + p) * rope.frequencies[static_cast<std::size_t>(i)];
        cos[p * planes + i] = static_cast<C>(std::cos(angle) * rope.magnitude);
        sin[p * planes + i] = static_cast<C>(std::sin(angle) * rope.magnitude);
      }
    }
  }

  /// Rotates `row` [rope_dim] as the `position`-th of the run.
  void rotate(C* row, std::int64_t position, RopeStyle style) const {
    const C* c = cos + position * planes;
    const C* s = sin + position * planes;
    const bool interleaved = style == RopeStyle::kInterleaved;
    for (std::int64_t i = 0; i < planes; ++i) {
      C& a = interleaved ? row[2 * i] : row[i];
      C& b = interleaved ? row[2 * i + 1] : row[i + planes];
      const C x = a, y = b;
      a = x * c[i] - y * s[i];
      b = x * s[i] + y * c[i];
    }
  }
};

}  // namespace bda::inline v0::cpu
