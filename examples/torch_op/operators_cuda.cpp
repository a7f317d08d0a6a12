// The operators on NVIDIA GPUs: the launchers of bda/cuda.hpp on PyTorch's current stream. The
// kernels are compiled by themselves, in kernels_*.cu.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <optional>
#include <tuple>

#include "bda/cuda.hpp"
#include "shapes.hpp"

namespace bda_torch {
namespace {

using at::Tensor;
namespace cuda = bda::cuda;

template <class Body>
auto dispatch(const Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kHalf) return body(__half{});
  TORCH_CHECK(x.scalar_type() == at::kBFloat16,
              "dtype: expected float16 or bfloat16 on a GPU, got ", x.scalar_type());
  return body(__nv_bfloat16{});
}

/// Asked for once a device: it reads a few of its attributes.
template <class T>
const cuda::DeviceInfo& device_info(int device) {
  static std::array<std::optional<cuda::DeviceInfo>, 64> known;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& info = known.at(static_cast<std::size_t>(device));
  if (!info) info = cuda::query_device<T>();
  return *info;
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

/// Makes `launch(arguments, device, workspace, bytes, stream)` on PyTorch's current stream, in
/// memory of its allocator, which orders it with what follows on that stream and in a graph.
template <class T, class Arguments>
void launch(const Arguments& arguments, const Tensor& like) {
  const cuda::DeviceInfo& device = device_info<T>(like.get_device());
  const std::size_t bytes = cuda::workspace_size(arguments, device);
  const Tensor workspace =
      at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
  check_status(cuda::run(arguments, device, bytes == 0 ? nullptr : workspace.mutable_data_ptr(),
                         bytes, c10::cuda::getCurrentCUDAStream(like.get_device()).stream()));
}

template <class T>
cuda::PackedCoefficients packing(std::int64_t rest, std::int64_t heads, std::int64_t width) {
  return {cuda::PackedCoefficients::kVersion, cuda::Element<T>::dtype, rest, heads, width};
}

template <class T>
cuda::PackedCoefficients check_packed(const Tensor& like, const Tensor& packed, std::int64_t kv_dim,
                                      std::int64_t heads, std::int64_t width, std::int64_t basis) {
  check_width(heads, width, kv_dim);
  const auto layout = packing<T>(kv_dim - width, heads, width);
  check_side(like, packed, kv_dim, heads, width, basis, layout.size());
  return layout;
}

template <class T>
bda::TensorView<const T, 2> rows(const Tensor& x) {
  return {data<T>(x), {x.size(0), x.size(1)}, {x.stride(0), 1}};
}

Tensor pack(const Tensor& coefficients, std::int64_t heads) {
  const c10::cuda::CUDAGuard guard(coefficients.device());
  check_rows("coefficients", coefficients, 2);
  TORCH_CHECK(heads > 0 && coefficients.size(1) % heads == 0, "coefficients: expected columns for ",
              heads, " heads, got ", coefficients.size(1));
  return dispatch(coefficients, [&](auto type) {
    using T = decltype(type);
    const auto layout = packing<T>(coefficients.size(0), heads, coefficients.size(1) / heads);
    const Tensor packed = at::empty({layout.size()}, coefficients.options());
    check_status(cuda::pack_coefficients_on_device<T>(
        data<T>(coefficients), coefficients.stride(0), layout, mutable_data<T>(packed),
        c10::cuda::getCurrentCUDAStream(coefficients.get_device()).stream()));
    return packed;
  });
}

Tensor project(const Tensor& latent, const Tensor& packed, std::int64_t basis, std::int64_t heads,
               std::int64_t width, const std::optional<Tensor>& bias) {
  const c10::cuda::CUDAGuard guard(latent.device());
  check_rows("latent", latent, 2);
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->numel() == heads * width &&
                        bias->scalar_type() == latent.scalar_type()),
              "bias: expected ", heads * width, " contiguous values of the latent's type");
  return dispatch(latent, [&](auto type) {
    using T = decltype(type);
    const Tensor out = at::empty({latent.size(0), heads, width}, latent.options());
    cuda::ProjectionArguments<T> a;
    a.x = rows<T>(latent);
    a.coefficients = data<T>(packed);
    a.packing = check_packed<T>(latent, packed, latent.size(1), heads, width, basis);
    a.basis_begin = basis;
    if (bias) a.bias = data<T>(*bias);
    a.out = {mutable_data<T>(out), {latent.size(0), heads, width}};
    launch<T>(a, latent);
    return out;
  });
}

std::tuple<Tensor, Tensor> attention_ready(const Tensor& latent, const Tensor& rope,
                                           const Tensor& k_packed, const Tensor& v_packed,
                                           std::int64_t k_basis, std::int64_t v_basis,
                                           std::int64_t heads, std::int64_t qk_dim,
                                           std::int64_t v_dim) {
  const c10::cuda::CUDAGuard guard(latent.device());
  check_rows("latent", latent, 2);
  check_rows("rope", rope, 2);
  TORCH_CHECK(rope.scalar_type() == latent.scalar_type() && rope.device() == latent.device() &&
                  rope.size(0) == latent.size(0),
              "rope: expected the type, device and tokens of latent");
  return dispatch(latent, [&](auto type) {
    using T = decltype(type);
    const std::int64_t tokens = latent.size(0), key_width = qk_dim + rope.size(1);
    const Tensor k = at::empty({tokens, heads, key_width}, latent.options());
    const Tensor v = at::empty({tokens, heads, v_dim}, latent.options());
    const auto side = [&](const Tensor& packed, std::int64_t width, std::int64_t basis,
                          const Tensor& out, std::int64_t row) {
      cuda::KvSide<T> s;
      s.coefficients = data<T>(packed);
      s.packing = check_packed<T>(latent, packed, latent.size(1), heads, width, basis);
      s.basis_begin = basis;
      s.out = cuda::KvOutput::token_major(mutable_data<T>(out), heads, row);
      return s;
    };
    cuda::AttentionReadyArguments<T> a;
    a.latent = rows<T>(latent);
    a.rope = rows<T>(rope);
    a.key = side(k_packed, qk_dim, k_basis, k, key_width);
    a.value = side(v_packed, v_dim, v_basis, v, v_dim);
    launch<T>(a, latent);
    return std::tuple(k, v);
  });
}

template <class T>
Tensor absorbed(cuda::AbsorbedProduct product, const Tensor& x, const Tensor& packed,
                std::int64_t basis, std::int64_t width, std::int64_t kv_dim, std::int64_t out_dim) {
  const Tensor out = at::empty({x.size(0), x.size(1), out_dim}, x.options());
  cuda::AbsorbedArguments<T> a;
  a.product = product;
  a.x = {data<T>(x), {x.size(0), x.size(1), x.size(2)}, {x.stride(0), x.stride(1), 1}};
  a.coefficients = data<T>(packed);
  a.packing = check_packed<T>(x, packed, kv_dim, x.size(1), width, basis);
  a.basis_begin = basis;
  a.out = {mutable_data<T>(out), {x.size(0), x.size(1), out_dim}};
  launch<T>(a, x);
  return out;
}

Tensor absorbed_query(const Tensor& q, const Tensor& packed, std::int64_t basis,
                      std::int64_t kv_dim) {
  const c10::cuda::CUDAGuard guard(q.device());
  check_rows("q", q, 3);
  return dispatch(q, [&](auto type) {
    return absorbed<decltype(type)>(cuda::AbsorbedProduct::kQuery, q, packed, basis, q.size(2),
                                    kv_dim, kv_dim);
  });
}

Tensor absorbed_output(const Tensor& x, const Tensor& packed, std::int64_t basis,
                       std::int64_t width) {
  const c10::cuda::CUDAGuard guard(x.device());
  check_rows("x", x, 3);
  return dispatch(x, [&](auto type) {
    return absorbed<decltype(type)>(cuda::AbsorbedProduct::kOutput, x, packed, basis, width,
                                    x.size(2), width);
  });
}

}  // namespace
}  // namespace bda_torch

TORCH_LIBRARY_IMPL(bda, CUDA, m) {
  m.impl("pack", bda_torch::pack);
  m.impl("project", bda_torch::project);
  m.impl("attention_ready", bda_torch::attention_ready);
  m.impl("absorbed_query", bda_torch::absorbed_query);
  m.impl("absorbed_output", bda_torch::absorbed_output);
}
