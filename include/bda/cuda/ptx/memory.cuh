#pragma once

#include <cuda.h>

#include <cstdint>

/// Own wrappers of PTX, one instruction a function, named after the PTX ISA section they come from.
///
/// They take 32-bit shared-window addresses where libcu++'s cuda::ptx takes 64-bit generic
/// pointers: the kernels run at 240 registers a thread, and every address kept is one of them.
namespace bda::inline v0::cuda::ptx {

/// The address of `p`, which must point into shared memory, within the shared window.
__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// threadIdx.x, read anew each time instead of being kept in a register.
__device__ __forceinline__ std::uint32_t thread_index() {
  std::uint32_t t;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  return t;
}

/// blockIdx.x, likewise.
__device__ __forceinline__ std::uint32_t block_index() {
  std::uint32_t b;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
  return b;
}

/// threadIdx.x / 32, in a form that tells the compiler that all threads of a warp have the same:
/// addresses that depend on it stay in uniform registers, which the copy engine takes them from.
__device__ __forceinline__ int warp_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

/// 9.7.13.14 elect.sync: true in one thread of the warp.
__device__ __forceinline__ bool elect_one() {
  std::uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}"
               : "=r"(elected));
  return elected != 0;
}

// ---- 9.7.13.1 barrier: named barriers of a CTA; 0 is __syncthreads'

template <int kId>
__device__ __forceinline__ void barrier_sync(int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

/// Counts this thread in without waiting.
template <int kId>
__device__ __forceinline__ void barrier_arrive(int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

/// The same with a barrier that is the warp's, and no constant.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- 9.7.13.15 mbarrier

__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the copy engine and to the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_bytes(std::uint32_t barrier,
                                                             std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Whether the phase of parity `parity` is over; may suspend the thread for a while.
__device__ __forceinline__ bool mbarrier_try_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Whether the phase of parity `parity` is over; never suspends.
__device__ __forceinline__ bool mbarrier_test_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// ---- 9.7.9.25 cp.async.bulk and cp.async.bulk.tensor (the copy engine)

/// 16-byte multiples from global to shared memory; the bytes are counted on `barrier`.
__device__ __forceinline__ void bulk_load(std::uint32_t shared, const void* global,
                                          std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

/// The same with a policy of L2.
__device__ __forceinline__ void bulk_load(std::uint32_t shared, const void* global,
                                          std::uint32_t bytes, std::uint32_t barrier,
                                          std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

/// Brings 16-byte multiples into L2.
__device__ __forceinline__ void bulk_prefetch(const void* global, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

/// The box at column `x`, row `y` of a 2-D tensor; outside the tensor it is filled with zeros.
__device__ __forceinline__ void tensor_load(std::uint32_t shared, const CUtensorMap& map,
                                            std::uint32_t barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

/// The box at (x, y, z, w) of a 4-D tensor, likewise.
__device__ __forceinline__ void tensor_load(std::uint32_t shared, const CUtensorMap& map,
                                            std::uint32_t barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

/// The box at (x, y, z, w) of a 4-D tensor from shared memory; what falls outside is not written.
__device__ __forceinline__ void tensor_store(const CUtensorMap& map, std::uint32_t shared, int x,
                                             int y, int z, int w, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint "
      "[%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(&map),
      "r"(shared), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
      : "memory");
}

/// The same without a policy.
__device__ __forceinline__ void tensor_store(const CUtensorMap& map, std::uint32_t shared, int x,
                                             int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          &map),
      "r"(shared), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

/// Brings the box at column `x`, row `y` of a 2-D tensor into L2.
__device__ __forceinline__ void tensor_prefetch(const CUtensorMap& map, int x, int y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(x),
               "r"(y)
               : "memory");
}

/// Brings the map itself to where the copy engine reads it.
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most N of this thread's committed stores still read their shared memory.
template <int N>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/// Orders this thread's shared-memory accesses before later ones by the copy engine or wgmma.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// 9.7.9.14 createpolicy: policies of L2 as it encodes them, evict_first (data that nobody reads
/// again soon), and that of an access that names none. (createpolicy's evict_normal is another
/// value, and slower than either: 512 tokens of 128 heads in 13.0 us in place of 12.4.)
inline constexpr std::uint64_t kEvictFirst = 0x12f0000000000000, kEvictNormal = 0x1000000000000000;

// ---- 9.7.9.25.3 cp.async (sm_80)

/// 16 bytes from global to shared memory, zeros where `valid` is false.
__device__ __forceinline__ void async_load_16(std::uint32_t shared, const void* global,
                                              bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}

/// 16 bytes where `wanted`; a predicate, where a branch would end what the compiler can interleave.
__device__ __forceinline__ void async_load_16_if(bool wanted, std::uint32_t shared,
                                                 const void* global) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n"
      "@p cp.async.cg.shared.global [%0], [%1], 16;\n}" ::"r"(shared),
      "l"(global), "r"(static_cast<int>(wanted))
      : "memory");
}

__device__ __forceinline__ void async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- 9.7.13.13 griddepcontrol: programmatic dependent launch

/// Waits until the kernels this one depends on are complete and their writes visible. Before
/// sm_90 there is no such launch, and nothing to wait for.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernels that depend on this one start launching.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- clusters

/// 9.7.13.4 barrier.cluster, by all threads of the cluster. The arrival orders nothing but
/// initialised barriers (`fence_mbarrier_init`): one that releases all writes takes 0.7 us.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// 9.7.9.22 mapa: the address in the CTA `rank` of the cluster that `shared` is in this one.
__device__ __forceinline__ std::uint32_t address_in_cluster(std::uint32_t shared,
                                                            std::uint32_t rank) {
  std::uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(rank));
  return remote;
}

/// 9.7.9.12 st.async: four floats to another CTA's shared memory, counted on a barrier of that CTA.
__device__ __forceinline__ void store_async(std::uint32_t remote, float x, float y, float z,
                                            float w, std::uint32_t remote_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
      "{%1, %2, %3, %4}, [%5];" ::"r"(remote),
      "f"(x), "f"(y), "f"(z), "f"(w), "r"(remote_barrier)
      : "memory");
}

/// 16 bytes, or 4, of this CTA's shared memory.
__device__ __forceinline__ uint4 load_16(std::uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_word(std::uint32_t shared, std::uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(v) : "memory");
}

/// 16 bytes to global memory that nobody in this kernel reads again.
__device__ __forceinline__ void store_16_streaming(void* global, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

/// 16 bytes to global memory where `wanted`, without a branch.
__device__ __forceinline__ void store_16_if(bool wanted, void* global, uint4 v) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
      "@p st.global.v4.u32 [%0], {%1, %2, %3, %4};\n}" ::"l"(global),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(static_cast<int>(wanted))
      : "memory");
}

/// Four floats of this CTA's shared memory.
__device__ __forceinline__ float4 load_floats(std::uint32_t shared) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

}  // namespace bda::inline v0::cuda::ptx
