#pragma once

#include <cstdint>

#include "bda/cuda/ptx/matrix.cuh"

/// Eight accumulators of wgmma: 16 columns of a warp's 16 rows (or 16 rows of 16 columns, where the
/// operands are swapped) and the same as fragments of 16 bits: the layouts of wgmma.cuh and
/// matrix.cuh agree.
namespace bda::inline v0::cuda {

/// What `ptx::load_matrices` delivered, unrounded.
template <class T>
__device__ __forceinline__ void unpack_fragment(const std::uint32_t (&fragment)[4], float* c) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float2 v = ptx::unpack_pair<T>(fragment[e]);
    c[2 * e] = v.x;
    c[2 * e + 1] = v.y;
  }
}

/// Rounded to nearest even, to where `ptx::store_matrices` stores.
template <class T>
__device__ __forceinline__ void store_rounded(std::uint32_t address, const float* c) {
  ptx::store_matrices(address, ptx::pack_pair<T>(c[0], c[1]), ptx::pack_pair<T>(c[2], c[3]),
                      ptx::pack_pair<T>(c[4], c[5]), ptx::pack_pair<T>(c[6], c[7]));
}

/// The same by `ptx::store_matrices_transposed`.
template <class T>
__device__ __forceinline__ void store_rounded_transposed(std::uint32_t address, const float* c) {
  ptx::store_matrices_transposed(address, ptx::pack_pair<T>(c[0], c[1]),
                                 ptx::pack_pair<T>(c[2], c[3]), ptx::pack_pair<T>(c[4], c[5]),
                                 ptx::pack_pair<T>(c[6], c[7]));
}

}  // namespace bda::inline v0::cuda
