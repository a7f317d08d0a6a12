// The operators' schemas, and their CPU side: the library's own product.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "bda/cpu/attend.hpp"
#include "bda/cpu/product.hpp"
#include "bda/linalg/eigen.hpp"
#include "shapes.hpp"

namespace bda_torch {
namespace {

using at::Tensor;

/// Calls `body` with a value of the library's type for x's; PyTorch's 16-bit types have its bits.
template <class Body>
auto dispatch(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return body(double{});
    case at::kFloat:
      return body(float{});
    case at::kHalf:
      return body(Eigen::half{});
    case at::kBFloat16:
      return body(Eigen::bfloat16{});
    default:
      TORCH_CHECK(false, "dtype: expected float64, float32, float16 or bfloat16, got ",
                  x.scalar_type());
  }
}

template <class S>
const S* stored(const Tensor& x) {
  return static_cast<const S*>(x.const_data_ptr());
}

/// In the type products are accumulated in.
template <class S>
Tensor widened(const Tensor& x) {
  return x.to(c10::CppTypeToScalarType<bda::compute_t<S>>::value);
}

/// out [tokens, heads, >= width] = c_S + c_rest C (+ bias), into out's first `width` channels.
template <class S, class C = bda::compute_t<S>>
void project_into(const Tensor& latent, const Tensor& packed, const Side& side,
                  const std::optional<Tensor>& bias, const Tensor& out) {
  std::vector<std::int64_t> rest(static_cast<std::size_t>(side.rest));
  for (std::int64_t i = 0; i < side.rest; ++i)
    rest[static_cast<std::size_t>(i)] = i < side.basis ? i : i + side.width;
  const Tensor c = widened<S>(latent);
  const std::int64_t tokens = c.size(0), stride = c.stride(0);
  const C* const data = c.const_data_ptr<C>();
  bda::cpu::Product<C, S> p;
  p.a = {data, {1, tokens, c.size(1)}, {0, stride, 1}};
  p.channels = rest;
  p.w = {stored<S>(packed), {side.rest, side.heads * side.width}};
  p.identity = {data + side.basis, {1, tokens, side.width}, {0, stride, 1}};
  Tensor wide_bias;
  if (bias) {
    wide_bias = widened<S>(*bias).contiguous();
    p.bias = wide_bias.const_data_ptr<C>();
  }
  p.out = {out.mutable_data_ptr<C>(),
           {1, tokens, side.heads, side.width},
           {0, out.stride(0), out.stride(1), 1}};
  bda::cpu::Arena measured;
  const int threads = at::get_num_threads();
  bda::cpu::take_product_scratch<C>(measured, tokens, side.rest, p.cols(), threads);
  std::vector<std::byte> memory(measured.required());
  bda::cpu::Arena arena(memory);
  bda::cpu::multiply(
      p, bda::cpu::take_product_scratch<C>(arena, tokens, side.rest, p.cols(), threads), threads);
}

Tensor pack(const Tensor& coefficients, std::int64_t heads) {
  check_rows("coefficients", coefficients, 2);
  TORCH_CHECK(heads > 0 && coefficients.size(1) % heads == 0, "coefficients: expected columns for ",
              heads, " heads, got ", coefficients.size(1));
  return coefficients.contiguous().flatten().clone();  // the CPU reads C as it is
}

Tensor project(const Tensor& latent, const Tensor& packed, std::int64_t basis, std::int64_t heads,
               std::int64_t width, const std::optional<Tensor>& bias) {
  check_rows("latent", latent, 2);
  check_width(heads, width, latent.size(1));
  const Side side = check_side(latent, packed, latent.size(1), heads, width, basis,
                               (latent.size(1) - width) * heads * width);
  TORCH_CHECK(!bias || bias->numel() == heads * width, "bias: expected ", heads * width,
              " values, got ", bias ? bias->numel() : 0);
  return dispatch(latent, [&](auto type) {
    using S = decltype(type);
    const Tensor out =
        at::empty({latent.size(0), heads, width}, widened<S>(latent.new_empty({0})).options());
    project_into<S>(latent, packed, side, bias, out);
    return out.to(latent.scalar_type());
  });
}

std::tuple<Tensor, Tensor> attention_ready(const Tensor& latent, const Tensor& rope,
                                           const Tensor& k_packed, const Tensor& v_packed,
                                           std::int64_t k_basis, std::int64_t v_basis,
                                           std::int64_t heads, std::int64_t qk_dim,
                                           std::int64_t v_dim) {
  check_rows("latent", latent, 2);
  check_rows("rope", rope, 2);
  const std::int64_t tokens = latent.size(0), kv_dim = latent.size(1);
  TORCH_CHECK(rope.size(0) == tokens, "rope: expected ", tokens, " tokens, got ", rope.size(0));
  check_width(heads, qk_dim, kv_dim);
  check_width(heads, v_dim, kv_dim);
  const Side key = check_side(latent, k_packed, kv_dim, heads, qk_dim, k_basis,
                              (kv_dim - qk_dim) * heads * qk_dim);
  const Side value =
      check_side(latent, v_packed, kv_dim, heads, v_dim, v_basis, (kv_dim - v_dim) * heads * v_dim);
  return dispatch(latent, [&](auto type) {
    using S = decltype(type);
    const auto options = widened<S>(latent.new_empty({0})).options();
    const Tensor k = at::empty({tokens, heads, qk_dim + rope.size(1)}, options);
    const Tensor v = at::empty({tokens, heads, v_dim}, options);
    project_into<S>(latent, k_packed, key, {}, k);
    k.narrow(2, qk_dim, rope.size(1)).copy_(rope.unsqueeze(1));
    project_into<S>(latent, v_packed, value, {}, v);
    return std::tuple(k.to(latent.scalar_type()), v.to(latent.scalar_type()));
  });
}

/// Calls `body(h, C_h's rows before the basis, those behind it)` with C_h in the compute type.
template <class S, class Body>
void for_each_head(const Tensor& packed, const Side& side, const Body& body) {
  using C = bda::compute_t<S>;
  std::vector<C> memory(static_cast<std::size_t>(side.rest * side.width));
  for (std::int64_t h = 0; h < side.heads; ++h) {
    const auto c = bda::linalg::map(
        bda::cpu::widened<C>(bda::MatrixView<const S>{stored<S>(packed) + h * side.width,
                                                      {side.rest, side.width},
                                                      {side.heads * side.width, 1}},
                             memory.data()));
    body(h, c.topRows(side.basis), c.bottomRows(side.rest - side.basis));
  }
}

/// Head h of [tokens, heads, width] as a matrix.
template <class C>
auto head(const Tensor& x, std::int64_t h) {
  return bda::linalg::map(bda::MatrixView<C>{
      x.data_ptr<C>() + h * x.stride(1), {x.size(0), x.size(2)}, {x.stride(0), 1}});
}

Tensor absorbed_query(const Tensor& q, const Tensor& packed, std::int64_t basis,
                      std::int64_t kv_dim) {
  check_rows("q", q, 3);
  const std::int64_t heads = q.size(1), width = q.size(2);
  check_width(heads, width, kv_dim);
  const Side side =
      check_side(q, packed, kv_dim, heads, width, basis, (kv_dim - width) * heads * width);
  return dispatch(q, [&](auto type) {
    using S = decltype(type);
    using C = bda::compute_t<S>;
    const Tensor from = widened<S>(q);
    const Tensor out = at::empty({q.size(0), heads, kv_dim}, from.options());
    for_each_head<S>(packed, side, [&](std::int64_t h, const auto& before, const auto& behind) {
      const auto x = head<C>(from, h);
      auto y = head<C>(out, h);
      y.leftCols(basis).noalias() = x * before.transpose();
      y.middleCols(basis, width) = x;
      y.rightCols(side.rest - basis).noalias() = x * behind.transpose();
    });
    return out.to(q.scalar_type());
  });
}

Tensor absorbed_output(const Tensor& x, const Tensor& packed, std::int64_t basis,
                       std::int64_t width) {
  check_rows("x", x, 3);
  const std::int64_t heads = x.size(1), kv_dim = x.size(2);
  check_width(heads, width, kv_dim);
  const Side side =
      check_side(x, packed, kv_dim, heads, width, basis, (kv_dim - width) * heads * width);
  return dispatch(x, [&](auto type) {
    using S = decltype(type);
    using C = bda::compute_t<S>;
    const Tensor from = widened<S>(x);
    const Tensor out = at::empty({x.size(0), heads, width}, from.options());
    for_each_head<S>(packed, side, [&](std::int64_t h, const auto& before, const auto& behind) {
      const auto latent = head<C>(from, h);
      auto y = head<C>(out, h);
      y = latent.middleCols(basis, width);
      y.noalias() += latent.leftCols(basis) * before;
      y.noalias() += latent.rightCols(side.rest - basis) * behind;
    });
    return out.to(x.scalar_type());
  });
}

}  // namespace
}  // namespace bda_torch

TORCH_LIBRARY_FRAGMENT(bda, m) {
  // C [rest, heads * width] in the order the device's kernels read it. Once for each weight.
  m.def("pack(Tensor coefficients, int heads) -> Tensor");
  // latent [tokens, kv_dim] -> [tokens, heads, width]
  m.def(
      "project(Tensor latent, Tensor packed, int basis, int heads, int width, Tensor? bias=None) "
      "-> Tensor");
  // latent [tokens, kv_dim], rotated rope keys [tokens, rope_dim] -> K [tokens, heads, qk_dim +
  // rope_dim], V [tokens, heads, v_dim]
  m.def(
      "attention_ready(Tensor latent, Tensor rope, Tensor k_packed, Tensor v_packed, int k_basis, "
      "int v_basis, int heads, int qk_dim, int v_dim) -> (Tensor, Tensor)");
  // q [tokens, heads, width] -> [tokens, heads, kv_dim]: what meets the latent cache
  m.def("absorbed_query(Tensor q, Tensor packed, int basis, int kv_dim) -> Tensor");
  // weighted latents [tokens, heads, kv_dim] -> values [tokens, heads, width]
  m.def("absorbed_output(Tensor x, Tensor packed, int basis, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(bda, CPU, m) {
  m.impl("pack", bda_torch::pack);
  m.impl("project", bda_torch::project);
  m.impl("attention_ready", bda_torch::attention_ready);
  m.impl("absorbed_query", bda_torch::absorbed_query);
  m.impl("absorbed_output", bda_torch::absorbed_output);
}
