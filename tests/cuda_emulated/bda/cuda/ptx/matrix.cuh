#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "bda/cuda/ptx/memory.cuh"

/// include/bda/cuda/ptx/matrix.cuh, emulated.
namespace bda_emulated {

template <class T>
float value(std::uint16_t bits) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(bits));
  else
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

struct Matrices {
  std::uint32_t address;
  std::uint32_t* registers;  // four
};

/// Between four 8 x 8 matrices, whose rows the lanes address, and four registers of each lane:
/// f(16-bit value in shared memory, register, where in the register).
template <class F>
void for_each_of_matrices(void* const* lanes, bool transposed, F f) {
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned half = 0; half < 2; ++half) {
        unsigned row = lane / 4, column = 2 * (lane % 4) + half;
        if (transposed) std::swap(row, column);
        const auto& source = *static_cast<const Matrices*>(lanes[8 * m + row]);
        check_multiple("row of a matrix at no multiple of 16:", source.address, 16);
        auto* const rows = static_cast<std::uint16_t*>(shared(source.address, 16));
        auto& mine = static_cast<const Matrices*>(lanes[lane])->registers[m];
        f(rows[column], mine, 16 * half);
      }
}
inline void read_matrices(std::uint32_t (&r)[4], std::uint32_t address, bool transposed) {
  std::uint32_t read[4] = {};
  Matrices mine{address, read};
  together(32, &mine, [=](void* const* lanes) {
    for_each_of_matrices(lanes, transposed, [](std::uint16_t from, std::uint32_t& to, unsigned at) {
      to |= std::uint32_t{from} << at;
    });
  });
  std::copy(read, read + 4, r);
}
inline void write_matrices(std::uint32_t address, std::uint32_t r0, std::uint32_t r1,
                           std::uint32_t r2, std::uint32_t r3, bool transposed) {
  std::uint32_t written[4] = {r0, r1, r2, r3};
  note_write(address, 16, threadIdx.x);
  Matrices mine{address, written};
  together(32, &mine, [=](void* const* lanes) {
    for_each_of_matrices(lanes, transposed, [](std::uint16_t& to, std::uint32_t from, unsigned at) {
      to = static_cast<std::uint16_t>(from >> at);
    });
  });
}

}  // namespace bda_emulated

namespace bda::inline v0::cuda::ptx {

inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  bda_emulated::read_matrices(r, address, false);
}
inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  bda_emulated::read_matrices(r, address, true);
}
inline void store_matrices(std::uint32_t address, std::uint32_t r0, std::uint32_t r1,
                           std::uint32_t r2, std::uint32_t r3) {
  bda_emulated::write_matrices(address, r0, r1, r2, r3, false);
}
inline void store_matrices_transposed(std::uint32_t address, std::uint32_t r0, std::uint32_t r1,
                                      std::uint32_t r2, std::uint32_t r3) {
  bda_emulated::write_matrices(address, r0, r1, r2, r3, true);
}

template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    float* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } mine{c, a, {b0, b1}};
  bda_emulated::together(32, &mine, [](void* const* lanes) {
    const auto half_of = [](std::uint32_t pair, unsigned i) {
      return bda_emulated::value<T>(static_cast<std::uint16_t>(pair >> 16 * i));
    };
    float left[16][16], right[16][8];
    for (unsigned l = 0; l < 32; ++l) {
      const Lane& lane = *static_cast<const Lane*>(lanes[l]);
      for (unsigned i = 0; i < 2; ++i) {
        for (unsigned q = 0; q < 4; ++q)
          left[l / 4 + 8 * (q % 2)][2 * (l % 4) + i + 8 * (q / 2)] = half_of(lane.a[q], i);
        for (unsigned q = 0; q < 2; ++q)
          right[2 * (l % 4) + i + 8 * q][l / 4] = half_of(lane.b[q], i);
      }
    }
    for (unsigned l = 0; l < 32; ++l)
      for (unsigned e = 0; e < 4; ++e) {
        double sum = 0;
        for (unsigned k = 0; k < 16; ++k)
          sum += double{left[l / 4 + 8 * (e / 2)][k]} * double{right[k][2 * (l % 4) + e % 2]};
        static_cast<const Lane*>(lanes[l])->c[e] += static_cast<float>(sum);
      }
  });
}

template <class T>
std::uint32_t pack_pair(float low, float high) {
  const T values[2] = {static_cast<T>(low), static_cast<T>(high)};
  std::uint32_t pair;
  std::memcpy(&pair, values, sizeof(pair));
  return pair;
}
template <class T>
float2 unpack_pair(std::uint32_t pair) {
  return {bda_emulated::value<T>(static_cast<std::uint16_t>(pair)),
          bda_emulated::value<T>(static_cast<std::uint16_t>(pair >> 16))};
}
inline std::uint32_t pack_e4m3(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

}  // namespace bda::inline v0::cuda::ptx
