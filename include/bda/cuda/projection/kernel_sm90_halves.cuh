#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/projection/kernel_sm90_stream.cuh"

/// From 320 rest channels on sm_90a: x and C stream, tiles of 128 tokens x 256 columns in two
/// halves of which one is stored while the other is still multiplied.
///
/// One persistent CTA per multiprocessor takes every gridDim.x-th tile. Roles:
///   producers, a thread for C (chunks of 128 columns x 64 channels) and one for x (the basis
///     channels of a tile's rows, then its chunks), each with a ring of its own;
///   two consumer warpgroups, 64 tokens and two accumulators of 128 columns each. Within a tile
///   both
///     halves take a chunk in turn, with x in registers, read once for both. At its end the first
///     half takes the last two chunks first, and is stored and started anew while the second one
///     takes them; then it takes the first two chunks of the next tile, while the second half is
///     stored and started. So the tensor cores have products in their queue all the time.
///
/// ptxas serialises all products (C7514) unless, wherever paths meet, the same half has products in
/// flight: loops are left at their end only, and steps that differ stand before or behind them.
namespace bda::inline v0::cuda {

namespace sm90_halves {

constexpr std::uint32_t kBlockBytes = 8192;             // 64 columns x 64 channels of C
constexpr std::uint32_t kChunkBytes = 2 * kBlockBytes;  // 128 columns of C, or 128 rows of x
constexpr std::uint32_t kWarpOutputBytes = 4096;        // 16 rows x 128 columns

struct Shared {
  static constexpr int kRowSlots = 5, kColumnSlots = 7;
  alignas(1024) std::uint8_t rows[kRowSlots][kChunkBytes];
  std::uint8_t columns[kColumnSlots][kChunkBytes];
  std::uint8_t output[8][kWarpOutputBytes];
  RingBarriers<kRowSlots> row_barriers;
  RingBarriers<kColumnSlots> column_barriers;
};

}  // namespace sm90_halves

/// `kOdd`: whether the number of chunks is odd.
template <class T, int kWidthBlocks, bool kOdd>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_halves_kernel(const __grid_constant__ Sm90StreamParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_halves;
  constexpr int kRowSlots = Shared::kRowSlots, kColumnSlots = Shared::kColumnSlots;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const std::uint32_t rows = ptx::shared_address(shared.rows);
  const std::uint32_t columns = ptx::shared_address(shared.columns);
  const std::uint32_t rows_full = ptx::shared_address(shared.row_barriers.full);
  const std::uint32_t rows_empty = ptx::shared_address(shared.row_barriers.empty);
  const std::uint32_t columns_full = ptx::shared_address(shared.column_barriers.full);
  const std::uint32_t columns_empty = ptx::shared_address(shared.column_barriers.empty);

  ptx::allow_next_kernel();
  const int turn = ptx::warp_index();
  const bool leads = ptx::elect_one();
  const auto first_block_of = [&](int tile) { return p.column_tiles.remainder(tile) * 4; };
  // The last rows of tiles overlap those before: boxes beyond the last token would take longer.
  const auto row_of = [&](int tile) {
    return min(p.column_tiles.quotient(tile) * 128, p.last_row);
  };

  if (turn < 4) {
    // ------------------------------------------------------------------ producers
    ptx::give_up_registers<24>();
    if (leads && turn < 2) {  // eight consumer warps arrive
      if (turn == 0)
        shared.column_barriers.init(8);
      else
        shared.row_barriers.init(8);
      ptx::fence_mbarrier_init();
    }
    __syncwarp();
    __syncthreads();
    if (!leads || turn > 1) return;
    if (turn == 0) {
      RingPosition<kColumnSlots> at;
      const std::int64_t block_pitch = static_cast<std::int64_t>(p.chunks) * kBlockBytes;
      const auto fetch = [&](const std::uint8_t* source, std::int64_t pitch) {
        ptx::mbarrier_wait(columns_empty + 8 * at.slot, at.parity ^ 1);
        const std::uint32_t target = columns + at.slot * kChunkBytes;
        const std::uint32_t barrier = columns_full + 8 * at.slot;
        ptx::mbarrier_arrive_expect_bytes(barrier, kChunkBytes);
        ptx::bulk_load(target, source, kBlockBytes, barrier);
        ptx::bulk_load(target + kBlockBytes, source + pitch, kBlockBytes, barrier);
        at.advance();
      };
      for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        // Blocks beyond the last one are others again; they are not stored.
        const int block = first_block_of(tile), most = p.column_blocks - 1;
        const auto* const packed = static_cast<const std::uint8_t*>(p.coefficients);
        const std::uint8_t* first = packed + block * block_pitch;
        const std::uint8_t* second = packed + min(block + 2, most) * block_pitch;
        const std::int64_t first_pitch = block + 1 <= most ? block_pitch : 0;
        const std::int64_t second_pitch = block + 3 <= most ? block_pitch : 0;
        const auto fetch_two_of_each = [&] {
          for (int i = 0; i < 2; ++i, first += kBlockBytes) fetch(first, first_pitch);
          for (int i = 0; i < 2; ++i, second += kBlockBytes) fetch(second, second_pitch);
        };
        fetch_two_of_each();
#pragma unroll 1
        for (int chunk = 2; chunk < p.chunks - 2; ++chunk) {
          fetch(first, first_pitch);
          fetch(second, second_pitch);
          first += kBlockBytes;
          second += kBlockBytes;
        }
        fetch_two_of_each();
      }
    } else {
      ptx::wait_for_previous_kernel();
      RingPosition<kRowSlots> at;
      const auto fetch = [&](int channel, int row) {
        ptx::mbarrier_wait(rows_empty + 8 * at.slot, at.parity ^ 1);
        ptx::mbarrier_arrive_expect_bytes(rows_full + 8 * at.slot, kChunkBytes);
        ptx::tensor_load(rows + at.slot * kChunkBytes, p.x, rows_full + 8 * at.slot, channel, row);
        at.advance();
      };
      for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        const int row = row_of(tile);
#pragma unroll 1
        for (int i = 0; i < kWidthBlocks; ++i) fetch(p.basis_begin + 64 * i, row);
#pragma unroll 1
        for (int chunk = 0; chunk < p.chunks; ++chunk)
          fetch(chunk * 64 < p.basis_begin ? chunk * 64 : (chunk + kWidthBlocks) * 64, row);
      }
    }
  } else {
    // ------------------------------------------------------------------ consumers
    if (turn == 4 && leads) ptx::prefetch_tensor_map(p.x);
    if (turn == 5 && leads) ptx::prefetch_tensor_map(p.out);
    __syncthreads();
    ptx::claim_registers<240>();
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = turn - 4;
    // Fragment addresses: row l % 16 of the warp's 16, 16-byte piece 2 j + l / 16 under the
    // swizzle; the 16 columns j of a block of 64 are reached by XOR with 32 j.
    const std::uint32_t fragment = (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4);
    const std::uint32_t output = ptx::shared_address(shared.output[warp]) + fragment;
    float first_half[64], second_half[64];
    RingPosition<kRowSlots> row_at;
    RingPosition<kColumnSlots> column_at;
    int column_release = 0;
    const auto release_columns = [&] {
      if (leads) ptx::mbarrier_arrive(columns_empty + 8 * column_release);
      if (++column_release == kColumnSlots) column_release = 0;
    };
    const auto release_rows = [&](int slot) {
      if (leads) ptx::mbarrier_arrive(rows_empty + 8 * slot);
    };
    std::uint32_t x[2][4][4];  // this warp's 16 rows of two chunks, 16 channels each
    const auto load_rows = [&](std::uint32_t(&to)[4][4]) {
      ptx::mbarrier_wait(rows_full + 8 * row_at.slot, row_at.parity);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ptx::load_matrices(to[k],
                           (rows + row_at.slot * kChunkBytes + warp * 2048 + fragment) ^ (k << 5));
    };
    // The products of a half and one chunk, x from registers.
    const auto multiply = [&](float(&c)[64], const std::uint32_t(&from)[4][4]) {
      ptx::mbarrier_wait(columns_full + 8 * column_at.slot, column_at.parity);
      ptx::wgmma_fence();
      const std::uint64_t b = ptx::matrix_descriptor(columns + column_at.slot * kChunkBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k) ptx::wgmma<T>(c, from[k], b + 2 * k);
      ptx::wgmma_commit();
      column_at.advance();
    };
    // Likewise, with a chunk that nobody had in registers; and its slot is given back.
    const auto multiply_new = [&](float(&c)[64], std::uint32_t(&to)[4][4]) {
      load_rows(to);
      multiply(c, to);
      release_rows(row_at.slot);  // its values are in use, so that no ldmatrix is on its way
      row_at.advance();
    };
    // Likewise, from shared memory: the last chunk.
    const auto multiply_last = [&](float(&c)[64], int row_slot) {
      ptx::mbarrier_wait(columns_full + 8 * column_at.slot, column_at.parity);
      ptx::wgmma_fence();
      const std::uint64_t a =
          ptx::matrix_descriptor(rows + row_slot * kChunkBytes + (turn >= 8 ? kBlockBytes : 0));
      const std::uint64_t b = ptx::matrix_descriptor(columns + column_at.slot * kChunkBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k) ptx::wgmma<T, 128>(c, a + 2 * k, b + 2 * k, 1);
      ptx::wgmma_commit();
      column_at.advance();
    };
    // Once all but the last group are done.
    const auto wait_and_release = [&] {
      ptx::wgmma_wait<1>();
      release_columns();
    };
    int basis_slot = 0;  // the first of kWidthBlocks
    const auto slot_of_basis = [&](int i) {
      const int slot = basis_slot + i;
      return slot < kRowSlots ? slot : slot - kRowSlots;
    };
    const auto await_basis = [&] {
      basis_slot = row_at.slot;
#pragma unroll
      for (int i = 0; i < kWidthBlocks; ++i) {
        ptx::mbarrier_wait(rows_full + 8 * row_at.slot, row_at.parity);
        row_at.advance();
      }
    };
    const auto release_basis = [&] {  // once its values are in use
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kWidthBlocks; ++i) release_rows(slot_of_basis(i));
    };
    // 64 columns of what a half starts from.
    const auto start = [&](float(&c)[64], int block, int i) {
      const std::uint32_t from =
          rows + slot_of_basis(i % kWidthBlocks) * kChunkBytes + warp * 2048 + fragment;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t basis[4];
        ptx::load_matrices(basis, from ^ (j << 5));
        unpack_fragment<T>(basis, &c[32 * i + 8 * j]);
      }
      if (p.bias != nullptr && block + i < p.column_blocks) {
#pragma unroll
        for (int j = 8 * i; j < 8 * i + 8; ++j) {
          const float2 v = ptx::unpack_pair<T>(__ldg(reinterpret_cast<const std::uint32_t*>(
              static_cast<const T*>(p.bias) + block * 64 + 8 * j + 2 * (lane & 3))));
          c[4 * j] += v.x;
          c[4 * j + 1] += v.y;
          c[4 * j + 2] += v.x;
          c[4 * j + 3] += v.y;
        }
      }
    };
    // Stores a half, from block `block` on.
    const auto store = [&](const float(&c)[64], int row, int block) {
      if (leads) ptx::bulk_wait_read<0>();  // what was in the buffer has left
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* v = &c[8 * j];
        store_rounded<T>((output ^ ((j % 4) << 5)) + j / 4 * 2048, v);
      }
      ptx::fence_proxy_async();
      __syncwarp();
      if (leads && row < p.tokens) {
        const std::uint32_t from = ptx::shared_address(shared.output[warp]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (block + i < p.column_blocks)
            ptx::tensor_store(p.out, from + i * 2048, 0, row, (block + i) & (kWidthBlocks - 1),
                              (block + i) >> (kWidthBlocks - 1), ptx::kEvictFirst);
        ptx::bulk_commit();
      }
    };

    int tile = static_cast<int>(blockIdx.x);
    int block = first_block_of(tile), row = row_of(tile) + warp * 16;
    int row_before = 0, block_before = 0;  // of the tile that is stored
    int last_slot = 0;                     // of its last chunk of x
    const auto step = [&](std::uint32_t(&to)[4][4]) {
      multiply_new(first_half, to);
      wait_and_release();
      multiply(second_half, to);
      wait_and_release();
    };
    // Two chunks of the first half, while the second half of the tile before is stored; then of the
    // second one.
    const auto begin_tile = [&](bool is_first) {
      if (is_first) {
        start(second_half, block + 2, 0);
        start(second_half, block + 2, 1);
        release_basis();
      }
      multiply_new(first_half, x[0]);
      if (!is_first) {
        wait_and_release();
        release_rows(last_slot);
        ptx::delivered(second_half);
      }
      multiply_new(first_half, x[1]);
      if (!is_first) {
        store(second_half, row_before, block_before + 2);
        start(second_half, block + 2, 0);
      }
      wait_and_release();
      if (!is_first) {
        start(second_half, block + 2, 1);
        release_basis();
      }
      multiply(second_half, x[0]);
      wait_and_release();
      multiply(second_half, x[1]);
      wait_and_release();
      step(x[0]);
    };
    // Both halves; and the last two chunks of the first half, then of the second.
    const auto multiply_rest = [&] {
      for (int chunk = 3; chunk < p.chunks - 3; chunk += 2) {
        step(x[1]);
        step(x[0]);
      }
      if (!kOdd) step(x[1]);
      multiply_new(first_half, x[kOdd ? 1 : 0]);
      wait_and_release();
      ptx::mbarrier_wait(rows_full + 8 * row_at.slot, row_at.parity);
      last_slot = row_at.slot;
      row_at.advance();
      multiply_last(first_half, last_slot);
      wait_and_release();
      multiply(second_half, x[kOdd ? 1 : 0]);
      wait_and_release();
      multiply_last(second_half, last_slot);
    };
    await_basis();
#pragma unroll
    for (int i = 0; i < 2; ++i) start(first_half, block, i);
    begin_tile(true);
    for (tile += gridDim.x; tile < p.tiles; tile += gridDim.x) {
      multiply_rest();
      ptx::delivered(first_half);
      row_before = row;
      block_before = block;
      block = first_block_of(tile);
      row = row_of(tile) + warp * 16;
      store(first_half, row_before, block_before);
      await_basis();
      start(first_half, block, 0);
      wait_and_release();
      start(first_half, block, 1);
      begin_tile(false);
    }
    multiply_rest();
    ptx::wgmma_wait<0>();
    ptx::delivered(first_half);
    ptx::delivered(second_half);
    store(first_half, row, block);
    store(second_half, row, block + 2);
    if (leads) ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda
