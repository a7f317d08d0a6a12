#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// PTX ISA 9.7.15: the asynchronous warpgroup product of sm_90a, m64 x N x k16, fp32 accumulators.
///
/// Accumulator layout (figure "WGMMA .m64nNk16 register fragment layout for D"): warp w of the
/// group holds rows 16 w to 16 w + 15; in it lane l holds, for each 8 columns j, the pairs
/// (row l / 4, columns 8 j + 2 (l % 4), +1) in d[4 j], d[4 j + 1] and the same of row + 8 in
/// d[4 j + 2], d[4 j + 3].
namespace bda::inline v0::cuda::ptx {

/// 9.7.15.7.1 wgmma.fence: before the first product, and whenever registers it uses were written.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most N committed groups are pending.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/// Tells the compiler that the accumulators change here: it cannot see that a wait delivers them.
template <int N>
__device__ __forceinline__ void delivered(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// 9.7.15.5.1 matrix descriptor of a K-major operand tile: rows of 64 16-bit values (128 bytes) at
/// a pitch of 128 bytes, 128-byte swizzle, aligned to 1024 bytes. The next 16 columns of K are 2
/// further on (the address field counts 16 bytes), the next 64 rows 512 further.
__device__ __forceinline__ std::uint64_t matrix_descriptor(std::uint32_t shared) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRowPitch = std::uint64_t{1024 / 16} << 32;
  constexpr std::uint64_t kLeadingPitch = std::uint64_t{1} << 16;  // unused with this swizzle
  return kSwizzle128 | kEightRowPitch | kLeadingPitch | ((shared & 0x3ffffu) >> 4);
}

/// The same of an operand whose N is contiguous: rows of 64 values of N, one for each of K, and the
/// next 64 of N `pitch` bytes on. The next 16 of K are 128 further.
__device__ __forceinline__ std::uint64_t transposed_matrix_descriptor(std::uint32_t shared,
                                                                      std::uint32_t pitch) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRowPitch = std::uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRowPitch | (std::uint64_t{pitch >> 4} << 16) |
         ((shared & 0x3ffffu) >> 4);
}

/// 9.7.15.6 setmaxnreg: moves registers between the roles of a warp-specialised kernel.
template <int N>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Operands %0 to %(n - 1) and the accumulators behind them, each list the one before and more.
#define BDA_WGMMA_EIGHT(i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define BDA_WGMMA_LIST_4 "%0, %1, %2, %3"
#define BDA_WGMMA_ACCUMULATORS_4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define BDA_WGMMA_LIST_8 \
  BDA_WGMMA_LIST_4       \
  ", %4, %5, %6, %7"
#define BDA_WGMMA_ACCUMULATORS_8 BDA_WGMMA_EIGHT(0)
#define BDA_WGMMA_LIST_16 \
  BDA_WGMMA_LIST_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BDA_WGMMA_ACCUMULATORS_16 BDA_WGMMA_ACCUMULATORS_8, BDA_WGMMA_EIGHT(8)
#define BDA_WGMMA_LIST_32 \
  BDA_WGMMA_LIST_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BDA_WGMMA_ACCUMULATORS_32 \
  BDA_WGMMA_ACCUMULATORS_16, BDA_WGMMA_EIGHT(16), BDA_WGMMA_EIGHT(24)
#define BDA_WGMMA_LIST_48 \
  BDA_WGMMA_LIST_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define BDA_WGMMA_ACCUMULATORS_48 \
  BDA_WGMMA_ACCUMULATORS_32, BDA_WGMMA_EIGHT(32), BDA_WGMMA_EIGHT(40)
#define BDA_WGMMA_LIST_64 \
  BDA_WGMMA_LIST_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BDA_WGMMA_ACCUMULATORS_64 \
  BDA_WGMMA_ACCUMULATORS_48, BDA_WGMMA_EIGHT(48), BDA_WGMMA_EIGHT(56)
#define BDA_WGMMA_LIST_72 \
  BDA_WGMMA_LIST_64       \
  ", %64, %65, %66, %67, %68, %69, %70, %71"
#define BDA_WGMMA_ACCUMULATORS_72 BDA_WGMMA_ACCUMULATORS_64, BDA_WGMMA_EIGHT(64)
#define BDA_WGMMA_LIST_80 \
  BDA_WGMMA_LIST_72       \
  ", %72, %73, %74, %75, %76, %77, %78, %79"
#define BDA_WGMMA_ACCUMULATORS_80 BDA_WGMMA_ACCUMULATORS_72, BDA_WGMMA_EIGHT(72)
#define BDA_WGMMA_LIST_96 \
  BDA_WGMMA_LIST_80       \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BDA_WGMMA_ACCUMULATORS_96 \
  BDA_WGMMA_ACCUMULATORS_80, BDA_WGMMA_EIGHT(80), BDA_WGMMA_EIGHT(88)
#define BDA_WGMMA_LIST_128                                                                       \
  BDA_WGMMA_LIST_96                                                                              \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define BDA_WGMMA_ACCUMULATORS_128                                                            \
  BDA_WGMMA_ACCUMULATORS_96, BDA_WGMMA_EIGHT(96), BDA_WGMMA_EIGHT(104), BDA_WGMMA_EIGHT(112), \
      BDA_WGMMA_EIGHT(120)

// The only difference between the shapes is how many registers are listed; `accumulate` = 0 makes
// the product overwrite d.
#define BDA_WGMMA_SHARED(n, count, type, a, b, p, t)                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p                                  \
               ", 0;\n"                                                                \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type          \
               " {" BDA_WGMMA_LIST_##count "}, %" a ", %" b ", p, 1, 1, %" t ", 0;\n}" \
               : BDA_WGMMA_ACCUMULATORS_##count                                        \
               : "l"(descriptor_a), "l"(descriptor_b), "r"(accumulate), "n"(kTransposed))

/// 9.7.15.5.2 wgmma.mma_async, both operands in shared memory: d [64, N] += a [64, 16] b [N, 16]^T.
/// With `kTransposed` a lies as [16, 64]: rows of 64 values, 16 of K one below the other (the same
/// descriptor; the next 16 of K are 128 further).
template <class T, int N, int kTransposed = 0>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], std::uint64_t descriptor_a,
                                      std::uint64_t descriptor_b, int accumulate) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 144 ||
                N == 160 || N == 192);
  if constexpr (N == 8 && kHalf) BDA_WGMMA_SHARED("8", 4, "f16", "4", "5", "6", "7");
  if constexpr (N == 8 && !kHalf) BDA_WGMMA_SHARED("8", 4, "bf16", "4", "5", "6", "7");
  if constexpr (N == 16 && kHalf) BDA_WGMMA_SHARED("16", 8, "f16", "8", "9", "10", "11");
  if constexpr (N == 16 && !kHalf) BDA_WGMMA_SHARED("16", 8, "bf16", "8", "9", "10", "11");
  if constexpr (N == 32 && kHalf) BDA_WGMMA_SHARED("32", 16, "f16", "16", "17", "18", "19");
  if constexpr (N == 32 && !kHalf) BDA_WGMMA_SHARED("32", 16, "bf16", "16", "17", "18", "19");
  if constexpr (N == 64 && kHalf) BDA_WGMMA_SHARED("64", 32, "f16", "32", "33", "34", "35");
  if constexpr (N == 64 && !kHalf) BDA_WGMMA_SHARED("64", 32, "bf16", "32", "33", "34", "35");
  if constexpr (N == 96 && kHalf) BDA_WGMMA_SHARED("96", 48, "f16", "48", "49", "50", "51");
  if constexpr (N == 96 && !kHalf) BDA_WGMMA_SHARED("96", 48, "bf16", "48", "49", "50", "51");
  if constexpr (N == 128 && kHalf) BDA_WGMMA_SHARED("128", 64, "f16", "64", "65", "66", "67");
  if constexpr (N == 128 && !kHalf) BDA_WGMMA_SHARED("128", 64, "bf16", "64", "65", "66", "67");
  if constexpr (N == 144 && kHalf) BDA_WGMMA_SHARED("144", 72, "f16", "72", "73", "74", "75");
  if constexpr (N == 144 && !kHalf) BDA_WGMMA_SHARED("144", 72, "bf16", "72", "73", "74", "75");
  if constexpr (N == 160 && kHalf) BDA_WGMMA_SHARED("160", 80, "f16", "80", "81", "82", "83");
  if constexpr (N == 160 && !kHalf) BDA_WGMMA_SHARED("160", 80, "bf16", "80", "81", "82", "83");
  if constexpr (N == 192 && kHalf) BDA_WGMMA_SHARED("192", 96, "f16", "96", "97", "98", "99");
  if constexpr (N == 192 && !kHalf) BDA_WGMMA_SHARED("192", 96, "bf16", "96", "97", "98", "99");
}

/// The same with a in registers (the fragment `load_matrices` delivers); with `kTransposed` b is
/// one of `transposed_matrix_descriptor`.
template <class T, int N = 128, int kTransposed = 0>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const std::uint32_t (&a)[4],
                                      std::uint64_t descriptor_b) {
#define BDA_WGMMA_REGISTERS(n, count, type, a0, a1, a2, a3, b, t)                         \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type             \
               " {" BDA_WGMMA_LIST_##count "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b \
                                           ", 1, 1, 1, %" t ";"                           \
               : BDA_WGMMA_ACCUMULATORS_##count                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor_b), "n"(kTransposed))
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
  static_assert(N == 64 || N == 128 || N == 192 || N == 256);
  if constexpr (N == 64 && kHalf)
    BDA_WGMMA_REGISTERS("64", 32, "f16", "32", "33", "34", "35", "36", "37");
  if constexpr (N == 64 && !kHalf)
    BDA_WGMMA_REGISTERS("64", 32, "bf16", "32", "33", "34", "35", "36", "37");
  if constexpr (N == 128 && kHalf)
    BDA_WGMMA_REGISTERS("128", 64, "f16", "64", "65", "66", "67", "68", "69");
  if constexpr (N == 128 && !kHalf)
    BDA_WGMMA_REGISTERS("128", 64, "bf16", "64", "65", "66", "67", "68", "69");
  if constexpr (N == 192 && kHalf)
    BDA_WGMMA_REGISTERS("192", 96, "f16", "96", "97", "98", "99", "100", "101");
  if constexpr (N == 192 && !kHalf)
    BDA_WGMMA_REGISTERS("192", 96, "bf16", "96", "97", "98", "99", "100", "101");
  if constexpr (N == 256 && kHalf)
    BDA_WGMMA_REGISTERS("256", 128, "f16", "128", "129", "130", "131", "132", "133");
  if constexpr (N == 256 && !kHalf)
    BDA_WGMMA_REGISTERS("256", 128, "bf16", "128", "129", "130", "131", "132", "133");
#undef BDA_WGMMA_REGISTERS
}
#undef BDA_WGMMA_SHARED
#undef BDA_WGMMA_LIST_4
#undef BDA_WGMMA_ACCUMULATORS_4
#undef BDA_WGMMA_LIST_8
#undef BDA_WGMMA_ACCUMULATORS_8
#undef BDA_WGMMA_LIST_16
#undef BDA_WGMMA_ACCUMULATORS_16
#undef BDA_WGMMA_LIST_32
#undef BDA_WGMMA_ACCUMULATORS_32
#undef BDA_WGMMA_LIST_48
#undef BDA_WGMMA_ACCUMULATORS_48
#undef BDA_WGMMA_LIST_64
#undef BDA_WGMMA_ACCUMULATORS_64
#undef BDA_WGMMA_LIST_72
#undef BDA_WGMMA_ACCUMULATORS_72
#undef BDA_WGMMA_LIST_80
#undef BDA_WGMMA_ACCUMULATORS_80
#undef BDA_WGMMA_LIST_96
#undef BDA_WGMMA_ACCUMULATORS_96
#undef BDA_WGMMA_LIST_128
#undef BDA_WGMMA_ACCUMULATORS_128
#undef BDA_WGMMA_EIGHT

}  // namespace bda::inline v0::cuda::ptx
