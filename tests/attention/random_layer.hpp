#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bda/linalg/scalar.hpp"
#include "bda/model/attention_weights.hpp"

/// Random attention layers of every kind the library takes.
namespace bda::testing {

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  double normal() { return normal_(engine_); }
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool coin() { return in(0, 1) == 1; }

  template <class T>
  Matrix<T> matrix(std::int64_t rows, std::int64_t cols) {
    Matrix<T> m(rows, cols);
    const double scale = 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(rows, 1)));
    for (T& x : m.values) x = static_cast<T>(scale * normal());
    return m;
  }
  template <class T>
  std::vector<T> vector(std::int64_t size, double mean = 0, double scale = 1) {
    std::vector<T> v(static_cast<std::size_t>(size));
    for (T& x : v) x = static_cast<T>(mean + scale * normal());
    return v;
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
};

enum class BasisKind { kNone, kSlice, kScattered };

struct LayerTraits {
  bool cross = false, latent = false, q_lora = false, biases = false, head_norms = false;
  bool sinks = false, softcap = false, shared_rope = false;
  bool nope = true, rope = false;
  BasisKind k_basis = BasisKind::kNone, v_basis = BasisKind::kNone, rope_basis = BasisKind::kNone;
  std::int64_t slice_begin = -1;  // of bases that are slices; negative: random
};

inline IndexSet random_basis(Random& random, BasisKind kind, std::int64_t dim, std::int64_t size) {
  if (kind == BasisKind::kSlice) return IndexSet::slice(dim, random.in(0, dim - size), size);
  std::vector<std::int64_t> all(static_cast<std::size_t>(dim));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
  std::shuffle(all.begin(), all.end(), random.engine());
  all.resize(static_cast<std::size_t>(size));
  return {dim, all};
}

/// `slice_begin`: of a basis that is a slice; negative: random.
template <class T>
KvProjection<T> random_projection(Random& random, BasisKind kind, bool bias, std::int64_t dim,
                                  std::int64_t heads, std::int64_t width,
                                  std::int64_t slice_begin = -1) {
  KvProjection<T> p;
  if (width == 0) return p;
  if (kind == BasisKind::kSlice && slice_begin >= 0)
    p.basis = IndexSet::slice(dim, slice_begin, width);
  else if (kind != BasisKind::kNone)
    p.basis = random_basis(random, kind, dim, width);
  p.weight = random.matrix<T>(p.basis ? dim - width : dim, heads * width);
  if (bias) p.bias = random.vector<T>(heads * width, 0, 0.5);
  return p;
}

/// Random weights of a layer whose config is set.
template <class T>
void fill_weights(Random& random, const LayerTraits& traits, std::int64_t hidden,
                  AttentionWeights<T>& w) {
  const AttentionConfig& c = w.config;
  w.q = random.matrix<T>(c.query_dim, c.heads * c.head_dim());
  w.o = random.matrix<T>(c.heads * c.v_dim, c.out_dim);
  if (traits.biases) {
    w.q_bias = random.vector<T>(c.heads * c.head_dim(), 0, 0.5);
    w.o_bias = random.vector<T>(c.out_dim, 0, 0.5);
  }
  const auto projection = [&](BasisKind kind, std::int64_t dim, std::int64_t heads,
                              std::int64_t width) {
    return random_projection<T>(random, kind, traits.biases, dim, heads, width, traits.slice_begin);
  };
  w.k = projection(traits.k_basis, c.kv_dim, c.kv_heads, c.qk_dim);
  w.v = projection(traits.v_basis, c.kv_dim, c.kv_heads, c.v_dim);
  w.k_rope = projection(traits.rope_basis, traits.latent ? hidden : c.kv_dim, c.rope_key_heads(),
                        c.rope_dim);
  if (traits.head_norms) {
    w.q_head_norm = random.vector<T>(c.head_dim(), 1, 0.2);
    w.k_head_norm = random.vector<T>(c.head_dim(), 1, 0.2);
  }
  if (traits.sinks) w.sinks = random.vector<double>(c.heads);
  if (traits.latent) {
    w.latent.emplace();
    w.latent->kv_a = random.matrix<T>(hidden, c.kv_dim);
    w.latent->kv_norm = random.vector<T>(c.kv_dim, 1, 0.2);
    if (traits.q_lora) {
      w.latent->q_a = random.matrix<T>(hidden, c.query_dim);
      w.latent->q_norm = random.vector<T>(c.query_dim, 1, 0.2);
    }
  }
}

/// A layer of random, odd extents; some decomposed layers have kv_dim equal to a head's width.
template <class T>
AttentionWeights<T> random_layer(Random& random, const LayerTraits& traits) {
  AttentionWeights<T> w;
  AttentionConfig& c = w.config;
  c.kv_heads = random.in(1, 3);
  c.heads = c.kv_heads * random.in(1, 3);
  c.qk_dim = traits.nope ? random.in(1, 9) : 0;
  c.rope_dim = traits.rope ? 2 * random.in(1, 4) : 0;
  c.v_dim = random.in(1, 9);
  c.kv_dim = std::max({c.qk_dim, c.rope_dim, c.v_dim}) + random.in(0, 11);
  c.out_dim = random.in(1, 19);
  c.query_dim = traits.cross || (traits.latent && traits.q_lora) ? random.in(3, 21) : c.kv_dim;
  const std::int64_t hidden = random.in(c.rope_dim + 3, c.rope_dim + 23);
  if (traits.latent && !traits.q_lora) c.query_dim = hidden;
  c.shared_rope_key = traits.shared_rope;
  c.rope.style = random.coin() ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
  if (traits.rope) c.rope.frequencies = rope_frequencies(c.rope_dim, 100.0);
  c.rope.magnitude = random.coin() ? 1.0 : 1.25;
  c.scale = 1 / std::sqrt(static_cast<double>(c.head_dim()));
  if (traits.softcap) c.logit_softcap = 1.5;
  fill_weights(random, traits, hidden, w);
  return w;
}

/// A random combination of everything that can be combined.
inline LayerTraits random_traits(Random& random) {
  LayerTraits t;
  t.latent = random.coin();
  t.q_lora = t.latent && random.coin();
  t.cross = !t.latent && random.in(0, 2) == 0;
  t.rope = random.coin();
  t.nope = !t.rope || random.in(0, 3) > 0;
  t.shared_rope = t.rope && t.latent && random.in(0, 3) > 0;
  t.biases = random.coin();
  t.head_norms = random.in(0, 3) == 0;
  t.sinks = random.coin();
  t.softcap = random.in(0, 2) == 0;
  t.k_basis = static_cast<BasisKind>(random.in(0, 2));
  t.v_basis = static_cast<BasisKind>(random.in(0, 2));
  t.rope_basis = random.in(0, 3) == 0 ? static_cast<BasisKind>(random.in(1, 2)) : BasisKind::kNone;
  return t;
}

}  // namespace bda::testing
