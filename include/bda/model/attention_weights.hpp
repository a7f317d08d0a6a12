#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bda/core/dtype.hpp"
#include "bda/core/index_set.hpp"
#include "bda/core/matrix.hpp"
#include "bda/core/parallel.hpp"
#include "bda/model/attention_config.hpp"

/// The weights of one attention layer, before and after decomposition: plain data, row-vector
/// convention (`y = x W`, W is [in, out], row-major), heads side by side along the columns.
namespace bda::inline v0 {

/// A key or value projection for all K/V heads, in plain or in basis-decomposed form.
///
/// Plain: `y[t, h, :] = c[t, :] weight[:, h, :] + bias[h, :]`, weight [kv_dim, kv_heads, width].
/// Decomposed (BD paper, section 3): with `basis` = S, `width` channels of c,
/// `y[t, h, :] = c[t, S] + c[t, rest] weight[:, h, :] + bias[h, :]`, where weight holds the
/// coefficients C, [kv_dim - width, kv_heads, width], rows in the order of `basis->rest()`.
template <class T>
struct KvProjection {
  Matrix<T> weight;
  std::vector<T> bias;  // [kv_heads, width], empty for none
  std::optional<IndexSet> basis;

  [[nodiscard]] bool decomposed() const { return basis.has_value(); }
};

/// What MLA puts before the attention proper (DeepSeek-V2, arXiv 2405.04434): the compressed
/// latent, the shared rotary key and, where the model has one, the compressed query.
template <class T>
struct LatentProjection {
  Matrix<T> kv_a;          // [hidden, kv_dim]: c = rmsnorm(x kv_a) * kv_norm
  std::vector<T> kv_norm;  // [kv_dim]
  Matrix<T> q_a;           // [hidden, query_dim], empty without q_lora
  std::vector<T> q_norm;   // [query_dim], empty without q_lora
  double norm_epsilon = 1e-6;
};

/// One attention layer. The same type holds the original and the decomposed layer: decomposition
/// replaces `q`, `k`, `v`, `o` and their biases (and turns the latent for `latent_rotation`).
template <class T>
struct AttentionWeights {
  AttentionConfig config;
  Matrix<T> q;             // [query_dim, heads, qk_dim + rope_dim]
  std::vector<T> q_bias;   // [heads, qk_dim + rope_dim], empty for none
  KvProjection<T> k;       // width qk_dim; empty where qk_dim = 0
  KvProjection<T> k_rope;  // width rope_dim, rope_key_heads() heads, from the hidden state
  KvProjection<T> v;       // width v_dim
  Matrix<T> o;             // [heads, v_dim, out_dim]
  std::vector<T> o_bias;   // [out_dim], empty for none

  std::vector<T> q_head_norm, k_head_norm;  // [qk_dim + rope_dim] RMS norm of each head's query and
                                            // key before the rotation (Qwen3), empty for none
  double head_norm_epsilon = 1e-6;
  std::vector<double> sinks;  // [heads] logits of a key with no value, empty for none
  std::optional<LatentProjection<T>> latent;

  /// Width of the sequence that queries come from.
  [[nodiscard]] std::int64_t hidden_dim() const {
    if (latent) return latent->kv_a.rows;
    return q.rows;
  }
  /// Width of the sequence that keys and values come from (MLA: before compression).
  [[nodiscard]] std::int64_t context_dim() const {
    return latent ? latent->kv_a.rows : config.kv_dim;
  }
  /// Calls `visit(name, values, count)` for every stored tensor, in a fixed order.
  template <class Visitor>
  void for_each_tensor(const Visitor& visit) const;

  /// Bytes of all stored tensors.
  [[nodiscard]] std::int64_t bytes() const {
    std::int64_t total = 0;
    for_each_tensor([&](std::string_view, const T*, std::int64_t n) {
      total += n * static_cast<std::int64_t>(sizeof(T));
    });
    return total;
  }
};

/// Calls `visit(name, member)` for every tensor a layer can have, in a fixed order: `member` is a
/// `Matrix<T>` or a `std::vector<T>`, empty where the layer has none, and mutable where `w` is. The
/// latent's are visited where there is a latent.
template <class Weights, class Visitor>
void for_each_member(Weights& w, const Visitor& visit) {
  visit("q", w.q);
  visit("q_bias", w.q_bias);
  visit("k.weight", w.k.weight);
  visit("k.bias", w.k.bias);
  visit("k_rope.weight", w.k_rope.weight);
  visit("k_rope.bias", w.k_rope.bias);
  visit("v.weight", w.v.weight);
  visit("v.bias", w.v.bias);
  visit("o", w.o);
  visit("o_bias", w.o_bias);
  visit("q_head_norm", w.q_head_norm);
  visit("k_head_norm", w.k_head_norm);
  if (w.latent) {
    visit("latent.kv_a", w.latent->kv_a);
    visit("latent.kv_norm", w.latent->kv_norm);
    visit("latent.q_a", w.latent->q_a);
    visit("latent.q_norm", w.latent->q_norm);
  }
}

template <class T>
template <class Visitor>
void AttentionWeights<T>::for_each_tensor(const Visitor& visit) const {
  for_each_member(*this, [&](std::string_view name, const auto& member) {
    visit(name, member.data(), static_cast<std::int64_t>(member.size()));
  });
}

namespace detail {

template <class T>
void check_matrix(std::string_view name, const Matrix<T>& m, std::int64_t rows, std::int64_t cols) {
  check::equal(std::string(name) + ".rows", m.rows, rows);
  check::equal(std::string(name) + ".cols", m.cols, cols);
  check::equal(std::string(name) + ".values.size", static_cast<std::int64_t>(m.values.size()),
               rows * cols, "rows * cols");
}

template <class T>
void check_optional(std::string_view name, const std::vector<T>& v, std::int64_t size) {
  if (!v.empty())
    check::equal(std::string(name) + ".size", static_cast<std::int64_t>(v.size()), size);
}

template <class T>
void check_projection(std::string_view name, const KvProjection<T>& p, std::int64_t in,
                      std::int64_t heads, std::int64_t width) {
  if (p.basis) {
    check::equal(std::string(name) + ".basis.dim", p.basis->dim(), in);
    check::equal(std::string(name) + ".basis.size", p.basis->size(), width, "head width");
  }
  const std::int64_t rows = p.basis ? in - width : in;
  check_matrix(std::string(name) + ".weight", p.weight, width == 0 ? 0 : rows, heads * width);
  check_optional(std::string(name) + ".bias", p.bias, heads * width);
}

/// The index of the first Inf or NaN, or `count`. Looks at the bits, so that it vectorises for
/// 16-bit types too: models are large.
template <class T>
std::int64_t first_non_finite(const T* values, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;
  constexpr DType dtype = StorageTraits<T>::dtype;
  constexpr Bits exponent = dtype == DType::kF64    ? Bits(0x7ff0000000000000u)
                            : dtype == DType::kF32  ? Bits(0x7f800000u)
                            : dtype == DType::kBF16 ? Bits(0x7f80u)
                                                    : Bits(0x7c00u);
  const auto bad = [&](std::int64_t i) {
    Bits bits;
    std::memcpy(&bits, values + i, sizeof bits);
    return (bits & exponent) == exponent;
  };
  constexpr std::int64_t kBlock = 4096;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, count);
    int any = 0;
    for (std::int64_t i = begin; i < end; ++i) any |= bad(i);
    if (!any) continue;
    for (std::int64_t i = begin; i < end; ++i)
      if (bad(i)) return i;
  }
  return count;
}

}  // namespace detail

/// Throws `Error` where a tensor does not fit the config, or holds a value that is not finite (the
/// error names the tensor and the flat index).
template <class T>
void validate(const AttentionWeights<T>& w, int threads = 1) {
  const AttentionConfig& c = w.config;
  validate(c);
  detail::check_matrix("q", w.q, c.query_dim, c.heads * c.head_dim());
  detail::check_optional("q_bias", w.q_bias, c.heads * c.head_dim());
  detail::check_projection("k", w.k, c.kv_dim, c.kv_heads, c.qk_dim);
  detail::check_projection("k_rope", w.k_rope, w.context_dim(), c.rope_key_heads(), c.rope_dim);
  detail::check_projection("v", w.v, c.kv_dim, c.kv_heads, c.v_dim);
  detail::check_matrix("o", w.o, c.heads * c.v_dim, c.out_dim);
  detail::check_optional("o_bias", w.o_bias, c.out_dim);
  detail::check_optional("q_head_norm", w.q_head_norm, c.head_dim());
  detail::check_optional("k_head_norm", w.k_head_norm, c.head_dim());
  detail::check_optional("sinks", w.sinks, c.heads);
  if (w.latent) {
    const LatentProjection<T>& l = *w.latent;
    detail::check_matrix("latent.kv_a", l.kv_a, l.kv_a.rows, c.kv_dim);
    check::equal("latent.kv_norm.size", static_cast<std::int64_t>(l.kv_norm.size()), c.kv_dim);
    if (l.q_a.empty()) {
      check::equal("q.rows", w.q.rows, l.kv_a.rows, "hidden width, without latent.q_a");
    } else {
      detail::check_matrix("latent.q_a", l.q_a, l.kv_a.rows, c.query_dim);
      check::equal("latent.q_norm.size", static_cast<std::int64_t>(l.q_norm.size()), c.query_dim);
    }
    if (!(l.norm_epsilon >= 0))
      throw Error("latent.norm_epsilon", "zero or more", std::to_string(l.norm_epsilon));
  }
  struct Tensor {
    std::string_view name;
    const T* values;
    std::int64_t count;
  };
  std::vector<Tensor> tensors;
  w.for_each_tensor([&](std::string_view name, const T* values, std::int64_t count) {
    tensors.push_back({name, values, count});
  });
  parallel_for(static_cast<std::int64_t>(tensors.size()), threads, [&](std::int64_t t) {
    const auto& [name, values, count] = tensors[static_cast<std::size_t>(t)];
    const std::int64_t i = detail::first_non_finite(values, count);
    if (i < count)
      throw Error(std::string(name) + "[" + std::to_string(i) + "]", "a finite value",
                  std::to_string(static_cast<double>(values[i])));
  });
}

}  // namespace bda::inline v0
