// Weights from Python: the tensors of a DeepSeek-V2 attention layer into decomposed form.
#include "bda/preparation/prepare.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "bda/linalg/eigen.hpp"

namespace bda_torch {
namespace {

using at::Tensor;

/// PyTorch's [out, in] as the library's [in, out].
bda::Matrix<double> matrix(const Tensor& weight) {
  const Tensor from = weight.to(at::kDouble).cpu().t().contiguous();
  bda::Matrix<double> m(from.size(0), from.size(1));
  std::copy_n(from.const_data_ptr<double>(), m.size(), m.data());
  return m;
}

/// The library's values as a tensor, copied.
template <class S>
Tensor tensor(const S* values, std::int64_t rows, std::int64_t cols, at::ScalarType type) {
  return at::from_blob(const_cast<S*>(values), {rows, cols}, at::TensorOptions(type)).clone();
}

using Decomposed =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::int64_t, std::int64_t>;

template <class S>
Decomposed decompose(const bda::AttentionWeights<double>& layer, const Tensor& rope_rows,
                     at::ScalarType type) {
  bda::PreparationOptions options;
  options.threads = at::get_num_threads();
  const bda::AttentionWeights<S> w = bda::prepare<S>(layer, options).weights;
  TORCH_CHECK(w.k.basis->is_slice() && w.v.basis->is_slice(), "basis: expected slices");
  const auto transposed = [&](const bda::Matrix<S>& m) {
    return tensor(m.data(), m.rows, m.cols, type).t().contiguous();
  };
  const auto& latent = *w.latent;
  return {transposed(w.q),
          at::cat({transposed(latent.kv_a), rope_rows.cpu().to(type)}),
          tensor(latent.kv_norm.data(), 1, w.config.kv_dim, type).flatten(),
          tensor(w.k.weight.data(), w.k.weight.rows, w.k.weight.cols, type),
          tensor(w.v.weight.data(), w.v.weight.rows, w.v.weight.cols, type),
          transposed(w.o),
          w.k.basis->offset(),
          w.v.basis->offset()};
}

Decomposed decompose_mla(const Tensor& q, const Tensor& kv_a, const Tensor& kv_norm,
                         const Tensor& kv_b, const Tensor& o, std::int64_t heads,
                         std::int64_t qk_dim, std::int64_t rope_dim, std::int64_t v_dim,
                         at::ScalarType type) {
  for (const Tensor* weight : {&q, &kv_a, &kv_b, &o})
    TORCH_CHECK(weight->dim() == 2, "weights: expected [out, in], got ", weight->sizes());
  const std::int64_t hidden = kv_a.size(1), kv_dim = kv_norm.numel();
  TORCH_CHECK(kv_a.size(0) == kv_dim + rope_dim, "kv_a: expected ", kv_dim + rope_dim,
              " rows, got ", kv_a.size(0));
  TORCH_CHECK(heads > 0 && kv_b.size(0) == heads * (qk_dim + v_dim) && kv_b.size(1) == kv_dim,
              "kv_b: expected [", heads * (qk_dim + v_dim), ", ", kv_dim, "], got ", kv_b.sizes());
  bda::AttentionWeights<double> layer;
  bda::AttentionConfig& c = layer.config;
  c.query_dim = q.size(1), c.kv_dim = kv_dim, c.out_dim = o.size(0);
  c.heads = c.kv_heads = heads;
  c.qk_dim = qk_dim, c.rope_dim = rope_dim, c.v_dim = v_dim;
  c.shared_rope_key = true;
  // neither the angles nor the scale have part in the decomposition
  c.rope.frequencies.assign(static_cast<std::size_t>(rope_dim / 2), 1.0);
  c.scale = 1;
  layer.q = matrix(q);
  layer.o = matrix(o);
  auto& latent = layer.latent.emplace();
  latent.kv_a = matrix(kv_a.narrow(0, 0, kv_dim));
  const Tensor norm = kv_norm.to(at::kDouble).cpu().contiguous();
  latent.kv_norm.assign(norm.const_data_ptr<double>(), norm.const_data_ptr<double>() + kv_dim);
  if (c.query_dim != hidden) {  // a compressed query, which stays what it is
    latent.q_a = bda::Matrix<double>(hidden, c.query_dim);
    latent.q_norm.assign(static_cast<std::size_t>(c.query_dim), 1.0);
  }
  const Tensor rope_rows = kv_a.narrow(0, kv_dim, rope_dim);
  layer.k_rope.weight = matrix(rope_rows);
  const Tensor by_head = kv_b.view({heads, qk_dim + v_dim, kv_dim});
  layer.k.weight = matrix(by_head.narrow(1, 0, qk_dim).flatten(0, 1));
  layer.v.weight = matrix(by_head.narrow(1, qk_dim, v_dim).flatten(0, 1));
  switch (type) {
    case at::kDouble:
      return decompose<double>(layer, rope_rows, type);
    case at::kFloat:
      return decompose<float>(layer, rope_rows, type);
    case at::kHalf:
      return decompose<Eigen::half>(layer, rope_rows, type);
    case at::kBFloat16:
      return decompose<Eigen::bfloat16>(layer, rope_rows, type);
    default:
      TORCH_CHECK(false, "dtype: expected float64, float32, float16 or bfloat16, got ", type);
  }
}

}  // namespace
}  // namespace bda_torch

TORCH_LIBRARY_FRAGMENT(bda, m) {
  // Weights as torch.nn.Linear has them, [out, in]; for q_b_proj with a compressed query. Gives q,
  // kv_a, kv_norm and o to put in their place, the coefficients of keys and values for `pack`, and
  // where the two bases begin. Offline: no fake function, since values decide the basis.
  m.def(
      "decompose_mla(Tensor q, Tensor kv_a, Tensor kv_norm, Tensor kv_b, Tensor o, int heads, "
      "int qk_dim, int rope_dim, int v_dim, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, int, int)",
      bda_torch::decompose_mla);
}
