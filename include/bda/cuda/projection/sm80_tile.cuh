#pragma once

#include <cstdint>

#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// What the kernels of sm_80 have in common: a tile of 128 tokens x 128 columns by four warps and
/// mma.sync.
namespace bda::inline v0::cuda {

template <class T>
struct Sm80Params {
  const T* x;             // [tokens, kv_dim]
  const T* coefficients;  // packed
  const T* bias;          // [heads, width] or null
  T* out;                 // [tokens, heads, width]
  std::int64_t x_stride;
  std::int64_t out_token_stride, out_head_stride;
  int tokens;
  int width;
  int rest;
  int chunks;         // of 64 rest channels, the last one padded
  int column_blocks;  // of 64 output columns, the last one padded
  int columns;
  int basis_begin;
  int row_tiles, column_tiles, tiles;
};

namespace sm80 {

constexpr int kThreads = 128;          // that compute a tile of 128 x 128
constexpr int kTileBytes = 128 * 128;  // 128 rows (or columns) x 64 channels

/// Four warps with a tile of 128 tokens x 128 columns: warp w has tokens 64 (w / 2) and columns 64
/// (w % 2) on. `thread` is the thread's place among the 128.
template <class T>
struct Tile {
  float c[4][8][4];
  int warp, lane, a_row, a_piece, b_row, b_piece;

  __device__ __forceinline__ explicit Tile(int thread)
      : warp(thread / 32),
        lane(thread % 32),
        a_row(warp / 2 * 64 + (lane & 15)),
        a_piece(lane >> 4),
        b_row(warp % 2 * 64 + (lane & 7) + ((lane >> 4) << 3)),
        b_piece((lane >> 3) & 1) {}

  /// The accumulators begin as x_S: `basis_at(p)` is the address of piece p (8 columns, of this
  /// warp's 8) in this lane's row.
  template <class BasisAt>
  __device__ __forceinline__ void start(const BasisAt& basis_at) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t b[4];
        ptx::load_matrices(b, basis_at(2 * j + a_piece) + i * 2048);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 v = ptx::unpack_pair<T>(b[e]);
          c[i][2 * j + e / 2][2 * (e % 2)] = v.x;
          c[i][2 * j + e / 2][2 * (e % 2) + 1] = v.y;
        }
      }
    }
  }

  __device__ __forceinline__ void add_bias(const T* bias, int first_column, int columns) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = first_column + j * 8 + 2 * (lane & 3);
      if (column >= columns) break;
      const float2 v =
          ptx::unpack_pair<T>(__ldg(reinterpret_cast<const std::uint32_t*>(bias + column)));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] += e % 2 == 0 ? v.x : v.y;
    }
  }

  /// 64 channels: of x at `rows`, of C at `columns`, both 128 rows of 128 swizzled bytes.
  /// `fetch_next` is called once the first operands are on their way.
  template <class Fetch>
  __device__ __forceinline__ void multiply(std::uint32_t rows, std::uint32_t columns,
                                           const Fetch& fetch_next) {
    const std::uint32_t x = rows + a_row * 128, w = columns + b_row * 128;
    std::uint32_t a[2][4][4], b[2][4][4];  // of these 16 channels and of the next
    const auto load = [&](int k) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ptx::load_matrices(a[k % 2][i], x + i * 2048 + (((2 * k + a_piece) ^ (lane & 7)) << 4));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        ptx::load_matrices(b[k % 2][j], w + j * 2048 + (((2 * k + b_piece) ^ (lane & 7)) << 4));
    };
    load(0);
    fetch_next();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < 3) load(k + 1);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          ptx::mma_16x8x16<T>(c[i][j], a[k % 2][i], b[k % 2][j / 2][(j % 2) * 2],
                              b[k % 2][j / 2][(j % 2) * 2 + 1]);
    }
  }

  /// 16 bytes a lane: 8 columns, which lie in one head.
  __device__ __forceinline__ void store(const Sm80Params<T>& p, int first_token,
                                        int first_column) const {
    T* target[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int column = first_column + part * 32 + (lane & 3) * 8;
      target[part] = column < p.columns
                         ? p.out + column / p.width * p.out_head_stride + column % p.width
                         : nullptr;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = first_token + (warp / 2) * 64 + i * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          std::uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            words[j] =
                ptx::pack_pair<T>(c[i][4 * part + j][2 * half], c[i][4 * part + j][2 * half + 1]);
          ptx::transpose_quad(words);
          if (token < p.tokens && target[part] != nullptr)
            *reinterpret_cast<uint4*>(target[part] + token * p.out_token_stride) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
  }
};

}  // namespace sm80

}  // namespace bda::inline v0::cuda
