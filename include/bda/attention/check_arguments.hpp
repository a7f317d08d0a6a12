#pragma once

#include <cstdint>

#include "bda/attention/arguments.hpp"
#include "bda/core/status.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

namespace detail {

template <class T>
Status check_activation(const TensorView<T, 3>& view, const char* const (&names)[5],
                        std::int64_t batch, std::int64_t tokens, std::int64_t width) {
  if (view.data == nullptr) return Status::invalid(names[0], "a pointer, not null", 1, 0);
  if (view.extent(0) != batch)
    return Status::invalid(names[1], "equal to x.extent(0)", batch, view.extent(0));
  if (view.extent(1) != tokens)
    return Status::invalid(names[2], "equal to x.extent(1)", tokens, view.extent(1));
  if (view.extent(2) != width)
    return Status::invalid(names[3], "equal to the layer's width", width, view.extent(2));
  if (view.stride(2) != 1) return Status::invalid(names[4], "contiguous", 1, view.stride(2));
  return {};
}

}  // namespace detail

/// What every backend demands of its operands; `cached` is the number of tokens a cache holds, and
/// 0 without one.
template <class C, class S>
Status check_arguments(const AttentionWeights<S>& weights, const AttentionArguments<C>& args,
                       std::int64_t cached) {
  const std::int64_t batch = args.x.extent(0), queries = args.x.extent(1);
  if (batch < 1) return Status::invalid("x.extent(0)", "at least", 1, batch);
  if (queries < 1) return Status::invalid("x.extent(1)", "at least", 1, queries);
  if (Status s = detail::check_activation(
          args.x, {"x.data", "x.extent(0)", "x.extent(1)", "x.extent(2)", "x.stride(2)"}, batch,
          queries, weights.hidden_dim());
      !s)
    return s;
  if (Status s = detail::check_activation(
          args.out,
          {"out.data", "out.extent(0)", "out.extent(1)", "out.extent(2)", "out.stride(2)"}, batch,
          queries, weights.config.out_dim);
      !s)
    return s;
  if (args.is_cross_attention()) {
    const std::int64_t tokens = args.context.extent(1);
    if (tokens < 0) return Status::invalid("context.extent(1)", "at least", 0, tokens);
    if (Status s =
            detail::check_activation(args.context,
                                     {"context.data", "context.extent(0)", "context.extent(1)",
                                      "context.extent(2)", "context.stride(2)"},
                                     batch, tokens, weights.context_dim());
        !s)
      return s;
  } else if (weights.hidden_dim() != weights.context_dim()) {
    return Status::invalid("context.data", "given, as keys are not as wide as queries", 1, 0);
  }

  const std::int64_t keys = cached + args.key_source().extent(1);
  const AttentionMask<C>& mask = args.mask;
  if (mask.window < 0) return Status::invalid("mask.window", "at least", 0, mask.window);
  if (mask.key_lengths != nullptr) {
    for (std::int64_t b = 0; b < batch; ++b) {
      if (mask.key_lengths[b] < 0)
        return Status::invalid("mask.key_lengths", "at least", 0, mask.key_lengths[b]);
      if (mask.key_lengths[b] > keys)
        return Status::invalid("mask.key_lengths", "at most the number of keys", keys,
                               mask.key_lengths[b]);
    }
  }
  if (mask.bias.data != nullptr) {
    const auto& bias = mask.bias;
    if (bias.extent(0) != weights.config.heads)
      return Status::invalid("mask.bias.extent(0)", "equal to config.heads", weights.config.heads,
                             bias.extent(0));
    if (bias.extent(1) != queries)
      return Status::invalid("mask.bias.extent(1)", "equal to the queries", queries,
                             bias.extent(1));
    if (bias.extent(2) != keys)
      return Status::invalid("mask.bias.extent(2)", "equal to the keys, cached ones included", keys,
                             bias.extent(2));
    if (bias.stride(2) != 1)
      return Status::invalid("mask.bias.stride(2)", "contiguous", 1, bias.stride(2));
  }
  const bool absorbed = args.latent_products == LatentProducts::kAbsorbed;
  if (absorbed && !weights.latent)
    return Status::error(
        Status::Code::kUnsupported, "latent_products", "kMaterialized, as the layer has no latent",
        static_cast<int>(LatentProducts::kMaterialized), static_cast<int>(args.latent_products));
  if (absorbed && !weights.k_head_norm.empty())
    return Status::error(Status::Code::kUnsupported, "latent_products",
                         "kMaterialized, as k_head_norm needs the keys",
                         static_cast<int>(LatentProducts::kMaterialized),
                         static_cast<int>(args.latent_products));
  return {};
}

}  // namespace bda::inline v0
