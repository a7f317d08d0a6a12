#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "bda/core/error.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/pipeline/divisor.hpp"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/projection/kernel_simt.cuh"
#include "bda/cuda/projection/kernel_sm80.cuh"
#include "bda/cuda/projection/kernel_sm80_resident.cuh"
#include "bda/cuda/projection/kernel_sm90_halves.cuh"
#include "bda/cuda/projection/kernel_sm90_resident.cuh"
#include "bda/cuda/projection/kernel_sm90_short.cuh"
#include "bda/cuda/projection/kernel_sm90_small.cuh"
#include "bda/cuda/projection/kernel_sm90_stream.cuh"
#include "bda/cuda/projection/kernel_sm90_turns.cuh"
#include "bda/cuda/projection/kernel_sm90_wave.cuh"
#include "bda/cuda/projection/projection.hpp"
#include "bda/cuda/projection/tensor_maps.hpp"

/// The bodies of projection.hpp: arguments to kernel parameters to launch.
namespace bda::inline v0::cuda {
namespace detail {

inline Status device_status(const char* call, cudaError_t error) {
  return error == cudaSuccess ? Status{}
                              : Status::error(Status::Code::kDeviceError, call,
                                              "success (as cudaError_t)", cudaSuccess, error);
}

struct LaunchShape {
  dim3 grid;
  int threads;
  std::size_t shared_bytes;
  int cluster = 1;
};

template <class... Params>
Status launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape, bool dependent,
              cudaStream_t stream, const Params&... params) {
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) {
      (void)cudaGetLastError();  // reported here: the caller's next check should not find it
      return device_status(name, error);
    }
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params...);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return device_status(name, error);
}

inline unsigned to_grid(std::int64_t n) { return static_cast<unsigned>(n); }

inline dim3 grid_of(const TileOrder& order) { return dim3(order.grid_x(), order.grid_y()); }

/// Where the last row block of `rows` tokens begins: it overlaps the one before (and writes the
/// same there), because the copy engine is slow over boxes that reach beyond the last token.
inline int last_row_of(int tokens, int rows = 128) { return std::max(tokens - rows, 0); }

template <class T>
Status run_resident(const ProjectionArguments<T>& a, const DeviceInfo& device,
                    cudaStream_t stream) {
  Sm90ResidentParams p{};
  if (Status s = encode_rows_map<T>(a.x, 128, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 2, p.out); !s.ok()) return s;
  const std::int64_t heads = a.packing.heads, row_blocks = ceil_div(a.x.extent(0), 128);
  const std::int64_t units = row_blocks * heads;
  if (units > 0x7fffffff / 2)
    return Status::invalid("tokens / 128 * heads", "at most", 0x7fffffff / 2, units);
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.basis_begin = static_cast<int>(a.basis_begin);
  p.tokens = static_cast<int>(a.x.extent(0));
  p.last_row = last_row_of(p.tokens);
  p.heads = Divisor(static_cast<int>(heads));
  const std::int64_t most = std::max(device.multiprocessors, 1);
  const std::int64_t ranges = aligned_ranges(row_blocks, heads, most);
  // A row of ranges for each row block, or one row of all.
  const bool aligned = ranges > 0;
  const std::int64_t row_ranges = aligned ? ranges : std::min(units, most);
  p.ranges = EvenRanges(aligned ? heads : units, row_ranges);
  p.order = TileOrder(aligned ? row_blocks : 1, row_ranges);
  // Where all CTAs read the same parts of C at the same time, nobody reads them again.
  p.policy = aligned ? ptx::kEvictFirst : ptx::kEvictNormal;
  const LaunchShape shape{grid_of(p.order), sm90_resident::kThreads, sizeof(sm90_resident::Shared)};
  const auto kernel =
      a.bias != nullptr ? sm90_resident_kernel<T, true> : sm90_resident_kernel<T, false>;
  return launch("sm90_resident launch", kernel, shape, a.dependent_launch, stream, p);
}

template <class T>
Status run_short(const ProjectionArguments<T>& a, const DeviceInfo& device, cudaStream_t stream) {
  Sm90ShortParams p{};
  const ShortCut cut = short_cut(a.shape(), device);
  p.rows = cut.rows;
  if (Status s = encode_rows_map<T>(a.x, p.rows, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 1, p.out); !s.ok()) return s;
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.tokens = static_cast<int>(a.x.extent(0));
  p.last_row = last_row_of(p.tokens, p.rows);
  p.basis_begin = static_cast<int>(a.basis_begin);
  p.ranges = EvenRanges(2 * a.packing.heads, cut.ranges);
  p.order = TileOrder(cut.row_blocks, cut.ranges);
  const LaunchShape shape{grid_of(p.order), sm90_short::kThreads, sizeof(sm90_short::Shared)};
  const auto kernel = a.bias != nullptr ? sm90_short_kernel<T, true> : sm90_short_kernel<T, false>;
  return launch("sm90_short launch", kernel, shape, a.dependent_launch, stream, p);
}

/// What the kernels of sm_90a that stream packed C have in common.
template <class T, class Params>
void set_blocks(const ProjectionArguments<T>& a, Params& p) {
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.width_blocks = static_cast<int>(a.packing.width / 64);
  p.chunks = static_cast<int>(a.packing.channel_blocks());
  p.column_blocks = static_cast<int>(a.packing.column_blocks());
  p.basis_begin = static_cast<int>(a.basis_begin);
}

/// The persistent kernels with tiles of 128 tokens x `kColumns` columns.
template <class T, int kColumns>
Status run_stream(const char* name, void (*kernel)(Sm90StreamParams), std::size_t shared_bytes,
                  const ProjectionArguments<T>& a, const DeviceInfo& device, cudaStream_t stream) {
  Sm90StreamParams p{};
  set_blocks(a, p);
  if (Status s = encode_rows_map<T>(a.x, 128, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 1, p.out); !s.ok()) return s;
  p.tokens = static_cast<int>(a.x.extent(0));
  p.last_row = last_row_of(p.tokens);
  p.column_tiles = Divisor(static_cast<int>(ceil_div(p.column_blocks, kColumns / 64)));
  const std::int64_t tiles = ceil_div(a.x.extent(0), 128) * p.column_tiles.value();
  if (tiles > 0x7fffffff / 2)
    return Status::invalid("tiles of out", "at most", 0x7fffffff / 2, tiles);
  p.tiles = static_cast<int>(tiles);
  const LaunchShape shape{dim3(to_grid(std::min<std::int64_t>(tiles, device.multiprocessors))),
                          sm90_stream::kThreads, shared_bytes};
  return launch(name, kernel, shape, a.dependent_launch, stream, p);
}

template <class T, int kColumns>
Status run_stream(const ProjectionArguments<T>& a, const DeviceInfo& device, cudaStream_t stream) {
  return run_stream<T, kColumns>("sm90_stream launch", sm90_stream_kernel<T, kColumns>,
                                 sizeof(sm90_stream::Shared<kColumns>), a, device, stream);
}

template <class T>
Status run_halves(const ProjectionArguments<T>& a, const DeviceInfo& device, cudaStream_t stream) {
  const bool odd = a.packing.channel_blocks() % 2 == 1;
  const auto kernel =
      a.packing.width == 64
          ? (odd ? sm90_halves_kernel<T, 1, true> : sm90_halves_kernel<T, 1, false>)
          : (odd ? sm90_halves_kernel<T, 2, true> : sm90_halves_kernel<T, 2, false>);
  return run_stream<T, 256>("sm90_halves launch", kernel, sizeof(sm90_halves::Shared), a, device,
                            stream);
}

template <class T, int kTokens>
Status run_turns(const ProjectionArguments<T>& a, const DeviceInfo& device, cudaStream_t stream) {
  Sm90TurnsParams p{};
  set_blocks(a, p);
  p.tokens = static_cast<int>(a.x.extent(0));
  p.rows = turns_rows(a.shape(), kTokens, device);
  if (Status s = encode_rows_map<T>(a.x, p.rows, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 1, p.out, p.rows); !s.ok()) return s;
  const std::int64_t columns = ceil_div(p.column_blocks, 2);
  const std::int64_t rows = ceil_div(p.tokens, p.rows * (kTokens / 128));
  p.order = TileOrder(rows, columns);
  using Layout = sm90_turns::Shared<kTokens>;
  // Measured: x must not queue behind much of C. A dependent launch has the time for more of it
  // where all CTAs want the same 128 rows, and in tiles of 256 where there are several rows.
  const bool early = a.dependent_launch && (kTokens == 128 ? rows == 1 : rows > 2);
  p.opening = early ? Layout::kAhead : kTokens == 128 ? 3 : 2;
  p.prefetch = rows == 1 && kTokens == 256 ? 1 : 0;
  const LaunchShape shape{grid_of(p.order), Layout::kThreads, sizeof(Layout)};
  return launch("sm90_turns launch", sm90_turns_kernel<T, kTokens>, shape, a.dependent_launch,
                stream, p);
}

template <class T, int kTokens, int kColumns>
Status run_wave(const ProjectionArguments<T>& a, cudaStream_t stream) {
  Sm90WaveParams p{};
  set_blocks(a, p);
  if (Status s = encode_rows_map<T>(a.x, kTokens / 2, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 1, p.out); !s.ok()) return s;
  p.tokens = static_cast<int>(a.x.extent(0));
  // Launched early, C has memory to itself until x may be asked for, and must not hold that up.
  p.ahead = a.dependent_launch ? 2 : 3;
  const std::int64_t columns = ceil_div(p.column_blocks, kColumns / 64);
  p.order = TileOrder(ceil_div(p.tokens, kTokens), columns);
  const LaunchShape shape{grid_of(p.order), sm90_wave::kThreads,
                          sizeof(sm90_wave::Shared<kTokens, kColumns>)};
  return launch("sm90_wave launch", sm90_wave_kernel<T, kTokens, kColumns>, shape,
                a.dependent_launch, stream, p);
}

template <class T, int kTokens, int kGroups, bool kSplit>
Status run_small(const ProjectionArguments<T>& a, const ProjectionConfig& config,
                 const DeviceInfo& device, cudaStream_t stream) {
  Sm90SmallParams p{};
  set_blocks(a, p);
  p.rows = small_rows(a.shape(), config);
  if (Status s = encode_rows_map<T>(a.x, p.rows, p.x); !s.ok()) return s;
  if (Status s = encode_out_map(a, 1, p.out, kSplit ? 16 : p.rows); !s.ok()) return s;
  p.splits = Divisor(config.splits);
  p.split_chunks = EvenRanges(p.chunks, config.splits);
  p.slots = small_slots(a.shape(), config, device);
  p.ahead = small_ahead(a.shape(), config, a.dependent_launch);
  p.policy = a.dependent_launch ? ptx::kEvictNormal : ptx::kEvictFirst;
  const std::int64_t columns = ceil_div(p.column_blocks, kGroups);
  const std::int64_t rows = ceil_div(a.x.extent(0), p.rows);
  p.order = TileOrder(rows, columns);
  const dim3 grid = kSmallIsOrdered<kTokens>
                        ? dim3(to_grid(config.splits), p.order.grid_x(), p.order.grid_y())
                        : dim3(to_grid(config.splits), to_grid(rows), to_grid(columns));
  const LaunchShape shape{grid, 128 * kGroups + 128,
                          static_cast<std::size_t>(small_shared_bytes(
                              p.slots, kTokens, config.tile_columns, config.splits)),
                          config.splits};
  return launch("sm90_small launch", sm90_small_kernel<T, kTokens, kGroups, kSplit>, shape,
                a.dependent_launch, stream, p);
}

template <class T, int kTokens>
Status run_small(const ProjectionArguments<T>& a, const ProjectionConfig& config,
                 const DeviceInfo& device, cudaStream_t stream) {
  if constexpr (kTokens > 128) {  // `validate` has no others
    return run_small<T, kTokens, 2, false>(a, config, device, stream);
  } else {
    const bool split = config.splits > 1;
    if (config.tile_columns == 128)
      return split ? run_small<T, kTokens, 2, true>(a, config, device, stream)
                   : run_small<T, kTokens, 2, false>(a, config, device, stream);
    return split ? run_small<T, kTokens, 1, true>(a, config, device, stream)
                 : run_small<T, kTokens, 1, false>(a, config, device, stream);
  }
}

/// What the kernels that address global memory themselves have in common.
template <class T, class Params>
void set_operands(const ProjectionArguments<T>& a, Params& p) {
  p.x = a.x.data;
  p.coefficients = a.coefficients;
  p.bias = a.bias;
  p.out = a.out.data;
  p.x_stride = a.x.stride(0);
  p.out_token_stride = a.out.stride(0);
  p.out_head_stride = a.out.stride(1);
  p.tokens = static_cast<int>(a.x.extent(0));
  p.width = decltype(p.width)(static_cast<int>(a.packing.width));
  p.rest = static_cast<int>(a.packing.rest);
  p.columns = static_cast<int>(a.packing.columns());
  p.basis_begin = static_cast<int>(a.basis_begin);
}

template <class T>
Status run_sm80(const ProjectionArguments<T>& a, const ProjectionConfig& config,
                const DeviceInfo& device, cudaStream_t stream) {
  Sm80Params<T> p{};
  set_operands(a, p);
  p.chunks = static_cast<int>(a.packing.channel_blocks());
  p.column_blocks = static_cast<int>(a.packing.column_blocks());
  p.row_tiles = static_cast<int>(ceil_div(p.tokens, 128));
  p.column_tiles = static_cast<int>(ceil_div(p.columns, 128));
  const std::int64_t tiles = std::int64_t{p.row_tiles} * p.column_tiles;
  if (tiles > 0x7fffffff / 2)
    return Status::invalid("tiles of out", "at most", 0x7fffffff / 2, tiles);
  p.tiles = static_cast<int>(tiles);
  if (config.kernel == ProjectionKernel::kSm80Resident) {
    const std::int64_t ctas = std::min<std::int64_t>(tiles, device.multiprocessors);
    const LaunchShape shape{dim3(to_grid(ctas)), sm80_resident::kThreads,
                            static_cast<std::size_t>(sm80_resident_shared_bytes(a.shape()))};
    return launch("sm80_resident launch", sm80_resident_kernel<T>, shape, a.dependent_launch,
                  stream, p);
  }
  // A kilobyte of every CTA's shared memory belongs to the system.
  const std::int64_t ctas =
      device.multiprocessors *
      std::clamp<std::int64_t>((device.shared_bytes + 1024) / (sizeof(sm80::Shared) + 1024), 1, 2);
  const LaunchShape shape{dim3(to_grid(std::min(tiles, ctas))), sm80::kThreads,
                          sizeof(sm80::Shared)};
  return launch("sm80 launch", sm80_kernel<T>, shape, a.dependent_launch, stream, p);
}

inline Status run_simt(const ProjectionArguments<float>& a, cudaStream_t stream) {
  SimtParams p{};
  set_operands(a, p);
  p.column_tiles = static_cast<int>(ceil_div(p.columns, 64));
  const std::int64_t tiles = ceil_div(p.tokens, 64) * p.column_tiles;
  if (tiles > 0x7fffffff) return Status::invalid("tiles of out", "at most", 0x7fffffff, tiles);
  // An ordinary launch: the kernel has no use for an early start.
  return launch("simt launch", simt_kernel<float>, {dim3(to_grid(tiles)), 256, 0}, false, stream,
                p);
}

template <class T>
__global__ void pack_kernel(const T* coefficients, std::int64_t row_stride,
                            PackedCoefficients layout, T* packed) {
  const std::int64_t rows = layout.channel_blocks() * 64, columns = layout.column_blocks() * 64;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * columns;
       i += stride) {
    const std::int64_t channel = i / columns, column = i % columns;
    const bool inside = channel < layout.rest && column < layout.columns();
    if (!inside && layout.dtype == DType::kF32) continue;
    packed[layout.offset(channel, column)] =
        inside ? coefficients[channel * row_stride + column] : T{};
  }
}

}  // namespace detail

template <class T>
DeviceInfo query_device() {
  const auto check = [](cudaError_t error) {
    if (error != cudaSuccess) throw Error("CUDA device", "a usable one", cudaGetErrorString(error));
  };
  int id = 0;
  check(cudaGetDevice(&id));
  DeviceInfo info;
  check(cudaDeviceGetAttribute(&info.major, cudaDevAttrComputeCapabilityMajor, id));
  check(cudaDeviceGetAttribute(&info.minor, cudaDevAttrComputeCapabilityMinor, id));
  check(cudaDeviceGetAttribute(&info.multiprocessors, cudaDevAttrMultiProcessorCount, id));
  check(cudaDeviceGetAttribute(&info.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id));
  if constexpr (sizeof(T) == 2) {
    // Code for another architecture than sm_90a carries a launch bound of one thread.
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, sm90_resident_kernel<T, false>));
    info.wgmma = info.major == 9 && info.minor == 0 &&
                 attributes.maxThreadsPerBlock >= sm90_resident::kThreads;
  }
  return info;
}

template <class T>
Status pack_coefficients_on_device(const T* coefficients, std::int64_t row_stride,
                                   const PackedCoefficients& layout, T* packed,
                                   cudaStream_t stream) {
  if (layout.version != PackedCoefficients::kVersion)
    return Status::invalid("layout.version", "the version this library packs",
                           PackedCoefficients::kVersion, layout.version);
  if (layout.dtype != Element<T>::dtype)
    return Status::invalid("layout.dtype", "the type of the coefficients (as DType)",
                           static_cast<std::int64_t>(Element<T>::dtype),
                           static_cast<std::int64_t>(layout.dtype));
  if (layout.rest < 1) return Status::invalid("layout.rest", "at least", 1, layout.rest);
  if (layout.columns() < 1)
    return Status::invalid("layout.columns()", "at least", 1, layout.columns());
  if (row_stride < layout.columns())
    return Status::invalid("row_stride", "at least heads * width", layout.columns(), row_stride);
  const std::int64_t padded = layout.channel_blocks() * layout.column_blocks() * 64 * 64;
  const std::int64_t blocks = std::min<std::int64_t>(detail::ceil_div(padded, 256), 4096);
  return detail::launch("pack launch", detail::pack_kernel<T>,
                        {dim3(detail::to_grid(blocks)), 256, 0}, false, stream, coefficients,
                        row_stride, layout, packed);
}

template <class T>
Status run(const ProjectionArguments<T>& args, const DeviceInfo& device, void* workspace,
           std::size_t workspace_bytes, cudaStream_t stream) {
  if (Status s = check_arguments(args); !s.ok()) return s;
  if (args.x.extent(0) == 0) return {};
  if (Status s = detail::check_workspace(workspace_size(args, device), workspace, workspace_bytes);
      !s.ok())
    return s;
  const ProjectionConfig config = config_for(args, device);
  if (Status s = validate(config, args.shape(), device); !s.ok()) return s;
  if constexpr (sizeof(T) == 4) {
    return detail::run_simt(args, stream);
  } else {
    switch (config.kernel) {
      case ProjectionKernel::kSm90Resident:
        return detail::run_resident(args, device, stream);
      case ProjectionKernel::kSm90Short:
        return detail::run_short(args, device, stream);
      case ProjectionKernel::kSm90Stream:
        if (config.tile_columns == 128) return detail::run_stream<T, 128>(args, device, stream);
        return detail::run_stream<T, 192>(args, device, stream);
      case ProjectionKernel::kSm90Halves:
        return detail::run_halves(args, device, stream);
      case ProjectionKernel::kSm90Turns:
        if (config.tile_tokens == 128) return detail::run_turns<T, 128>(args, device, stream);
        return detail::run_turns<T, 256>(args, device, stream);
      case ProjectionKernel::kSm90Wave:
        if (config.tile_tokens == 128) return detail::run_wave<T, 128, 192>(args, stream);
        return detail::run_wave<T, 256, 128>(args, stream);
      case ProjectionKernel::kSm90Small:
        switch (config.tile_tokens) {
          case 16:
            return detail::run_small<T, 16>(args, config, device, stream);
          case 32:
            return detail::run_small<T, 32>(args, config, device, stream);
          case 64:
            return detail::run_small<T, 64>(args, config, device, stream);
          case 96:
            return detail::run_small<T, 96>(args, config, device, stream);
          case 128:
            return detail::run_small<T, 128>(args, config, device, stream);
          case 144:
            return detail::run_small<T, 144>(args, config, device, stream);
          default:
            return detail::run_small<T, 160>(args, config, device, stream);
        }
      default:
        return detail::run_sm80(args, config, device, stream);
    }
  }
}

}  // namespace bda::inline v0::cuda

/// Puts the entry points for element type T, and their kernels, into this translation unit.
#define BDA_INSTANTIATE_CUDA_PROJECTION(T)                                                     \
  template ::bda::cuda::DeviceInfo bda::cuda::query_device<T>();                               \
  template ::bda::Status bda::cuda::pack_coefficients_on_device<T>(                            \
      const T*, std::int64_t, const ::bda::cuda::PackedCoefficients&, T*, cudaStream_t);       \
  template ::bda::Status bda::cuda::run<T>(const ::bda::cuda::ProjectionArguments<T>&,         \
                                           const ::bda::cuda::DeviceInfo&, void*, std::size_t, \
                                           cudaStream_t)
