#pragma once

#include <cstdint>

#include "bda/cuda/attention_ready/attention_ready.hpp"
#include "bda/cuda/attention_ready/kernel_place.cuh"
#include "bda/cuda/attention_ready/kernel_sm90_resident.cuh"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/projection/projection.cuh"

/// The bodies of attention_ready.hpp.
namespace bda::inline v0::cuda {
namespace detail {

inline KvDestination destination(const KvOutput& out) {
  KvDestination to{};
  to.data = out.data;
  to.token_stride = out.token_stride;
  to.head_stride = out.head_stride;
  to.page_stride = out.page_stride;
  to.slots = out.slots;
  to.page_size = static_cast<int>(out.page_size);
  to.scale = out.scale;
  to.scale_stride = out.scale_per_head ? 1 : 0;
  return to;
}

/// `blocks` x 64 channels of every head's rows, from `channel` on, as [heads, blocks, tokens, 64];
/// where `columns` is less than 64, what is beyond is not written.
template <class T>
Status encode_destination_map(const KvOutput& out, std::int64_t tokens, std::int64_t heads,
                              std::int64_t channel, int blocks, std::int64_t columns,
                              CUtensorMap& map) {
  // A stride that nothing steps over may be anything in the view, but not for the copy engine.
  const std::int64_t token_stride = tokens > 1 ? out.token_stride : 64;
  const std::int64_t head_stride = heads > 1 ? out.head_stride : 64;
  const cuuint64_t extents[4] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(tokens),
                                 static_cast<cuuint64_t>(blocks), static_cast<cuuint64_t>(heads)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(token_stride) * sizeof(T), 64 * sizeof(T),
                                 static_cast<cuuint64_t>(head_stride) * sizeof(T)};
  const cuuint32_t box[4] = {64, 16, static_cast<cuuint32_t>(blocks), 1};
  return encode<T, 4>(static_cast<T*>(out.data) + channel, extents, strides, box,
                      CU_TENSOR_MAP_L2_PROMOTION_NONE, map);
}

/// Deals `units` out to the CTAs of sm90_resident, and returns how many those are: ranges of one
/// length. Where that would be a number of whole row blocks, all CTAs would want their next rows of
/// x at the same moment: then every multiprocessor gets a range, and these differ by one unit.
inline std::int64_t deal_out(std::int64_t units, const DeviceInfo& device, Sm90ReadyParams& p) {
  const std::int64_t ctas = std::max(device.multiprocessors, 1), length = ceil_div(units, ctas);
  const std::int64_t heads = p.block_heads.value();
  const bool even = length % heads == 0 && units / ctas >= heads;
  p.units = static_cast<int>(units);
  p.units_per_cta = Divisor(static_cast<int>(even ? units / ctas : length));
  p.longer_ctas = static_cast<int>(even ? units % ctas : 0);
  return even ? ctas : ceil_div(units, length);
}

template <class T>
Status run_ready_resident(const AttentionReadyArguments<T>& a, KvStore store,
                          const DeviceInfo& device, cudaStream_t stream) {
  const std::int64_t tokens = a.latent.extent(0), rope_width = a.rope_width();
  const std::int64_t heads = a.shape().heads;
  const bool rows = store == KvStore::kRows;
  Sm90ReadyParams p{};
  if (Status s = encode_rows_map<T>(a.latent, 128, p.x); !s.ok()) return s;
  if (rope_width > 0) {
    if (Status s = encode_rows_map<T>(a.rope, 128, p.rope); !s.ok()) return s;
    if (!rows)
      if (Status s = encode_destination_map<T>(a.key->out, tokens, heads, a.key->packing.width, 1,
                                               rope_width, p.rope_out);
          !s.ok())
        return s;
  }
  int sides = 0;
  bool e4m3 = false;
  for (const auto* from : {&a.key, &a.value}) {
    if (!*from) continue;
    Sm90ReadySide& side = p.sides[sides++];
    side.coefficients = (*from)->coefficients;
    side.basis_begin = static_cast<int>((*from)->basis_begin);
    side.rows = destination((*from)->out);
    e4m3 = (*from)->out.element == KvElement::kE4m3;
    if (!rows)
      if (Status s = encode_destination_map<T>((*from)->out, tokens, heads, 0, 2, 64, side.out);
          !s.ok())
        return s;
  }
  const bool shared_basis = sides == 2 && p.sides[0].basis_begin == p.sides[1].basis_begin;
  const std::int64_t row_blocks = ceil_div(tokens, 128), units = sides * row_blocks * heads;
  if (units > 0x7fffffff / 2)
    return Status::invalid("sides * tokens / 128 * heads", "at most", 0x7fffffff / 2, units);
  p.rope_width = static_cast<int>(rope_width);
  p.tokens = static_cast<int>(tokens);
  p.last_row = last_row_of(p.tokens);
  p.heads = static_cast<int>(heads);
  p.block_heads = Divisor(shared_basis ? 2 * p.heads : p.heads);
  p.row_blocks = static_cast<int>(row_blocks);
  const std::int64_t ctas = deal_out(units, device, p);
  const LaunchShape shape{dim3(to_grid(ctas)), sm90_ready::kThreads, sizeof(sm90_ready::Shared)};
  const auto kernel = !rows  ? sm90_ready_kernel<T, ReadyOutput::kTensor>
                      : e4m3 ? sm90_ready_kernel<T, ReadyOutput::kRowsE4m3>
                             : sm90_ready_kernel<T, ReadyOutput::kRows>;
  return launch("sm90_resident launch", kernel, shape, a.dependent_launch, stream, p);
}

template <class T>
Status run_projection_then_place(const AttentionReadyArguments<T>& a, const DeviceInfo& device,
                                 void* workspace, cudaStream_t stream) {
  bool dependent = a.dependent_launch;
  for (const auto* from : {&a.key, &a.value}) {
    if (!*from) continue;
    const KvSide<T>& side = **from;
    const std::int64_t tokens = a.latent.extent(0), heads = side.packing.heads;
    const bool direct = writes_directly(side.out);
    ProjectionArguments<T> projection;
    projection.x = a.latent;
    projection.coefficients = side.coefficients;
    projection.packing = side.packing;
    projection.basis_begin = side.basis_begin;
    projection.bias = side.bias;
    projection.out = {static_cast<T*>(workspace), {tokens, heads, side.packing.width}};
    if (direct)
      projection.out = {static_cast<T*>(side.out.data),
                        {tokens, heads, side.packing.width},
                        {side.out.token_stride, side.out.head_stride, 1}};
    projection.dependent_launch = dependent;
    if (Status s = run(projection, device, nullptr, 0, stream); !s.ok()) return s;
    dependent = false;  // what follows uses what the kernel before wrote

    PlaceParams<T> p{};
    if (!direct) p.rows = projection.out.data;
    if (from == &a.key && a.rope_width() > 0) {
      p.rope = a.rope.data;
      p.rope_stride = a.rope.stride(0);
      p.rope_width = static_cast<int>(a.rope_width());
    }
    if (p.rows == nullptr && p.rope == nullptr) continue;
    p.heads = static_cast<int>(heads);
    p.width = static_cast<int>(side.packing.width);
    p.to = destination(side.out);
    const auto kernel =
        side.out.element == KvElement::kE4m3 ? place_kernel<T, true> : place_kernel<T, false>;
    if (Status s =
            launch("place launch", kernel, {dim3(to_grid(tokens)), 256, 0}, false, stream, p);
        !s.ok())
      return s;
  }
  return {};
}

}  // namespace detail

template <class T>
Status run(const AttentionReadyArguments<T>& args, const DeviceInfo& device, void* workspace,
           std::size_t workspace_bytes, cudaStream_t stream) {
  if (Status s = check_arguments(args); !s.ok()) return s;
  if (args.latent.extent(0) == 0) return {};
  const std::size_t needed = workspace_size(args, device);
  if (Status s = detail::check_workspace(needed, workspace, workspace_bytes); !s.ok()) return s;
  if (needed > 0 && detail::misalignment(workspace, 256))
    return Status::invalid("workspace modulo 256", "equal to", 0,
                           detail::misalignment(workspace, 256));
  const AttentionReadyConfig config = config_for(args, device);
  if (Status s = validate(config, args.shape(), device); !s.ok()) return s;
  if constexpr (sizeof(T) == 2)
    if (config.kernel == AttentionReadyKernel::kSm90Resident)
      return detail::run_ready_resident(args, config.store, device, stream);
  return detail::run_projection_then_place(args, device, workspace, stream);
}

}  // namespace bda::inline v0::cuda

/// Puts the entry points for element type T, and their kernels, into this translation unit.
#define BDA_INSTANTIATE_CUDA_ATTENTION_READY(T)                                                \
  template ::bda::Status bda::cuda::run<T>(const ::bda::cuda::AttentionReadyArguments<T>&,     \
                                           const ::bda::cuda::DeviceInfo&, void*, std::size_t, \
                                           cudaStream_t)
