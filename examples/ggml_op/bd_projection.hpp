#pragma once

#include <ggml.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bda/cpu/projection.hpp"
#include "bda/linalg/scalar.hpp"

namespace ggml_bd {

/// The basis-decomposed key or value projection as a node of a ggml graph on the CPU, computed by
/// the library's product in ggml's own threads: each takes some of the heads.
///
/// The object outlives the graph. Coefficients are a tensor of the graph like any weight (F32, F16
/// or BF16): C as the library has it, [rest, heads * width] row-major, so ne = {heads * width,
/// rest}.
class BdProjection {
 public:
  /// S = [basis, basis + width) of the latent's channels; `threads`: the most the graph runs on.
  BdProjection(std::int64_t basis, std::int64_t heads, std::int64_t width, int threads)
      : basis_(basis), heads_(heads), width_(width), scratch_(static_cast<std::size_t>(threads)) {}

  /// latent F32 {kv_dim, tokens} -> F32 {width, heads, tokens}. Throws std::invalid_argument.
  ggml_tensor* build(ggml_context* context, ggml_tensor* latent, ggml_tensor* coefficients) {
    const auto require = [](bool fits, const char* what, std::int64_t want, std::int64_t got) {
      if (!fits)
        throw std::invalid_argument(std::string(what) + ": expected " + std::to_string(want) +
                                    ", got " + std::to_string(got));
    };
    const std::int64_t rest = latent->ne[0] - width_, tokens = latent->ne[1];
    require(latent->type == GGML_TYPE_F32, "latent type", GGML_TYPE_F32, latent->type);
    require(ggml_is_contiguous(coefficients), "coefficients contiguous", 1, 0);
    require(coefficients->ne[0] == heads_ * width_, "coefficients ne[0]", heads_ * width_,
            coefficients->ne[0]);
    require(coefficients->ne[1] == rest, "coefficients ne[1]", rest, coefficients->ne[1]);
    require(0 <= basis_ && basis_ <= rest, "basis, at most", rest, basis_);
    rest_.resize(static_cast<std::size_t>(rest));
    for (std::int64_t i = 0; i < rest; ++i)
      rest_[static_cast<std::size_t>(i)] = i < basis_ ? i : i + width_;
    // Memory for every thread now: none is allocated while the graph runs.
    bda::cpu::Arena measured;
    bda::cpu::take_product_scratch<float>(measured, tokens, rest, heads_ * width_, 1);
    for (auto& memory : scratch_) memory.resize(measured.required());
    ggml_tensor* arguments[] = {latent, coefficients};
    const auto threads = static_cast<int>(scratch_.size());
    switch (coefficients->type) {
      case GGML_TYPE_F32:
        return node<float>(context, arguments, tokens, threads);
      case GGML_TYPE_F16:
        return node<Eigen::half>(context, arguments, tokens, threads);
      case GGML_TYPE_BF16:
        return node<Eigen::bfloat16>(context, arguments, tokens, threads);
      default:
        throw std::invalid_argument(
            std::string("coefficients type: expected F32, F16 or BF16, got ") +
            ggml_type_name(coefficients->type));
    }
  }

 private:
  template <class S>
  ggml_tensor* node(ggml_context* context, ggml_tensor** arguments, std::int64_t tokens,
                    int threads) {
    return ggml_custom_4d(context, GGML_TYPE_F32, width_, heads_, tokens, 1, arguments, 2,
                          compute<S>, threads, this);
  }

  template <class S>
  static void compute(ggml_tensor* out, int thread, int threads, void* self) {
    static_cast<BdProjection*>(self)->project<S>(out, thread, threads);
  }

  template <class S>
  void project(ggml_tensor* out, int thread, int threads) {
    const ggml_tensor &latent = *out->src[0], &coefficients = *out->src[1];
    const std::int64_t first = heads_ * thread / threads, last = heads_ * (thread + 1) / threads;
    if (first == last) return;
    const std::int64_t tokens = latent.ne[1], rest = coefficients.ne[1];
    const auto* data = static_cast<const float*>(latent.data);
    const auto stride = static_cast<std::int64_t>(latent.nb[1] / sizeof(float));
    bda::cpu::Product<float, S> p;
    p.a = {data, {1, tokens, latent.ne[0]}, {0, stride, 1}};
    p.channels = rest_;
    p.w = {static_cast<const S*>(coefficients.data) + first * width_,
           {rest, (last - first) * width_},
           {heads_ * width_, 1}};
    p.identity = {data + basis_, {1, tokens, width_}, {0, stride, 1}};
    p.out = {static_cast<float*>(out->data) + first * width_,
             {1, tokens, last - first, width_},
             {0, heads_ * width_, width_, 1}};
    bda::cpu::Arena arena(scratch_[static_cast<std::size_t>(thread)]);
    bda::cpu::multiply(p, bda::cpu::take_product_scratch<float>(arena, tokens, rest, p.cols(), 1),
                       1);
  }

  std::int64_t basis_, heads_, width_;
  std::vector<std::int64_t> rest_;               // the channels that meet C
  std::vector<std::vector<std::byte>> scratch_;  // of each thread
};

}  // namespace ggml_bd
