#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.hpp"

/// include/bda/cuda/ptx/memory.cuh, emulated: the same names, the same meaning.

// What nvcc knows by itself.
#define __launch_bounds__(...)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
using std::max, std::min;
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline void __syncthreads() { bda_emulated::barrier(0, static_cast<int>(blockDim.x), true); }
inline void __syncwarp() {
  bda_emulated::together(32, nullptr, [](void* const*) {});
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  struct Lane {
    T mine, theirs;
  } lane{value, value};
  bda_emulated::together(32, &lane, [mask](void* const* lanes) {
    for (int i = 0; i < 32; ++i)
      static_cast<Lane*>(lanes[i])->theirs = static_cast<const Lane*>(lanes[i ^ mask])->mine;
  });
  return lane.theirs;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned picked = 0;
  for (unsigned i = 0; i < 4; ++i)
    picked |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

namespace bda_emulated {

inline void check_multiple(const char* what, std::uintptr_t address, std::uintptr_t of) {
  if (address % of != 0) fail(what, static_cast<std::int64_t>(address));
}
inline void check_multiple(const char* what, const void* address, std::uintptr_t of) {
  check_multiple(what, reinterpret_cast<std::uintptr_t>(address), of);
}

/// The 128-byte swizzle of the copy engine and wgmma: of an address, by the address.
constexpr std::uint32_t swizzled(std::uint32_t address) {
  return address ^ ((address >> 7 & 7) << 4);
}

/// What a CUtensorMap holds here: `encode` puts it there, in place of the driver.
struct TensorMap {
  std::uint8_t* data;
  std::uint32_t element_bytes;
  std::uint32_t extents[4];
  std::uint64_t strides[3];  // in bytes, from the second dimension on
  std::uint32_t box[4];

  static TensorMap of(const CUtensorMap& map) {
    TensorMap t;
    std::memcpy(&t, &map, sizeof(t));
    return t;
  }
  [[nodiscard]] std::uint32_t box_bytes() const {
    return box[0] * box[1] * box[2] * box[3] * element_bytes;
  }
  /// Calls f(address in the box as it lies in shared memory, element in global memory or null
  /// outside the tensor) for every element of the box at `at`.
  template <class F>
  void for_each(std::uint32_t shared, const std::array<int, 4>& at, F f) const {
    std::uint32_t linear = 0;
    for (std::uint32_t w = 0; w < box[3]; ++w)
      for (std::uint32_t z = 0; z < box[2]; ++z)
        for (std::uint32_t y = 0; y < box[1]; ++y)
          for (std::uint32_t x = 0; x < box[0]; ++x, linear += element_bytes) {
            const std::int64_t p[4] = {std::int64_t{at[0]} + x, std::int64_t{at[1]} + y,
                                       std::int64_t{at[2]} + z, std::int64_t{at[3]} + w};
            bool inside = true;
            std::int64_t offset = p[0] * element_bytes;
            for (int i = 0; i < 4; ++i) {
              inside = inside && p[i] >= 0 && p[i] < std::int64_t{extents[i]};
              if (i > 0) offset += p[i] * static_cast<std::int64_t>(strides[i - 1]);
            }
            f(swizzled(shared + linear), inside ? data + offset : nullptr);
          }
  }
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace bda_emulated

namespace bda::inline v0::cuda {

extern std::uint8_t shared_bytes[bda_emulated::kSharedBytes];

namespace ptx {

inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(static_cast<const std::uint8_t*>(p) - shared_bytes);
}
inline std::uint32_t thread_index() { return threadIdx.x; }
inline std::uint32_t block_index() { return blockIdx.x; }
inline int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
inline bool elect_one() { return threadIdx.x % 32 == bda_emulated::elected_lane(); }

template <int kId>
void barrier_sync(int threads) {
  bda_emulated::barrier(kId, threads, true);
}
template <int kId>
void barrier_arrive(int threads) {
  bda_emulated::barrier(kId, threads, false);
}
inline void barrier_sync(int id, int threads) { bda_emulated::barrier(id, threads, true); }
inline void barrier_arrive(int id, int threads) { bda_emulated::barrier(id, threads, false); }

inline void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  bda_emulated::mbarrier_init(barrier, arrivals);
}
inline void fence_mbarrier_init() { bda_emulated::fence_mbarriers(); }
inline void mbarrier_arrive(std::uint32_t barrier) { bda_emulated::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_bytes(std::uint32_t barrier, std::uint32_t bytes) {
  bda_emulated::mbarrier_arrive(barrier, bytes);
}
inline bool mbarrier_test_wait(std::uint32_t barrier, std::uint32_t parity) {
  return bda_emulated::mbarrier_is_over(barrier, parity);
}
inline void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  bda_emulated::wait_until("the mbarrier at", barrier,
                           [=] { return mbarrier_test_wait(barrier, parity); });
}

inline void bulk_load(std::uint32_t shared, const void* global, std::uint32_t bytes,
                      std::uint32_t barrier, std::uint64_t = 0) {
  void* const target = bda_emulated::shared(shared, bytes);
  bda_emulated::check_multiple("bulk copy to no multiple of 16:", shared, 16);
  bda_emulated::check_multiple("bulk copy of no multiple of 16:", bytes, 16);
  bda_emulated::check_multiple("bulk copy from no multiple of 16:", global, 16);
  bda_emulated::later([=] {
    std::memcpy(target, global, bytes);
    bda_emulated::mbarrier_complete(barrier, bytes);
  });
}
inline void bulk_prefetch(const void*, std::uint32_t) {}

inline void tensor_load(std::uint32_t shared, const CUtensorMap& map, std::uint32_t barrier, int x,
                        int y, int z = 0, int w = 0) {
  using bda_emulated::TensorMap;
  const std::uint32_t bytes = TensorMap::of(map).box_bytes();
  (void)bda_emulated::shared(shared, bytes);
  bda_emulated::check_multiple("tensor copy to no multiple of 128:", shared, 128);
  bda_emulated::later([=, map = TensorMap::of(map)] {
    map.for_each(shared, {x, y, z, w}, [&](std::uint32_t to, const std::uint8_t* from) {
      void* const target = bda_emulated::shared(to, map.element_bytes);
      if (from != nullptr)
        std::memcpy(target, from, map.element_bytes);
      else
        std::memset(target, 0, map.element_bytes);
    });
    bda_emulated::mbarrier_complete(barrier, bytes);
  });
}
inline void tensor_store(const CUtensorMap& map, std::uint32_t shared, int x, int y, int z, int w,
                         std::uint64_t = 0) {
  using bda_emulated::TensorMap;
  const std::uint32_t bytes = TensorMap::of(map).box_bytes();
  (void)bda_emulated::shared(shared, bytes);
  bda_emulated::check_fenced(shared, bytes);
  bda_emulated::check_multiple("tensor store from no multiple of 128:", shared, 128);
  bda_emulated::add_to_group(bda_emulated::Queue::kStores, [=, map = TensorMap::of(map)] {
    map.for_each(shared, {x, y, z, w}, [&](std::uint32_t from, std::uint8_t* to) {
      if (to != nullptr)
        std::memcpy(to, bda_emulated::shared(from, map.element_bytes), map.element_bytes);
    });
  });
}
inline void tensor_prefetch(const CUtensorMap&, int, int) {}
inline void prefetch_tensor_map(const CUtensorMap&) {}
inline void bulk_commit() { bda_emulated::commit_group(bda_emulated::Queue::kStores); }
template <int N>
void bulk_wait_read() {
  bda_emulated::wait_for_groups(bda_emulated::Queue::kStores, N);
}
inline void fence_proxy_async() { bda_emulated::fence_writes(); }

inline constexpr std::uint64_t kEvictFirst = 0, kEvictNormal = 0;

inline void async_load_16(std::uint32_t shared, const void* global, bool valid) {
  void* const target = bda_emulated::shared(shared, 16);
  bda_emulated::check_multiple("cp.async to no multiple of 16:", shared, 16);
  bda_emulated::check_multiple("cp.async from no multiple of 16:", global, 16);
  bda_emulated::add_to_group(bda_emulated::Queue::kLoads, [=, by = threadIdx.x] {
    bda_emulated::note_write(shared, 16, by);
    if (valid)
      std::memcpy(target, global, 16);
    else
      std::memset(target, 0, 16);
  });
}
inline void async_load_16_if(bool wanted, std::uint32_t shared, const void* global) {
  if (wanted) async_load_16(shared, global, true);
}
inline void async_commit() { bda_emulated::commit_group(bda_emulated::Queue::kLoads); }
template <int N>
void async_wait() {
  bda_emulated::wait_for_groups(bda_emulated::Queue::kLoads, N);
}

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

inline void cluster_arrive() { bda_emulated::cluster_barrier(true); }
inline void cluster_wait() { bda_emulated::cluster_barrier(false); }
inline std::uint32_t address_in_cluster(std::uint32_t shared, std::uint32_t rank) {
  return bda_emulated::address_in_cluster(shared, rank);
}
inline void store_async(std::uint32_t remote, float x, float y, float z, float w,
                        std::uint32_t remote_barrier) {
  bda_emulated::later([=] {
    const float values[4] = {x, y, z, w};
    std::memcpy(bda_emulated::shared(remote, 16), values, 16);
    bda_emulated::mbarrier_complete(remote_barrier, 16);
  });
}

inline uint4 load_16(std::uint32_t shared) {
  uint4 v;
  bda_emulated::check_multiple("ld.shared.v4 of no multiple of 16:", shared, 16);
  std::memcpy(&v, bda_emulated::shared(shared, 16), 16);
  return v;
}
inline void store_word(std::uint32_t shared, std::uint32_t v) {
  bda_emulated::check_multiple("st.shared to no multiple of 4:", shared, 4);
  bda_emulated::note_write(shared, 4, threadIdx.x);
  std::memcpy(bda_emulated::shared(shared, 4), &v, 4);
}
inline void store_16_if(bool wanted, void* global, uint4 v) {
  if (!wanted) return;
  bda_emulated::check_multiple("st.global.v4 to no multiple of 16:", global, 16);
  std::memcpy(global, &v, 16);
}
inline void store_16_streaming(void* global, uint4 v) { store_16_if(true, global, v); }
inline float4 load_floats(std::uint32_t shared) {
  float4 v;
  bda_emulated::check_multiple("ld.shared.v4 of no multiple of 16:", shared, 16);
  std::memcpy(&v, bda_emulated::shared(shared, 16), 16);
  return v;
}

}  // namespace ptx
}  // namespace bda::inline v0::cuda
