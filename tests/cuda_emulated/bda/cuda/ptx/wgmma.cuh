#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "bda/cuda/ptx/matrix.cuh"

/// include/bda/cuda/ptx/wgmma.cuh, emulated.
namespace bda_emulated {

/// What one thread brings to a product; a null `a` where the first operand is in shared memory.
struct Product {
  float* d;
  const std::uint32_t* a;
  std::uint64_t descriptor_a, descriptor_b;
  int accumulate;
};

/// Row `row`, column `k` (of 16) of the operand that `descriptor` says; transposed, its rows are
/// contiguous, 64 of them.
template <class T>
float operand(std::uint64_t descriptor, unsigned row, unsigned k, bool transposed) {
  const auto field = [=](int shift) {
    return static_cast<std::uint32_t>((descriptor >> shift & 0x3fff) << 4);
  };
  const std::uint32_t base = field(0), next_rows = field(16), eight_lines = field(32);
  const std::uint32_t linear =
      transposed ? base + row / 64 * next_rows + k / 8 * eight_lines + k % 8 * 128 + row % 64 * 2
                 : base + row / 8 * eight_lines + row % 8 * 128 + k * 2;
  const std::uint32_t address = swizzled(linear);
  check_fenced(address, 2);
  std::uint16_t bits;
  std::memcpy(&bits, shared(address, 2), 2);
  return value<T>(bits);
}

/// The 16 rows of one warp: nobody may rely on another's being done.
template <class T, int N, bool kTransposedA, bool kTransposedB>
void multiply(const std::array<Product, 128>& threads, unsigned warp) {
  float left[64][16], right[N][16];
  const unsigned first = 32 * warp;
  for (unsigned t = first; t < first + 32; ++t) {
    const Product& p = threads[t];
    if (p.a == nullptr) continue;
    const unsigned row = t / 32 * 16 + t % 32 / 4, column = 2 * (t % 4);
    for (unsigned q = 0; q < 4; ++q)
      for (unsigned i = 0; i < 2; ++i)
        left[row + 8 * (q % 2)][column + 8 * (q / 2) + i] =
            value<T>(static_cast<std::uint16_t>(p.a[q] >> 16 * i));
  }
  for (unsigned k = 0; k < 16; ++k) {
    if (threads[0].a == nullptr)
      for (unsigned i = 16 * warp; i < 16 * warp + 16; ++i)
        left[i][k] = operand<T>(threads[0].descriptor_a, i, k, kTransposedA);
    for (unsigned i = 0; i < N; ++i)
      right[i][k] = operand<T>(threads[0].descriptor_b, i, k, kTransposedB);
  }
  for (unsigned t = first; t < first + 32; ++t)
    for (unsigned e = 0; e < N / 2; ++e) {
      const unsigned row = t / 32 * 16 + t % 32 / 4 + 8 * (e / 2 % 2);
      const unsigned column = 8 * (e / 4) + 2 * (t % 4) + e % 2;
      float sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
      float& d = threads[t].d[e];
      d = threads[t].accumulate != 0 ? d + sum : sum;
    }
}

/// The registers are read and written when the product is made, not when it is asked for.
template <class T, int N, bool kTransposedA, bool kTransposedB>
void ask_for_product(Product mine) {
  check_products_fenced();
  together(128, &mine, [](void* const* all) {
    std::array<Product, 128> threads;
    for (unsigned t = 0; t < 128; ++t) threads[t] = *static_cast<const Product*>(all[t]);
    for (unsigned t = 1; t < 128; ++t)
      if (threads[t].descriptor_a != threads[0].descriptor_a ||
          threads[t].descriptor_b != threads[0].descriptor_b ||
          threads[t].accumulate != threads[0].accumulate)
        fail("threads of one product disagree: thread", t);
    for (const std::uint64_t descriptor : {threads[0].descriptor_a, threads[0].descriptor_b})
      check_multiple("operand at no multiple of 1024, but for its columns:",
                     (descriptor & 0x3fff) << 4 & ~std::uint64_t{0x7f}, 1024);
    for (unsigned w = 0; w < 4; ++w)
      add_product(w, [threads, w] { multiply<T, N, kTransposedA, kTransposedB>(threads, w); });
  });
}

}  // namespace bda_emulated

namespace bda::inline v0::cuda::ptx {

inline void wgmma_fence() { bda_emulated::fence_products(true); }
inline void wgmma_commit() {
  bda_emulated::fence_products(false);
  bda_emulated::together(32, nullptr, [](void* const*) {
    bda_emulated::commit_group(bda_emulated::Queue::kProducts);
  });
}
template <int N>
void wgmma_wait() {
  bda_emulated::wait_for_groups(bda_emulated::Queue::kProducts, N);
}
template <int N>
void delivered(float (&)[N]) {}
template <int N>
void give_up_registers() {}
template <int N>
void claim_registers() {}

inline std::uint64_t matrix_descriptor(std::uint32_t shared) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 / 16} << 32 | (shared & 0x3ffffu) >> 4;
}

inline std::uint64_t transposed_matrix_descriptor(std::uint32_t shared, std::uint32_t pitch) {
  return matrix_descriptor(shared) | std::uint64_t{pitch >> 4} << 16;
}

template <class T, int N, int kTransposed = 0>
void wgmma(float (&d)[N / 2], std::uint64_t descriptor_a, std::uint64_t descriptor_b,
           int accumulate) {
  bda_emulated::ask_for_product<T, N, kTransposed != 0, false>(
      {d, nullptr, descriptor_a, descriptor_b, accumulate});
}
template <class T, int N = 128, int kTransposed = 0>
void wgmma(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t descriptor_b) {
  bda_emulated::ask_for_product<T, N, false, kTransposed != 0>({d, a, 0, descriptor_b, 1});
}

}  // namespace bda::inline v0::cuda::ptx
