#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "bda/core/status.hpp"
#include "bda/cuda/projection/arguments.hpp"

/// Tensor maps for the copy engine: how x and out lie in global memory.
namespace bda::inline v0::cuda::detail {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

/// The driver's encoder, found at run time so that nothing links against libcuda.
inline Status find_encoder(EncodeTiled& encode) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || entry == nullptr) {
    (void)cudaGetLastError();
    return Status::error(Status::Code::kDeviceError, "driver", "at least version", 12000, found);
  }
  encode = reinterpret_cast<EncodeTiled>(entry);
  return {};
}

template <class T, int kRank>
Status encode(const T* data, const cuuint64_t (&extents)[kRank],
              const cuuint64_t (&byte_strides)[kRank - 1], const cuuint32_t (&box)[kRank],
              CUtensorMapL2promotion promotion, CUtensorMap& map) {
  EncodeTiled encoder = nullptr;
  if (Status s = find_encoder(encoder); !s.ok()) return s;
  cuuint32_t steps[kRank];
  for (auto& step : steps) step = 1;
  const CUresult result = encoder(
      &map,
      Element<T>::dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      kRank, const_cast<T*>(data), extents, byte_strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    return Status::error(Status::Code::kDeviceError, "cuTensorMapEncodeTiled",
                         "success (as CUresult)", CUDA_SUCCESS, result);
  return {};
}

/// [rows, channels] in boxes of `box_rows` x 64 channels.
template <class T>
Status encode_rows_map(const TensorView<const T, 2>& view, int box_rows, CUtensorMap& map) {
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(view.extent(1)),
                                 static_cast<cuuint64_t>(view.extent(0))};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(view.stride(0)) * sizeof(T)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  return encode<T, 2>(view.data, extents, strides, box, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, map);
}

/// out as [heads, width / 64, tokens, 64] in boxes of `blocks` x `box_tokens` x 64 columns.
template <class T>
Status encode_out_map(const ProjectionArguments<T>& a, int blocks, CUtensorMap& map,
                      int box_tokens = 16) {
  // A stride that nothing steps over may be anything in the view, but not for the copy engine.
  const std::int64_t token_stride = a.out.extent(0) > 1 ? a.out.stride(0) : a.packing.width;
  const std::int64_t head_stride = a.out.extent(1) > 1 ? a.out.stride(1) : a.packing.width;
  const cuuint64_t extents[4] = {64, static_cast<cuuint64_t>(a.out.extent(0)),
                                 static_cast<cuuint64_t>(a.packing.width / 64),
                                 static_cast<cuuint64_t>(a.out.extent(1))};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(token_stride) * sizeof(T), 64 * sizeof(T),
                                 static_cast<cuuint64_t>(head_stride) * sizeof(T)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_tokens),
                             static_cast<cuuint32_t>(blocks), 1};
  return encode<T, 4>(a.out.data, extents, strides, box, CU_TENSOR_MAP_L2_PROMOTION_NONE, map);
}

}  // namespace bda::inline v0::cuda::detail
