#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bda/attention/arguments.hpp"
#include "bda/attention/check_arguments.hpp"
#include "bda/core/error.hpp"
#include "bda/model/attention_weights.hpp"
#include "bda/training/projection.hpp"
#include "bda/training/rows.hpp"
#include "bda/training/softmax.hpp"

namespace bda::inline v0::training {

/// Gradients of a loss with respect to everything that goes into one attention layer.
template <class C>
struct AttentionGradients {
  AttentionWeights<C> weights;  // of every stored tensor, in its own shape; the rest is a copy
  Rows<C> x;                    // [batch * queries, hidden_dim]
  Rows<C> context;              // [batch * keys, context_dim], empty for self-attention
  std::vector<C> mask_bias;     // [heads, queries, keys] of mask.bias, empty where there is none
};

/// Weights of the same shape, all zero: where gradients are summed up, and an optimizer's state.
template <class C>
[[nodiscard]] AttentionWeights<C> zeros_like(const AttentionWeights<C>& weights) {
  AttentionWeights<C> zeros = weights;
  zeros.for_each_tensor([](std::string_view, const C* values, std::int64_t count) {
    std::fill_n(const_cast<C*>(values), count, C(0));  // of `zeros`, which is not const
  });
  std::fill(zeros.sinks.begin(), zeros.sinks.end(), 0.0);
  return zeros;
}

/// Forward and backward of one attention layer, plain or basis-decomposed, with everything that
/// `BDAttention` takes: self- and cross-attention, grouped queries, latents, rotary parts, norms of
/// queries and keys, biases, sinks, caps and masks. Written for clarity: all intermediate results
/// of the last forward are kept, attention weights included (heads queries x keys a sequence).
///
/// C is float or double. `weights` must outlive the object and not change between the two calls.
template <class C>
class AttentionTraining {
 public:
  /// Throws `Error` where the weights do not fit their config.
  explicit AttentionTraining(const AttentionWeights<C>& weights) : w_(weights) {
    validate(weights);
  }

  /// Writes args.out, as `BDAttention::run` does. Throws `Error` for arguments it would refuse.
  void forward(const AttentionArguments<C>& args) {
    if (const Status s = check_arguments(w_, args, 0); !s)
      throw Error(s.argument(), std::to_string(s.expected()) + ", " + s.message(),
                  std::to_string(s.given()));
    args_ = args;
    batch_ = args.x.extent(0);
    queries_ = args.x.extent(1);
    keys_ = args.key_source().extent(1);
    x_ = gathered(args.x);
    context_ = gathered(args.key_source());
    make_queries();
    make_keys_and_values();
    attend();
    const Rows<C> out = linear_forward(w_.o, w_.o_bias, mixed_);
    for (std::int64_t b = 0; b < batch_; ++b)
      for (std::int64_t t = 0; t < queries_; ++t)
        std::copy_n(out.row(b * queries_ + t).data(), out.cols(), &args.out(b, t, 0));
  }

  /// Gradients of a loss whose gradient with respect to the last forward's output is `out_gradient`
  /// [batch * queries, out_dim]. Throws where its shape differs.
  [[nodiscard]] AttentionGradients<C> backward(const Rows<C>& out_gradient) const {
    check::equal("out_gradient.rows", out_gradient.rows(), mixed_.rows(), "batch * queries");
    check::equal("out_gradient.cols", out_gradient.cols(), w_.config.out_dim, "out_dim");
    AttentionGradients<C> g;
    g.weights = zeros_like(w_);
    const Rows<C> d_mixed =
        linear_backward(w_.o, mixed_, out_gradient, g.weights.o, g.weights.o_bias);
    Rows<C> dq = Rows<C>::Zero(q_.rows(), q_.cols()), dk = Rows<C>::Zero(k_.rows(), k_.cols()),
            dv = Rows<C>::Zero(v_.rows(), v_.cols());
    attend_backward(d_mixed, dq, dk, dv, g);
    g.x = queries_backward(std::move(dq), g.weights);
    Rows<C> d_context = keys_and_values_backward(std::move(dk), dv, g.weights);
    if (args_.is_cross_attention())
      g.context = std::move(d_context);
    else
      g.x += d_context;
    return g;
  }

 private:
  static Rows<C> gathered(const TensorView<const C, 3>& view) {
    Rows<C> rows(view.extent(0) * view.extent(1), view.extent(2));
    for (std::int64_t b = 0; b < view.extent(0); ++b)
      for (std::int64_t t = 0; t < view.extent(1); ++t)
        std::copy_n(&view(b, t, 0), view.extent(2), rows.row(b * view.extent(1) + t).data());
    return rows;
  }

  /// Rotates the last rope_dim channels of every head, [batch * tokens, heads * head_dim].
  void rotate_heads(Rows<C>& heads, std::int64_t tokens, bool transposed) const {
    const AttentionConfig& c = w_.config;
    if (c.rope_dim == 0) return;
    for (Eigen::Index row = 0; row < heads.rows(); ++row)
      for (Eigen::Index first = c.qk_dim; first < heads.cols(); first += c.head_dim())
        rotate<C>(c.rope, row % tokens, transposed, heads.row(row).segment(first, c.rope_dim));
  }

  void make_queries() {
    query_source_ = x_;
    if (has_query_latent()) {
      query_latent_ = linear_forward(w_.latent->q_a, {}, x_);
      query_source_ = rms_norm_forward(query_latent_, w_.latent->q_norm, w_.latent->norm_epsilon);
    }
    q_plain_ = linear_forward(w_.q, w_.q_bias, query_source_);
    q_ = w_.q_head_norm.empty() ? q_plain_
                                : rms_norm_forward(q_plain_, w_.q_head_norm, w_.head_norm_epsilon);
    rotate_heads(q_, queries_, false);
  }

  Rows<C> queries_backward(Rows<C> dq, AttentionWeights<C>& g) const {
    rotate_heads(dq, queries_, true);
    if (!w_.q_head_norm.empty())
      dq = rms_norm_backward(q_plain_, w_.q_head_norm, w_.head_norm_epsilon, dq, g.q_head_norm);
    Rows<C> d_source = linear_backward(w_.q, query_source_, dq, g.q, g.q_bias);
    if (!has_query_latent()) return d_source;
    const Rows<C> d_latent = rms_norm_backward(query_latent_, w_.latent->q_norm,
                                               w_.latent->norm_epsilon, d_source, g.latent->q_norm);
    std::vector<C> no_bias;
    return linear_backward(w_.latent->q_a, x_, d_latent, g.latent->q_a, no_bias);
  }

  void make_keys_and_values() {
    const AttentionConfig& c = w_.config;
    source_ = context_;
    if (w_.latent) {
      latent_ = linear_forward(w_.latent->kv_a, {}, context_);
      source_ = rms_norm_forward(latent_, w_.latent->kv_norm, w_.latent->norm_epsilon);
    }
    k_plain_.resize(context_.rows(), c.kv_heads * c.head_dim());
    if (c.qk_dim > 0) {
      const Rows<C> nope = projection_forward(w_.k, source_);
      for (std::int64_t g = 0; g < c.kv_heads; ++g)
        k_plain_.middleCols(g * c.head_dim(), c.qk_dim) = nope.middleCols(g * c.qk_dim, c.qk_dim);
    }
    if (c.rope_dim > 0) {
      const Rows<C> rope = projection_forward(w_.k_rope, context_);
      for (std::int64_t g = 0; g < c.kv_heads; ++g)
        k_plain_.middleCols(g * c.head_dim() + c.qk_dim, c.rope_dim) =
            rope.middleCols(rope_head(g) * c.rope_dim, c.rope_dim);
    }
    k_ = w_.k_head_norm.empty() ? k_plain_
                                : rms_norm_forward(k_plain_, w_.k_head_norm, w_.head_norm_epsilon);
    rotate_heads(k_, keys_, false);
    v_ = projection_forward(w_.v, source_);
  }

  Rows<C> keys_and_values_backward(Rows<C> dk, const Rows<C>& dv, AttentionWeights<C>& g) const {
    const AttentionConfig& c = w_.config;
    rotate_heads(dk, keys_, true);
    if (!w_.k_head_norm.empty())
      dk = rms_norm_backward(k_plain_, w_.k_head_norm, w_.head_norm_epsilon, dk, g.k_head_norm);
    Rows<C> d_source = Rows<C>::Zero(source_.rows(), source_.cols());
    Rows<C> d_context = Rows<C>::Zero(context_.rows(), context_.cols());
    projection_backward(w_.v, source_, dv, g.v, d_source);
    if (c.qk_dim > 0) {
      Rows<C> nope(dk.rows(), c.kv_heads * c.qk_dim);
      for (std::int64_t h = 0; h < c.kv_heads; ++h)
        nope.middleCols(h * c.qk_dim, c.qk_dim) = dk.middleCols(h * c.head_dim(), c.qk_dim);
      projection_backward(w_.k, source_, nope, g.k, d_source);
    }
    if (c.rope_dim > 0) {
      Rows<C> rope = Rows<C>::Zero(dk.rows(), c.rope_key_heads() * c.rope_dim);
      for (std::int64_t h = 0; h < c.kv_heads; ++h)
        rope.middleCols(rope_head(h) * c.rope_dim, c.rope_dim) +=
            dk.middleCols(h * c.head_dim() + c.qk_dim, c.rope_dim);
      projection_backward(w_.k_rope, context_, rope, g.k_rope, d_context);
    }
    if (!w_.latent) return d_context + d_source;
    const Rows<C> d_latent = rms_norm_backward(latent_, w_.latent->kv_norm, w_.latent->norm_epsilon,
                                               d_source, g.latent->kv_norm);
    std::vector<C> no_bias;
    return d_context +
           linear_backward(w_.latent->kv_a, context_, d_latent, g.latent->kv_a, no_bias);
  }

  [[nodiscard]] ScoreContext<C> score_context(std::int64_t b, std::int64_t h) const {
    ScoreContext<C> s;
    s.scale = static_cast<C>(w_.config.scale);
    s.softcap = static_cast<C>(w_.config.logit_softcap);
    s.has_sink = !w_.sinks.empty();
    s.sink = s.has_sink ? static_cast<C>(w_.sinks[static_cast<std::size_t>(h)]) : C(0);
    s.mask = args_.mask;
    s.sequence = b;
    s.head = h;
    return s;
  }

  void attend() {
    const AttentionConfig& c = w_.config;
    mixed_.resize(batch_ * queries_, c.heads * c.v_dim);
    weights_.resize(static_cast<std::size_t>(batch_ * c.heads));
    capped_.resize(weights_.size());
    for (std::int64_t b = 0; b < batch_; ++b)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const std::size_t i = static_cast<std::size_t>(b * c.heads + h);
        weights_[i].noalias() = query_of(q_, b, h) * key_of(k_, b, h).transpose();
        softmax_forward(score_context(b, h), weights_[i], capped_[i]);
        mixed_.block(b * queries_, h * c.v_dim, queries_, c.v_dim).noalias() =
            weights_[i] * value_of(v_, b, h);
      }
  }

  void attend_backward(const Rows<C>& d_mixed, Rows<C>& dq, Rows<C>& dk, Rows<C>& dv,
                       AttentionGradients<C>& g) const {
    const AttentionConfig& c = w_.config;
    TensorView<C, 3> bias_gradient;
    if (args_.mask.bias.data != nullptr) {
      g.mask_bias.assign(static_cast<std::size_t>(c.heads * queries_ * keys_), C(0));
      bias_gradient = {g.mask_bias.data(), {c.heads, queries_, keys_}};
    }
    for (std::int64_t b = 0; b < batch_; ++b)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const std::size_t i = static_cast<std::size_t>(b * c.heads + h);
        const auto dy = d_mixed.block(b * queries_, h * c.v_dim, queries_, c.v_dim);
        value_of(dv, b, h).noalias() += weights_[i].transpose() * dy;
        Rows<C> d = dy * value_of(v_, b, h).transpose();
        softmax_backward(score_context(b, h), weights_[i], capped_[i], d,
                         w_.sinks.empty() ? nullptr : &g.weights.sinks[static_cast<std::size_t>(h)],
                         bias_gradient);
        query_of(dq, b, h).noalias() += d * key_of(k_, b, h);
        key_of(dk, b, h).noalias() += d.transpose() * query_of(q_, b, h);
      }
  }

  // The block of one sequence and query head.
  template <class M>
  auto query_of(M& q, std::int64_t b, std::int64_t h) const {
    const std::int64_t width = w_.config.head_dim();
    return q.block(b * queries_, h * width, queries_, width);
  }
  template <class M>
  auto key_of(M& k, std::int64_t b, std::int64_t h) const {
    const std::int64_t width = w_.config.head_dim();
    return k.block(b * keys_, h / w_.config.group_size() * width, keys_, width);
  }
  template <class M>
  auto value_of(M& v, std::int64_t b, std::int64_t h) const {
    const std::int64_t width = w_.config.v_dim;
    return v.block(b * keys_, h / w_.config.group_size() * width, keys_, width);
  }

  [[nodiscard]] bool has_query_latent() const { return w_.latent && !w_.latent->q_a.empty(); }
  [[nodiscard]] std::int64_t rope_head(std::int64_t g) const {
    return w_.config.shared_rope_key ? 0 : g;
  }

  const AttentionWeights<C>& w_;
  AttentionArguments<C> args_;
  std::int64_t batch_ = 0, queries_ = 0, keys_ = 0;
  Rows<C> x_, context_;                    // [batch * tokens, *]
  Rows<C> query_latent_, query_source_;    // before and after its norm
  Rows<C> latent_, source_;                // before and after its norm
  Rows<C> q_plain_, q_, k_plain_, k_, v_;  // heads side by side; before norm and rotation, after
  std::vector<Rows<C>> weights_, capped_;  // [batch * heads] of [queries, keys]
  Rows<C> mixed_;                          // [batch * queries, heads * v_dim]
};

}  // namespace bda::inline v0::training
