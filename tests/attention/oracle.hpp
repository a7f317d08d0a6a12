#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/bounded.hpp"
#include "bda/attention/arguments.hpp"
#include "bda/linalg/scalar.hpp"
#include "bda/model/attention_weights.hpp"

/// One attention layer by its definition: loops over single numbers in double, sharing nothing with
/// the library but the plain data types. Every number carries the bound of `Arithmetic`.
namespace bda::testing {

using Row = std::vector<Bounded>;
using Rows = std::vector<Row>;  // [tokens]

/// How far another implementation's own constants may be off, relatively.
struct Constants {
  double angle = 0;   // rotary angles
  double factor = 0;  // the softmax scale, the rotary magnitude
};

template <class T>
class Oracle {
 public:
  /// `cache_roundoff`: unit roundoff of what keys, values, latents pass through on their way, 0 for
  /// nothing. Bounds are for runs in compute_t<T>; `absorbed` for those in latent space, which sum
  /// the same terms q_j W_kj c_k (p_t c_tk W_kj) in another order: each term then sees at most the
  /// roundings of both sums, so those of the other one are added to every key (value).
  explicit Oracle(const AttentionWeights<T>& weights, double cache_roundoff = 0,
                  bool absorbed = false, Constants constants = {})
      : w_(weights),
        constants_(constants),
        arithmetic_(StorageTraits<compute_t<T>>::unit_roundoff),
        cache_(cache_roundoff),
        absorbed_(absorbed) {}

  /// One sequence: x [queries, hidden_dim], context [keys, context_dim], b its place in the batch,
  /// first_position that of query 0. Returns [queries, out_dim].
  template <class C>
  Rows run(const Rows& x, const Rows& context, const AttentionMask<C>& mask, std::int64_t b,
           std::int64_t first_position) const {
    const AttentionConfig& c = w_.config;
    const std::int64_t keys = ssize(context);
    Rows source = context;
    if (w_.latent) {
      for (Row& row : source) {
        row = times(row, w_.latent->kv_a, 0, c.kv_dim, {});
        normalize(row, 0, w_.latent->kv_norm, w_.latent->norm_epsilon);
        through_cache(row);
      }
    }
    std::vector<Rows> k(at(keys)), v(at(keys));  // [key][kv head]
    for (std::int64_t j = 0; j < keys; ++j) {
      for (std::int64_t g = 0; g < c.kv_heads; ++g) {
        Row key = projected(w_.k, source[at(j)], g, c.qk_dim, c.head_dim());
        const Row rope =
            projected(w_.k_rope, context[at(j)], c.shared_rope_key ? 0 : g, c.rope_dim, 0);
        key.insert(key.end(), rope.begin(), rope.end());
        normalize(key, 0, w_.k_head_norm, w_.head_norm_epsilon);
        rotate(key, j);
        through_cache(key);
        k[at(j)].push_back(key);
        Row value = projected(w_.v, source[at(j)], g, c.v_dim, keys);
        through_cache(value);
        v[at(j)].push_back(value);
      }
    }
    Rows out;
    for (std::int64_t i = 0; i < ssize(x); ++i) {
      Row mixed;
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const Row head =
            attend(query(x[at(i)], h, first_position + i), k, v, mask, b, h, i, first_position + i);
        mixed.insert(mixed.end(), head.begin(), head.end());
      }
      out.push_back(times(mixed, w_.o, 0, c.out_dim, w_.o_bias));
    }
    return out;
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  template <class V>
  static std::int64_t ssize(const V& v) {
    return static_cast<std::int64_t>(v.size());
  }

  void through_cache(Row& row) const {
    if (cache_ == 0) return;
    // 2^-14: a 16-bit subnormal is rounded as the smallest normal number is
    for (Bounded& x : row) x.error += cache_ * (x.magnitude() + 0x1p-14);
  }

  /// Columns [first, first + count) of row * m + bias.
  Row times(const Row& row, const Matrix<T>& m, std::int64_t first, std::int64_t count,
            const std::vector<T>& bias) const {
    Row out;
    for (std::int64_t j = first; j < first + count; ++j) {
      Row column;
      for (std::int64_t i = 0; i < m.rows; ++i) column.push_back(static_cast<double>(m(i, j)));
      out.push_back(arithmetic_.dot(
          row, column, bias.empty() ? Bounded() : Bounded(static_cast<double>(bias[at(j)]))));
    }
    return out;
  }

  /// Head g of a key or value projection, by the definition of `KvProjection`; the absorbed form
  /// puts its terms through a sum of `other` terms too.
  Row projected(const KvProjection<T>& p, const Row& c, std::int64_t g, std::int64_t width,
                std::int64_t other) const {
    if (width == 0) return {};
    Row rest = c;
    if (p.basis) {
      rest.clear();
      for (std::int64_t channel : p.basis->rest()) rest.push_back(c[at(channel)]);
    }
    Row out = times(rest, p.weight, g * width, width, p.bias);
    for (std::int64_t j = 0; j < width; ++j) {
      const Bounded identity = p.basis ? c[at((*p.basis)[j])] : Bounded();
      out[at(j)] = arithmetic_.sum({out[at(j)], identity});
      if (!absorbed_) continue;
      double terms = identity.magnitude();
      if (!p.bias.empty()) terms += std::abs(static_cast<double>(p.bias[at(g * width + j)]));
      for (std::int64_t i = 0; i < p.weight.rows; ++i)
        terms +=
            rest[at(i)].magnitude() * std::abs(static_cast<double>(p.weight(i, g * width + j)));
      // 4 more: the addition of parts, the division by the sum, the share of the bias
      out[at(j)].error += arithmetic_.rounded({terms, 0}, static_cast<double>(other) + 4).error;
    }
    return out;
  }

  void normalize(Row& row, std::int64_t first, const std::vector<T>& gain, double epsilon) const {
    if (gain.empty()) return;
    const Row part(row.begin() + first, row.end());
    const double count = static_cast<double>(gain.size());
    const Bounded mean = arithmetic_.quotient(arithmetic_.dot(part, part), count);
    const Bounded scale = arithmetic_.reciprocal_root(arithmetic_.sum({mean, epsilon}));
    for (std::size_t i = 0; i < gain.size(); ++i)
      row[at(first) + i] =
          arithmetic_.product(arithmetic_.product(part[i], scale), static_cast<double>(gain[i]));
  }

  /// The last rope_dim entries of [nope | rope].
  void rotate(Row& row, std::int64_t position) const {
    const AttentionConfig& c = w_.config;
    const std::int64_t planes = c.rope_dim / 2;
    for (std::int64_t i = 0; i < planes; ++i) {
      const bool interleaved = c.rope.style == RopeStyle::kInterleaved;
      Bounded& a = row[at(c.qk_dim + (interleaved ? 2 * i : i))];
      Bounded& b = row[at(c.qk_dim + (interleaved ? 2 * i + 1 : i + planes))];
      const double angle = static_cast<double>(position) * c.rope.frequencies[at(i)];
      const double off =
          c.rope.magnitude * (constants_.angle * std::abs(angle) + constants_.factor);
      const Bounded cos = arithmetic_.rounded({std::cos(angle) * c.rope.magnitude, off});
      const Bounded sin = arithmetic_.rounded({std::sin(angle) * c.rope.magnitude, off});
      const Bounded x = a, y = b;
      a = arithmetic_.dot({x, y}, {cos, Bounded(-sin.value, sin.error)});
      b = arithmetic_.dot({x, y}, {sin, cos});
    }
  }

  Row query(const Row& x, std::int64_t h, std::int64_t position) const {
    const AttentionConfig& c = w_.config;
    Row from = x;
    if (w_.latent && !w_.latent->q_a.empty()) {
      from = times(x, w_.latent->q_a, 0, c.query_dim, {});
      normalize(from, 0, w_.latent->q_norm, w_.latent->norm_epsilon);
    }
    Row q = times(from, w_.q, h * c.head_dim(), c.head_dim(), w_.q_bias);
    normalize(q, 0, w_.q_head_norm, w_.head_norm_epsilon);
    rotate(q, position);
    return q;
  }

  template <class C>
  Row attend(const Row& q, const std::vector<Rows>& k, const std::vector<Rows>& v,
             const AttentionMask<C>& mask, std::int64_t b, std::int64_t h, std::int64_t i,
             std::int64_t position) const {
    const AttentionConfig& c = w_.config;
    const std::size_t g = at(h / c.group_size());
    std::vector<std::int64_t> seen;
    Row logits;
    double largest = w_.sinks.empty() ? -std::numeric_limits<double>::infinity() : w_.sinks[at(h)];
    for (std::int64_t j = 0; j < ssize(k); ++j) {
      if (mask.causal && j > position) continue;
      if (mask.window > 0 && position - j >= mask.window) continue;
      if (mask.key_lengths != nullptr && j >= mask.key_lengths[b]) continue;
      // scale is rounded to the arithmetic, and with a cap divided by it: 3 more roundings
      Bounded s = arithmetic_.rounded(arithmetic_.product(arithmetic_.dot(q, k[at(j)][g]),
                                                          {c.scale, c.scale * constants_.factor}),
                                      3);
      if (c.logit_softcap > 0) {
        const Bounded tanh =
            arithmetic_.hyperbolic_tangent({s.value / c.logit_softcap, s.error / c.logit_softcap});
        s = arithmetic_.rounded(arithmetic_.product(tanh, c.logit_softcap), 1);
      }
      if (mask.bias.data != nullptr)
        s = arithmetic_.sum({s, static_cast<double>(mask.bias(h, i, j))});
      seen.push_back(j);
      logits.push_back(s);
      largest = std::max(largest, s.value);
    }
    Row out(at(c.v_dim));
    if (seen.empty()) return out;
    // Any shift gives the same quotient: that of the arithmetic under test need not be this one.
    // Its own rounding is that of a difference of the size of the logits.
    Row weights;
    for (const Bounded& s : logits)
      weights.push_back(arithmetic_.exponential(arithmetic_.sum({s, Bounded(-largest)})));
    Bounded start;
    if (!w_.sinks.empty())
      start = arithmetic_.exponential(
          arithmetic_.sum({arithmetic_.rounded(w_.sinks[at(h)]), Bounded(-largest)}));
    const Bounded total = arithmetic_.sum(weights, start);
    for (std::int64_t r = 0; r < c.v_dim; ++r) {
      Row column;
      for (std::int64_t j : seen) column.push_back(v[at(j)][g][at(r)]);
      out[at(r)] = arithmetic_.quotient(arithmetic_.dot(weights, column), total);
    }
    return out;
  }

  const AttentionWeights<T>& w_;
  Constants constants_;
  Arithmetic arithmetic_;
  double cache_;
  bool absorbed_;
};

}  // namespace bda::testing
