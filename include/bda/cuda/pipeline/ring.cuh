#pragma once

#include <cstdint>

#include "bda/cuda/ptx/memory.cuh"

// The wgmma kernels have a body only in code for sm_90a (or its like); elsewhere the launch bound
// of one thread makes every launch of them fail, and tells the host that the code is not there.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BDA_SM90A_CODE 1
#define BDA_SM90A_THREADS(n) n
#else
#define BDA_SM90A_CODE 0
#define BDA_SM90A_THREADS(n) 1
#endif

namespace bda::inline v0::cuda {

/// Where a producer or consumer stands in a ring of `Slots` buffers, each guarded by a pair of
/// barriers. A consumer waits for `full[slot]` with `parity`; a producer waits for `empty[slot]`
/// with `parity ^ 1`, which lets its first round pass without waiting.
template <int Slots>
struct RingPosition {
  int slot = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == Slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// The barriers of a ring. All methods take slots; addresses are computed, not kept.
template <int Slots>
struct RingBarriers {
  std::uint64_t full[Slots];
  std::uint64_t empty[Slots];

  /// By one thread, before the CTA first synchronises.
  __device__ __forceinline__ void init(std::uint32_t consumer_arrivals) {
    for (int s = 0; s < Slots; ++s) {
      ptx::mbarrier_init(ptx::shared_address(&full[s]), 1);
      ptx::mbarrier_init(ptx::shared_address(&empty[s]), consumer_arrivals);
    }
  }
};

}  // namespace bda::inline v0::cuda
