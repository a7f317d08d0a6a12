#pragma once

#include <algorithm>
#include <bda/model/attention_weights.hpp>
#include <cmath>
#include <cstdint>
#include <vector>

/// Plain causal attention in double, as slow and as direct as the formulas, with a bound on its own
/// rounding: two implementations in double that sum in any order each lie within `error` of the
/// exact value, hence within twice that of each other.
namespace bda_test {

struct Bounded {
  double value = 0, error = 0;
};
using Row = std::vector<Bounded>;
using Rows = std::vector<Row>;

inline constexpr double kUnit = 0x1p-53;

/// sum of a[i] b[i]: n products and sums in any order cost n u times the sum of magnitudes.
inline Bounded dot(const Bounded* a, const Bounded* b, std::int64_t n) {
  Bounded sum;
  double magnitude = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    sum.value += a[i].value * b[i].value;
    magnitude += std::abs(a[i].value * b[i].value);
    sum.error += a[i].error * std::abs(b[i].value) + std::abs(a[i].value) * b[i].error;
  }
  sum.error += static_cast<double>(n) * kUnit * magnitude;
  return sum;
}

/// x W + bias; W [in, out], bias empty for none.
inline Rows linear(const Rows& x, const bda::Matrix<double>& w, const std::vector<double>& bias) {
  Rows y(x.size(), Row(static_cast<std::size_t>(w.cols)));
  Row column(static_cast<std::size_t>(w.rows));
  for (std::int64_t j = 0; j < w.cols; ++j) {
    for (std::int64_t i = 0; i < w.rows; ++i) column[static_cast<std::size_t>(i)] = {w(i, j), 0};
    for (std::size_t t = 0; t < x.size(); ++t) {
      Bounded& out = y[t][static_cast<std::size_t>(j)];
      out = dot(x[t].data(), column.data(), w.rows);
      if (bias.empty()) continue;
      out.value += bias[static_cast<std::size_t>(j)];
      out.error += kUnit * std::abs(out.value);
    }
  }
  return y;
}

inline void rms_norm(Rows& x, const std::vector<double>& weight, double epsilon) {
  for (Row& row : x) {
    const Bounded squares = dot(row.data(), row.data(), static_cast<std::int64_t>(row.size()));
    const double mean = squares.value / static_cast<double>(row.size()) + epsilon;
    const double relative = squares.error / squares.value / 2 + 3 * kUnit;  // of the root
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double factor = weight[i] / std::sqrt(mean);
      row[i].value *= factor;
      row[i].error =
          row[i].error * std::abs(factor) + std::abs(row[i].value) * (relative + 3 * kUnit);
    }
  }
}

/// Rotates the head's rotary channels in place.
inline void rotate(Bounded* head, const bda::RopeConfig& rope, std::int64_t position) {
  const auto pairs = static_cast<std::int64_t>(rope.frequencies.size());
  for (std::int64_t i = 0; i < pairs; ++i) {
    const bool interleaved = rope.style == bda::RopeStyle::kInterleaved;
    Bounded& a = head[interleaved ? 2 * i : i];
    Bounded& b = head[interleaved ? 2 * i + 1 : i + pairs];
    const double angle =
        static_cast<double>(position) * rope.frequencies[static_cast<std::size_t>(i)];
    // The frequency is good to 140 u in either implementation (test_rope_parameters.cpp, factor
    // up to 4), the magnitude to 8 u.
    const double error = rope.magnitude * (142 * kUnit * std::abs(angle) + 10 * kUnit);
    const Bounded cosine{rope.magnitude * std::cos(angle), error};
    const Bounded sine{rope.magnitude * std::sin(angle), error};
    const Bounded from[] = {a, b}, to_a[] = {cosine, {-sine.value, sine.error}},
                  to_b[] = {sine, cosine};
    a = dot(from, to_a, 2);
    b = dot(from, to_b, 2);
  }
}

/// exp(s - max s) over its sum. A shift of all scores cancels, so a probability is off by at most
/// twice the scores' largest error, relatively, and by the roundings here.
inline void softmax(Row& scores) {
  const double largest =
      std::max_element(scores.begin(), scores.end(), [](const Bounded& a, const Bounded& b) {
        return a.value < b.value;
      })->value;
  double sum = 0, score_error = 0;
  for (Bounded& s : scores) {
    score_error = std::max(score_error, s.error + kUnit * std::abs(s.value - largest));
    s.value = std::exp(s.value - largest);
    sum += s.value;
  }
  for (Bounded& s : scores) {
    s.value /= sum;
    s.error =
        s.value * std::expm1(2 * score_error + (static_cast<double>(scores.size()) + 6) * kUnit);
  }
}

/// The layer's output for hidden states x [tokens, hidden].
inline Rows causal_attention(const bda::AttentionWeights<double>& w, const Rows& x) {
  const bda::AttentionConfig& c = w.config;
  Rows to_query = x, context = x;
  if (w.latent) {
    context = linear(x, w.latent->kv_a, {});
    rms_norm(context, w.latent->kv_norm, w.latent->norm_epsilon);
    if (!w.latent->q_a.empty()) {
      to_query = linear(x, w.latent->q_a, {});
      rms_norm(to_query, w.latent->q_norm, w.latent->norm_epsilon);
    }
  }
  Rows q = linear(to_query, w.q, w.q_bias);
  const Rows k = linear(context, w.k.weight, w.k.bias);
  Rows k_rope = linear(x, w.k_rope.weight, w.k_rope.bias);
  const Rows v = linear(context, w.v.weight, w.v.bias);
  const auto tokens = static_cast<std::int64_t>(x.size());
  for (std::int64_t t = 0; t < tokens && c.rope_dim > 0; ++t) {
    const auto i = static_cast<std::size_t>(t);
    for (std::int64_t h = 0; h < c.heads; ++h)
      rotate(&q[i][static_cast<std::size_t>(h * c.head_dim() + c.qk_dim)], c.rope, t);
    for (std::int64_t h = 0; h < c.rope_key_heads(); ++h)
      rotate(&k_rope[i][static_cast<std::size_t>(h * c.rope_dim)], c.rope, t);
  }

  Rows concatenated(x.size(), Row(static_cast<std::size_t>(c.heads * c.v_dim)));
  for (std::int64_t h = 0; h < c.heads; ++h) {
    const std::int64_t g = h / c.group_size();
    for (std::size_t t = 0; t < x.size(); ++t) {
      Row probabilities;
      for (std::size_t s = 0; s <= t; ++s) {
        Row key(k[s].begin() + g * c.qk_dim, k[s].begin() + (g + 1) * c.qk_dim);
        const auto rotated = k_rope[s].begin() + (c.shared_rope_key ? 0 : g * c.rope_dim);
        key.insert(key.end(), rotated, rotated + c.rope_dim);
        Bounded score =
            dot(&q[t][static_cast<std::size_t>(h * c.head_dim())], key.data(), c.head_dim());
        score.value *= c.scale;
        score.error = score.error * c.scale + 10 * kUnit * std::abs(score.value);  // scale: 8 u
        probabilities.push_back(score);
      }
      softmax(probabilities);
      for (std::int64_t j = 0; j < c.v_dim; ++j) {
        Row values;
        for (std::size_t s = 0; s <= t; ++s)
          values.push_back(v[s][static_cast<std::size_t>(g * c.v_dim + j)]);
        concatenated[t][static_cast<std::size_t>(h * c.v_dim + j)] =
            dot(probabilities.data(), values.data(), static_cast<std::int64_t>(t + 1));
      }
    }
  }
  return linear(concatenated, w.o, w.o_bias);
}

}  // namespace bda_test
