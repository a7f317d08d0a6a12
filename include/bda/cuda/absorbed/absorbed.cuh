#pragma once

#include <cstdint>

#include "bda/cuda/absorbed/absorbed.hpp"
#include "bda/cuda/absorbed/kernel_simt.cuh"
#include "bda/cuda/absorbed/kernel_sm90.cuh"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/projection/projection.cuh"

/// The bodies of absorbed.hpp.
namespace bda::inline v0::cuda {
namespace detail {

template <class T, AbsorbedProduct kProduct, int kTokens>
Status run_absorbed_sm90(const AbsorbedArguments<T>& a, const AbsorbedConfig& config,
                         cudaStream_t stream) {
  const auto extent = [](std::int64_t n) { return static_cast<cuuint64_t>(n); };
  const std::int64_t tokens = a.x.extent(0), heads = a.packing.heads;
  AbsorbedSm90Params p{};
  {
    // A stride that nothing steps over may be anything in the view, but not for the copy engine.
    const std::int64_t head_stride = heads > 1 ? a.out.stride(1) : 64;
    const std::int64_t token_stride = tokens > 1 ? a.out.stride(0) : 64;
    const cuuint64_t extents[4] = {64, extent(tokens), extent(a.out.extent(2) / 64), extent(heads)};
    const cuuint64_t strides[3] = {extent(token_stride) * sizeof(T), 64 * sizeof(T),
                                   extent(head_stride) * sizeof(T)};
    const cuuint32_t box[4] = {64, 16, 1, 1};
    if (Status s =
            encode<T, 4>(a.out.data, extents, strides, box, CU_TENSOR_MAP_L2_PROMOTION_NONE, p.out);
        !s.ok())
      return s;
  }
  p.x = a.x.data;
  p.token_stride = a.x.stride(0);
  p.head_stride = a.x.stride(1);
  p.tokens = static_cast<int>(tokens);
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.width_blocks = static_cast<int>(a.packing.width / 64);
  p.rest_blocks = static_cast<int>(a.packing.rest / 64);
  p.basis_block = static_cast<int>(a.basis_begin / 64);
  const AbsorbedShape shape = a.shape();
  p.ahead = absorbed_ahead(shape);
  const LaunchShape launch_shape{
      dim3(to_grid(ceil_div(tokens, kTokens)), to_grid(absorbed_blocks(shape) / config.tile_blocks),
           to_grid(heads)),
      128 * (config.tile_blocks + 1),
      static_cast<std::size_t>(absorbed_shared_bytes(shape, kTokens, config.tile_blocks))};
  return launch("absorbed sm90 launch", absorbed_sm90_kernel<T, kProduct, kTokens>, launch_shape,
                a.dependent_launch, stream, p);
}

template <class T, AbsorbedProduct kProduct>
Status run_absorbed(const AbsorbedArguments<T>& a, const AbsorbedConfig& config,
                    cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (config.kernel == AbsorbedKernel::kSm90) {
      if (config.tile_tokens == 16) return run_absorbed_sm90<T, kProduct, 16>(a, config, stream);
      if (config.tile_tokens == 32) return run_absorbed_sm90<T, kProduct, 32>(a, config, stream);
      return run_absorbed_sm90<T, kProduct, 64>(a, config, stream);
    }
  AbsorbedSimtParams<T> p{};
  p.x = a.x.data;
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.out = a.out.data;
  p.x_token_stride = a.x.stride(0);
  p.x_head_stride = a.x.stride(1);
  p.out_token_stride = a.out.stride(0);
  p.out_head_stride = a.out.stride(1);
  p.packing = a.packing;
  p.tokens = static_cast<int>(a.x.extent(0));
  p.basis_begin = static_cast<int>(a.basis_begin);
  const dim3 grid(to_grid(ceil_div(a.out.extent(2), 64)), to_grid(a.packing.heads),
                  to_grid(ceil_div(p.tokens, 8)));
  // An ordinary launch: the kernel has no use for an early start.
  return launch("absorbed simt launch", absorbed_simt_kernel<T, kProduct>, {grid, 64, 0}, false,
                stream, p);
}

}  // namespace detail

template <class T>
Status run(const AbsorbedArguments<T>& args, const DeviceInfo& device, void* workspace,
           std::size_t workspace_bytes, cudaStream_t stream) {
  if (Status s = check_arguments(args); !s.ok()) return s;
  if (args.x.extent(0) == 0) return {};
  if (Status s = detail::check_workspace(workspace_size(args, device), workspace, workspace_bytes);
      !s.ok())
    return s;
  const AbsorbedConfig config = config_for(args, device);
  if (Status s = validate(config, args.shape(), device); !s.ok()) return s;
  if (args.product == AbsorbedProduct::kQuery)
    return detail::run_absorbed<T, AbsorbedProduct::kQuery>(args, config, stream);
  return detail::run_absorbed<T, AbsorbedProduct::kOutput>(args, config, stream);
}

}  // namespace bda::inline v0::cuda

/// Puts the entry points for element type T, and their kernels, into this translation unit.
#define BDA_INSTANTIATE_CUDA_ABSORBED(T)                                                       \
  template ::bda::Status bda::cuda::run<T>(const ::bda::cuda::AbsorbedArguments<T>&,           \
                                           const ::bda::cuda::DeviceInfo&, void*, std::size_t, \
                                           cudaStream_t)
