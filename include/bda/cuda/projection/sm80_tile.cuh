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

/// A warp's copies of 32 columns x 64 channels of packed C: lane 8 q + s copies the pieces at place
/// s of columns 8 q to 8 q + 7.
///
/// mma.sync gives a lane of quad place q columns 2 q and 2 q + 1 of every 8. So that it has eight
/// columns in a row, which are stored (and started from) as 16 bytes without a shuffle, column
/// 8 q + 2 j + e of 32 lies in row 8 j + 2 q + e. There piece p is at place p ^ (2 q + e) ^ 2 j:
/// ldmatrix finds the eight rows of a matrix in different banks, and what a lane copies goes to
/// one place, so that its addresses are one of each kind and constants.
struct ColumnsCopy {
  int source;            // elements from the first column
  std::uint32_t target;  // bytes from the first row

  __device__ __forceinline__ explicit ColumnsCopy(int lane)
      : source(lane / 8 * 512 + lane % 8 * 8),
        target(lane / 8 * 256 + ((lane % 8 ^ lane / 8 * 2) << 4)) {}

  /// Half of a lane's pieces, from and to its first.
  template <class T>
  static __device__ __forceinline__ void copy(int half, std::uint32_t to, const T* from,
                                              bool wanted) {
#pragma unroll
    for (int i = 4 * half; i < 4 * half + 4; ++i)
      ptx::async_load_16_if(wanted, to + i / 2 * 1024 + i % 2 * 128, from + i * 64);
  }
};

/// Where piece `piece` of the basis lies in row `row`: a quarter of a warp reads four pieces of two
/// rows that follow each other, and these must not share banks.
__device__ __forceinline__ int basis_piece(int piece, int row) { return piece ^ ((row & 1) << 2); }

/// A warp's part of a tile, kRows tokens x kColumns columns: 64 x 64 or 128 x 32.
template <class T, int kRows, int kColumns>
struct Tile {
  static constexpr int kSixteens = kRows / 16;
  static constexpr int kParts = kColumns / 32;  // of the eight columns that a lane has in a row

  float c[kSixteens][kColumns / 8][4];
  std::uint32_t a[kSixteens][4], b[2][kColumns / 16][4];  // of 16 channels; of b the next as well
  int row, column;  // of the tile, this lane's first; more rows are 8 apart, more parts 32 columns
  std::uint32_t x_offset, c_offset;  // of this lane in 128 rows of 128 swizzled bytes

  /// `thread` is the thread's place among the 128. Warps lie row by row.
  __device__ __forceinline__ explicit Tile(int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const int first_row = warp / (128 / kColumns) * kRows;
    const int first_column = warp % (128 / kColumns) * kColumns;
    row = first_row + lane / 4;
    column = first_column + lane % 4 * 8;
    x_offset = (first_row + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4);
    c_offset = (first_column + lane / 16 * 8 + lane % 8) * 128 +
               ((lane / 8 % 2 ^ lane % 8 ^ lane / 16 * 2) << 4);
  }

  /// Of x_S what 16 rows begin with.
  struct Basis {
    uint4 pieces[2][kParts];
  };
  /// `at[part]` is the address of the piece for this lane's columns in its first row.
  __device__ __forceinline__ Basis load_basis(const std::uint32_t (&at)[kParts], int i) const {
    Basis basis;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        basis.pieces[half][part] = ptx::load_16(at[part] + (2 * i + half) * 1024);
    return basis;
  }

  __device__ __forceinline__ void start_rows(const Basis& basis, int i) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint4& piece = basis.pieces[half][part];
        const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 v = ptx::unpack_pair<T>(words[j]);
          c[i][4 * part + j][2 * half] = v.x;
          c[i][4 * part + j][2 * half + 1] = v.y;
        }
      }
  }

  /// To rows 16 `begin` to 16 `end` - 1.
  __device__ __forceinline__ void add_bias(const Sm80Params<T>& p, int tile_column, int begin,
                                           int end) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int first = tile_column + column + 32 * part;
      if (first >= p.columns) break;
      const uint4 piece = __ldg(reinterpret_cast<const uint4*>(p.bias + first));
      const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = ptx::unpack_pair<T>(words[j]);
#pragma unroll
        for (int i = begin; i < end; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) c[i][4 * part + j][e] += e % 2 == 0 ? v.x : v.y;
      }
    }
  }

  /// The accumulators begin as x_S and the bias.
  __device__ __forceinline__ void start(const Sm80Params<T>& p, int tile_column,
                                        const std::uint32_t (&basis_at)[kParts]) {
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) start_rows(load_basis(basis_at, i), i);
    if (p.bias != nullptr) add_bias(p, tile_column, 0, kSixteens);
  }

  /// Operands of the first 16 channels of the chunks of x and C at this lane's addresses `x` and
  /// `columns`.
  __device__ __forceinline__ void load(std::uint32_t x, std::uint32_t columns) {
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) load_x<0>(x, i);
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) load_columns<0>(columns, j);
  }

  /// The products of channels 16 kStep to 16 kStep + 15 of a chunk, which are loaded. Those of the
  /// next step are loaded beside them, from `x` and `columns` (behind the last step another
  /// chunk's), so that no product waits for a load. `beside(i)` is called before the products of
  /// rows 16 i to 16 i + 15, for cp.async and more: loads and copies have one queue, and many at
  /// once hold up the products.
  template <int kStep, class Beside>
  __device__ __forceinline__ void multiply(std::uint32_t x, std::uint32_t columns,
                                           const Beside& beside) {
    constexpr int kNext = (kStep + 1) % 4;
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) {
      beside(i);
      if (i == 0) {
#pragma unroll
        for (int j = 0; j < kColumns / 16 - 1; ++j) load_columns<kNext>(columns, j);
      }
#pragma unroll
      for (int step = 0; step < kColumns / 8; ++step) {
        const int j = i % 2 == 0 ? step : kColumns / 8 - 1 - step;
        ptx::mma_16x8x16<T>(c[i][j], a[i], b[kStep % 2][j / 2][(j % 2) * 2],
                            b[kStep % 2][j / 2][(j % 2) * 2 + 1]);
      }
      load_x<kNext>(x, i);
      if (i == 1) load_columns<kNext>(columns, kColumns / 16 - 1);
    }
  }

  struct Output {
    T* target[kParts];         // this lane's columns in its first row
    int rows[kParts];          // how many of the rows from there on are tokens
    std::int64_t row_stride8;  // eight rows

    __device__ __forceinline__ Output(const Tile& t, const Sm80Params<T>& p, int first_token,
                                      int tile_column)
        : row_stride8(8 * p.out_token_stride) {
      const int token = first_token + t.row;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int column = tile_column + t.column + 32 * part, head = p.width.quotient(column);
        target[part] = p.out + head * p.out_head_stride + (column - head * p.width.value()) +
                       token * p.out_token_stride;
        rows[part] = column < p.columns ? p.tokens - token : 0;
      }
    }
  };

  /// 16 bytes a lane: 8 columns, which lie in one head.
  __device__ __forceinline__ void store_rows(const Output& out, int i) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
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

  __device__ __forceinline__ void store(const Sm80Params<T>& p, int first_token,
                                        int tile_column) const {
    const Output out(*this, p, first_token, tile_column);
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) store_rows(out, i);
  }

 private:
  template <int kStep>
  __device__ __forceinline__ void load_x(std::uint32_t x, int i) {
    ptx::load_matrices(a[i], (x ^ (kStep << 5)) + i * 2048);
  }
  template <int kStep>
  __device__ __forceinline__ void load_columns(std::uint32_t columns, int j) {
    ptx::load_matrices(b[kStep % 2][j], (columns ^ (kStep << 5) ^ ((j & 1) << 6)) + j * 2048);
  }
};

}  // namespace sm80

}  // namespace bda::inline v0::cuda
