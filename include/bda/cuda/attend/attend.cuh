#pragma once

#include <cstdint>

#include "bda/cuda/attend/attend.hpp"
#include "bda/cuda/attend/kernel_rows.cuh"
#include "bda/cuda/attend/kernel_sm90_latent.cuh"
#include "bda/cuda/attend/kernel_sm90_tile.cuh"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/projection/projection.cuh"

/// The bodies of attend.hpp.
namespace bda::inline v0::cuda {
namespace detail {

/// [batch, tokens, heads, width] in boxes of `tokens_in_box` x `heads_in_box` x 64 channels.
template <class U, class T = std::remove_const_t<U>>
Status encode_heads_map(const TensorView<U, 4>& view, int tokens_in_box, int heads_in_box,
                        CUtensorMap& map) {
  const cuuint64_t extents[4] = {
      static_cast<cuuint64_t>(view.extent(3)), static_cast<cuuint64_t>(view.extent(2)),
      static_cast<cuuint64_t>(view.extent(1)), static_cast<cuuint64_t>(view.extent(0))};
  // A stride that nothing steps over may be anything in the view, but not for the copy engine.
  const auto stride = [&](int i) {
    return static_cast<cuuint64_t>(view.extent(i) > 1 ? view.stride(i) : 8) * sizeof(T);
  };
  const cuuint64_t strides[3] = {stride(2), stride(1), stride(0)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(heads_in_box),
                             static_cast<cuuint32_t>(tokens_in_box), 1};
  return encode<T, 4>(view.data, extents, strides, box, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, map);
}

template <class T, int kQk, int kV>
Status run_tile(const AttendArguments<T>& a, cudaStream_t stream) {
  using Shared = sm90_tile::Shared<kQk, kV>;
  const AttendShape s = a.shape();
  Sm90TileParams p{};
  if (Status e = encode_heads_map(a.q, 128, 1, p.q); !e.ok()) return e;
  if (s.keys > 0) {
    if (Status e = encode_heads_map(a.k, Shared::kKeys, 1, p.k); !e.ok()) return e;
    if (Status e = encode_heads_map(a.v, Shared::kKeys, 1, p.v); !e.ok()) return e;
  }
  if (Status e = encode_heads_map(a.out, 16, 1, p.out); !e.ok()) return e;
  p.key_lengths = a.key_lengths;
  p.sinks = a.sinks;
  p.queries = static_cast<int>(s.queries);
  p.keys = static_cast<int>(s.keys);
  p.group = static_cast<int>(s.group());
  p.scale = a.scale;
  p.softcap = a.softcap;
  p.causal = a.causal;
  p.window = static_cast<int>(a.window);
  const std::int64_t tiles = ceil_div(s.queries, 128);
  if (tiles > 65535) return Status::invalid("tiles of 128 queries", "at most", 65535, tiles);
  const LaunchShape shape{dim3(to_grid(s.heads), to_grid(tiles), to_grid(s.batch)),
                          sm90_tile::kThreads, sizeof(Shared)};
  return launch("sm90_tile launch", sm90_tile_kernel<T, kQk, kV>, shape, a.dependent_launch, stream,
                p);
}

/// What the kernels that split the keys have in common.
template <class T>
RowsParams<T> rows_params(const AttendArguments<T>& a, const AttendConfig& config, float* partial) {
  const AttendShape s = a.shape();
  RowsParams<T> p{};
  p.q = a.q.data;
  p.k = a.k.data;
  p.v = a.v.data;
  p.out = a.out.data;
  for (int i = 0; i < 3; ++i) {
    p.q_strides[i] = a.q.stride(i);
    p.k_strides[i] = a.k.stride(i);
    p.v_strides[i] = a.v.stride(i);
    p.out_strides[i] = a.out.stride(i);
  }
  p.key_lengths = a.key_lengths;
  p.sinks = a.sinks;
  p.partial = config.splits > 1 ? partial : nullptr;
  p.queries = static_cast<int>(s.queries);
  p.keys = static_cast<int>(s.keys);
  p.heads = static_cast<int>(s.heads);
  p.group = static_cast<int>(s.group());
  p.qk_width = static_cast<int>(s.qk_width);
  p.v_width = static_cast<int>(s.v_width);
  p.splits = config.splits;
  p.keys_per_split =
      static_cast<int>(ceil_div(ceil_div(s.keys, kAttendTile), config.splits) * kAttendTile);
  p.scale = a.scale;
  p.softcap = a.softcap;
  p.causal = a.causal;
  p.window = static_cast<int>(a.window);
  return p;
}

/// The parts of each row together, where there are parts.
template <class T>
Status combine_rows(const RowsParams<T>& p, std::int64_t batch, cudaStream_t stream) {
  if (p.partial == nullptr) return {};
  const std::int64_t rows = std::int64_t{p.queries} * p.heads;
  return launch("combine_rows launch", combine_rows_kernel<T>,
                {dim3(to_grid(rows), to_grid(batch)), 64, 0}, true, stream, p);
}

template <class T, int kQk, int kV>
Status run_rows(const AttendArguments<T>& a, const AttendConfig& config, float* partial,
                cudaStream_t stream) {
  const AttendShape s = a.shape();
  const RowsParams<T> p = rows_params(a, config, partial);
  const std::int64_t row_blocks = ceil_div(s.rows(), attend_rows(s)) * s.kv_heads;
  if (row_blocks > 65535) return Status::invalid("blocks of 4 rows", "at most", 65535, row_blocks);
  if (s.queries * s.heads > 0x7fffffff)
    return Status::invalid("queries x heads", "at most", 0x7fffffff, s.queries * s.heads);
  const LaunchShape shape{dim3(to_grid(p.splits), to_grid(row_blocks), to_grid(s.batch)),
                          rows_attention::kThreads, 0};
  if (Status e =
          launch("rows launch",
                 attend_rows(s) == 1 ? rows_kernel<T, kQk, kV, 1> : rows_kernel<T, kQk, kV, 4>,
                 shape, a.dependent_launch, stream, p);
      !e.ok())
    return e;
  return combine_rows(p, s.batch, stream);
}

template <class T, int kV>
Status run_latent(const AttendArguments<T>& a, const AttendConfig& config, float* partial,
                  cudaStream_t stream) {
  using Shared = sm90_latent::Shared<kV>;
  const AttendShape s = a.shape();
  Sm90LatentParams<T> p{};
  p.row = rows_params(a, config, partial);
  if (Status e = encode_heads_map(a.q, 1, sm90_latent::kTile, p.q); !e.ok()) return e;
  if (s.keys > 0)
    if (Status e = encode_heads_map(a.k, sm90_latent::kTile, 1, p.k); !e.ok()) return e;
  const std::int64_t tiles = ceil_div(s.group(), sm90_latent::kTile) * s.kv_heads * s.queries;
  if (tiles > 65535) return Status::invalid("queries x tiles of 64 heads", "at most", 65535, tiles);
  const LaunchShape shape{dim3(to_grid(config.splits), to_grid(tiles), to_grid(s.batch)),
                          sm90_latent::kThreads, sizeof(Shared)};
  if (Status e = launch("sm90_latent launch", sm90_latent_kernel<T, kV>, shape, a.dependent_launch,
                        stream, p);
      !e.ok())
    return e;
  return combine_rows(p.row, s.batch, stream);
}

template <class T, int kQk, int kV>
Status run_attend(const AttendArguments<T>& a, const AttendConfig& config, void* workspace,
                  cudaStream_t stream) {
  if (config.kernel == AttendKernel::kSm90Tile) return run_tile<T, kQk, kV>(a, stream);
  return run_rows<T, kQk, kV>(a, config, static_cast<float*>(workspace), stream);
}

}  // namespace detail

template <class T>
Status run(const AttendArguments<T>& args, const DeviceInfo& device, void* workspace,
           std::size_t workspace_bytes, cudaStream_t stream) {
  if (Status s = check_arguments(args); !s.ok()) return s;
  const AttendShape shape = args.shape();
  if (shape.batch == 0 || shape.queries == 0) return {};
  const AttendConfig config = config_for(args, device);
  if (Status s = validate(config, shape, device); !s.ok()) return s;
  if (Status s = detail::check_workspace(workspace_size(args, device), workspace, workspace_bytes);
      !s.ok())
    return s;
  if (config.kernel == AttendKernel::kSm90Latent) {
    float* const partial = static_cast<float*>(workspace);
    return shape.v_width <= 256 && shape.qk_width <= 320
               ? detail::run_latent<T, 4>(args, config, partial, stream)
               : detail::run_latent<T, 8>(args, config, partial, stream);
  }
  switch ((shape.qk_width + 63) / 64 * 4 + (shape.v_width + 63) / 64) {
    case 4 + 1:
      return detail::run_attend<T, 1, 1>(args, config, workspace, stream);
    case 8 + 1:
      return detail::run_attend<T, 2, 1>(args, config, workspace, stream);
    case 8 + 2:
      return detail::run_attend<T, 2, 2>(args, config, workspace, stream);
    case 12 + 1:
      return detail::run_attend<T, 3, 1>(args, config, workspace, stream);
    case 12 + 2:
      return detail::run_attend<T, 3, 2>(args, config, workspace, stream);
    default:
      return detail::run_attend<T, 3, 3>(args, config, workspace, stream);
  }
}

}  // namespace bda::inline v0::cuda

/// Puts the entry point for element type T, and its kernels, into this translation unit.
#define BDA_INSTANTIATE_CUDA_ATTEND(T)                                                         \
  template ::bda::Status bda::cuda::run<T>(const ::bda::cuda::AttendArguments<T>&,             \
                                           const ::bda::cuda::DeviceInfo&, void*, std::size_t, \
                                           cudaStream_t)
