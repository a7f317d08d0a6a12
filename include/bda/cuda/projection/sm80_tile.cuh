#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/divisor.hpp"
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
  Divisor width;
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

/// Where 128 threads copy packed C to: thread t moves pieces t and t + 128 of every quarter (32
/// columns x 64 channels).
///
/// mma.sync gives a lane of quad place q columns 2 q and 2 q + 1 of every 8. So that it has eight
/// columns in a row, which are stored (and started from) as 16 bytes without a shuffle, column
/// 8 q + 2 j + e of 32 lies in row 8 j + 2 q + e, in the swizzle of that row.
struct ColumnsTarget {
  std::uint32_t even, odd;  // of the first piece and of the second

  ColumnsTarget() = default;
  __device__ __forceinline__ explicit ColumnsTarget(int thread) {
    const int column = thread / 8;  // of the first piece; 16 more of the second
    const int row = (column / 2 % 4) * 8 + (column / 8) * 2 + column % 2;
    even = row * 128 + ((thread % 8 ^ (column & 7) ^ (row & 7)) << 4);
    odd = (even ^ 64) + 512;  // four rows further
  }

  /// In the chunk that begins at `chunk`.
  __device__ __forceinline__ ColumnsTarget at(std::uint32_t chunk) const {
    ColumnsTarget moved;
    moved.even = chunk + even;
    moved.odd = chunk + odd;
    return moved;
  }

  /// The quarter `offset` bytes on; `source` is the second piece, because cp.async has room for an
  /// offset of 2 KB back to the first.
  template <class T>
  __device__ __forceinline__ void copy(std::uint32_t offset, const T* source, bool wanted) const {
    ptx::async_load_16_if(wanted, even + offset, source - 1024);
    ptx::async_load_16_if(wanted, odd + offset, source);
  }
};

/// Where piece `piece` of the basis lies in row `row`: a quarter of a warp reads four pieces of two
/// rows that follow each other, and these must not share banks.
__device__ __forceinline__ int basis_piece(int piece, int row) { return piece ^ ((row & 1) << 2); }

/// Four warps with a tile of 128 tokens x 128 columns: warp w has tokens 64 (w / 2) and columns 64
/// (w % 2) on. `thread` is the thread's place among the 128.
template <class T>
struct Tile {
  float c[4][8][4];
  std::uint32_t a[2][4][4], b[2][4][4];  // of 16 channels and of the next
  int warp, lane;
  std::uint32_t x_offset, c_offset;  // of this lane in 128 rows of 128 swizzled bytes

  __device__ __forceinline__ explicit Tile(int thread) : warp(thread / 32), lane(thread % 32) {
    const int row = warp / 2 * 64 + (lane & 15);
    const int column = warp % 2 * 64 + (lane & 7) + ((lane >> 4) << 3);
    x_offset = row * 128 + ((lane >> 4 ^ (lane & 7)) << 4);
    c_offset = column * 128 + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
  }

  /// Of the tile whose columns begin at `tile_column`: the first of the 8 that this lane has in
  /// `part` (of two).
  __device__ __forceinline__ int column_of(int tile_column, int part) const {
    return tile_column + warp % 2 * 64 + part * 32 + (lane & 3) * 8;
  }

  /// This lane's first row of the tile; the others are 8 apart.
  __device__ __forceinline__ int row() const { return warp / 2 * 64 + lane / 4; }

  /// The accumulators begin as x_S: `basis_at(part)` is the address of the piece for this lane's
  /// columns in its first row.
  template <class BasisAt>
  __device__ __forceinline__ void start(const BasisAt& basis_at) {
    const std::uint32_t at[2] = {basis_at(0), basis_at(1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 pieces[2][2];
      load_basis(pieces, at, i);
      start_rows(pieces, i);
    }
  }

  __device__ __forceinline__ void add_bias(const T* bias, int tile_column, int columns) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int column = column_of(tile_column, part);
      if (column >= columns) break;
      const uint4 piece = __ldg(reinterpret_cast<const uint4*>(bias + column));
      const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = ptx::unpack_pair<T>(words[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) c[i][4 * part + j][e] += e % 2 == 0 ? v.x : v.y;
      }
    }
  }

  /// Operands of channels 16 k to 16 k + 15 of the chunks of x and C at this lane's addresses `x`
  /// and `columns`.
  __device__ __forceinline__ void load(int k, std::uint32_t x, std::uint32_t columns) {
    load_half(k, x, columns, 0);
    load_half(k, x, columns, 1);
  }

  /// 64 channels, whose first 16 are loaded. `next` waits for the chunk that follows and moves `x`
  /// and `columns` there; its first 16 channels are loaded beside the products of these last 16, so
  /// that no product waits for them behind a barrier. `copy(k)`, for cp.async, is called among the
  /// products too: loads and copies have one queue, and many at once hold up the products.
  template <class Next, class Copy>
  __device__ __forceinline__ void multiply(std::uint32_t& x, std::uint32_t& columns,
                                           const Next& next, const Copy& copy) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k == 3) next();
      load_half((k + 1) % 4, x, columns, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
          const int j = i % 2 == 0 ? step : 7 - step;
          ptx::mma_16x8x16<T>(c[i][j], a[k % 2][i], b[k % 2][j / 2][(j % 2) * 2],
                              b[k % 2][j / 2][(j % 2) * 2 + 1]);
        }
        if (i == 0) copy(k);
        if (i == 1) load_half((k + 1) % 4, x, columns, 1);
      }
    }
  }

  __device__ __forceinline__ void store(const Sm80Params<T>& p, int first_token,
                                        int tile_column) const {
    const Output out(*this, p, first_token, tile_column);
#pragma unroll
    for (int i = 0; i < 4; ++i) store_rows(out, i);
  }

  /// `store` and then `start`, by rows: one hides what the other waits for.
  template <class BasisAt>
  __device__ __forceinline__ void store_and_start(const Sm80Params<T>& p, int first_token,
                                                  int tile_column, const BasisAt& basis_at) {
    const std::uint32_t at[2] = {basis_at(0), basis_at(1)};
    const Output out(*this, p, first_token, tile_column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 pieces[2][2];
      load_basis(pieces, at, i);
      store_rows(out, i);
      start_rows(pieces, i);
    }
  }

 private:
  /// The first half is what the first products need.
  __device__ __forceinline__ void load_half(int k, std::uint32_t x, std::uint32_t columns,
                                            int half) {
    const auto load_x = [&](int i) { ptx::load_matrices(a[k % 2][i], (x ^ (k << 5)) + i * 2048); };
    const auto load_columns = [&](int j) {
      ptx::load_matrices(b[k % 2][j], (columns ^ (k << 5)) + j * 2048);
    };
    if (half == 0) {
      load_x(0);
#pragma unroll
      for (int j = 0; j < 3; ++j) load_columns(j);
    } else {
      load_columns(3);
#pragma unroll
      for (int i = 1; i < 4; ++i) load_x(i);
    }
  }

  struct Output {
    T* target[2];              // this lane's columns in its first row
    int rows[2];               // how many of the rows from there on are tokens
    std::int64_t row_stride8;  // eight rows

    __device__ __forceinline__ Output(const Tile& t, const Sm80Params<T>& p, int first_token,
                                      int tile_column)
        : row_stride8(8 * p.out_token_stride) {
      const int token = first_token + t.row();
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int column = t.column_of(tile_column, part), head = p.width.quotient(column);
        target[part] = p.out + head * p.out_head_stride + (column - head * p.width.value()) +
                       token * p.out_token_stride;
        rows[part] = column < p.columns ? p.tokens - token : 0;
      }
    }
  };

  __device__ __forceinline__ void load_basis(uint4 (&pieces)[2][2], const std::uint32_t (&at)[2],
                                             int i) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        pieces[half][part] = ptx::load_16(at[part] + (2 * i + half) * 1024);
  }

  __device__ __forceinline__ void start_rows(const uint4 (&pieces)[2][2], int i) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint4& piece = pieces[half][part];
        const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 v = ptx::unpack_pair<T>(words[j]);
          c[i][4 * part + j][2 * half] = v.x;
          c[i][4 * part + j][2 * half + 1] = v.y;
        }
      }
  }

  /// 16 bytes a lane: 8 columns, which lie in one head.
  __device__ __forceinline__ void store_rows(const Output& out, int i) const {
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          words[j] =
              ptx::pack_pair<T>(c[i][4 * part + j][2 * half], c[i][4 * part + j][2 * half + 1]);
        ptx::store_16_if((2 * i + half) * 8 < out.rows[part],
                         out.target[part] + (2 * i + half) * out.row_stride8,
                         make_uint4(words[0], words[1], words[2], words[3]));
      }
  }
};

}  // namespace sm80

}  // namespace bda::inline v0::cuda
