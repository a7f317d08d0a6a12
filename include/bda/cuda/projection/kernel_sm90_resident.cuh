#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/divisor.hpp"
#include "bda/cuda/pipeline/even_ranges.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Width 128 over 384 rest channels (DeepSeek's latent) on sm_90a: x stays on the multiprocessor
/// while the heads pass by.
///
/// One persistent CTA per multiprocessor. Its work is a range of units, a unit being one head for a
/// block of 128 tokens: 128 x 128 of the output. Roles:
///   producers, two threads (three for the opening): one fills a ring with C in chunks of 128
///     columns x 64 channels, and with the chunks of x that the consumers keep in registers; the
///     other brings the basis channels of a row block and its first chunk of x into shared memory,
///     as soon as those of the row block before have made way;
///   two consumer warpgroups, 64 tokens each, with two accumulators used by turns: while the
///     products of one unit run, the finished accumulator of the unit before is stored, piece by
///     piece between them, and at once refilled with the basis channels, so that the identity part
///     of the product costs no operation. Of x, five sixths are wgmma operands in registers (all of
///     it, and the compiler serialises every wgmma for want of registers).
/// Nothing stops between two units, nor between two row blocks: the first products of new rows
/// follow the last of the old ones in the queue of the tensor cores.
namespace bda::inline v0::cuda {

struct Sm90ResidentParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of 128 rows x 64 channels, 128-byte swizzle
  CUtensorMap out;           // [heads, 2, tokens, 64], boxes of both halves x 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, 128]
  int tokens;
  int last_row;  // the most that a row block begins with: `last_row_of`
  int basis_begin;
  Divisor heads;         // units of a row block
  TileOrder order;       // of the CTAs' ranges: row blocks x ranges, or all in one row
  EvenRanges ranges;     // of the units of such a row
  std::uint64_t policy;  // of L2 for C
};

namespace sm90_resident {

constexpr int kThreads = 384;
constexpr int kChunks = 6;                              // of 64 rest channels
constexpr std::uint32_t kBlockBytes = 8192;             // 64 columns x 64 channels of C
constexpr std::uint32_t kChunkBytes = 2 * kBlockBytes;  // 128 columns of C, or 128 rows of x
constexpr std::uint32_t kWarpOutputBytes = 4096;        // 16 rows x 128 columns

struct Shared {
  static constexpr int kSlots = 9;
  alignas(1024) std::uint8_t ring[kSlots][kChunkBytes];
  std::uint8_t output[8][kWarpOutputBytes];
  std::uint8_t basis[2][kChunkBytes];
  std::uint8_t rows[kChunkBytes];  // the first chunk of x, read from here
  RingBarriers<kSlots> barriers;
  std::uint64_t rows_full, rows_empty, basis_full, basis_empty;
};

}  // namespace sm90_resident

template <class T, bool kBias>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_resident_kernel(const __grid_constant__ Sm90ResidentParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_resident;
  constexpr int kSlots = Shared::kSlots;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const std::uint32_t ring = ptx::shared_address(shared.ring);
  const std::uint32_t rows = ptx::shared_address(shared.rows);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);
  const std::uint32_t rows_full = ptx::shared_address(&shared.rows_full);
  const std::uint32_t rows_empty = ptx::shared_address(&shared.rows_empty);
  const std::uint32_t basis_full = ptx::shared_address(&shared.basis_full);
  const std::uint32_t basis_empty = ptx::shared_address(&shared.basis_empty);

  ptx::allow_next_kernel();
  const int turn = ptx::warp_index();
  const bool leads = ptx::elect_one();
  const TileOrder::Place place = p.order.at(blockIdx.x, blockIdx.y);
  const EvenRanges::Range units = p.ranges.at(place.column, place.row * p.heads.value());
  const int first = units.begin, last = units.end;
  const auto row_of = [&](int block) { return min(block * 128, p.last_row); };

  if (turn < 4) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    const auto coefficients_of = [&](int head) {
      return static_cast<const std::uint8_t*>(p.coefficients) +
             static_cast<std::int64_t>(head) * (2 * kChunks * kBlockBytes);
    };
    const auto fetch_coefficients = [&](int slot, const std::uint8_t* source) {
      const std::uint32_t target = ring + slot * kChunkBytes, barrier = full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, kChunkBytes);
      ptx::bulk_load(target, source, kBlockBytes, barrier, p.policy);
      ptx::bulk_load(target + kBlockBytes, source + kChunks * kBlockBytes, kBlockBytes, barrier,
                     p.policy);
    };
    const auto fetch_x = [&](std::uint32_t target, std::uint32_t barrier, int chunk, int row) {
      ptx::mbarrier_arrive_expect_bytes(barrier, kChunkBytes);
      ptx::tensor_load(target, p.x, barrier,
                       chunk * 64 < p.basis_begin ? chunk * 64 : chunk * 64 + 128, row);
    };
    const auto fetch_basis = [&](int row) {
      ptx::mbarrier_arrive_expect_bytes(basis_full, 2 * kChunkBytes);
      for (int half = 0; half < 2; ++half)
        ptx::tensor_load(ptx::shared_address(shared.basis[half]), p.x, basis_full,
                         p.basis_begin + 64 * half, row);
    };

    // The ring is filled in this order: where rows are new, C and x by turns (C0 x1 C1 .. x5 C5),
    // else C. Of the first rows only C0, which does not depend on the kernel before, leaves ahead
    // of x: what L2 holds queues behind what it has to ask memory for.
    int row_block = p.heads.quotient(first), head = first - row_block * p.heads.value();
    if (leads) {
      if (turn == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
        fetch_coefficients(0, coefficients_of(head));
#pragma unroll 1
        for (int slot = 0; slot < kSlots; ++slot) {
          if (slot > 0) ptx::mbarrier_init(full + 8 * slot, 1);
          ptx::mbarrier_init(empty + 8 * slot, 8);  // one arrival per consumer warp
        }
        ptx::fence_mbarrier_init();
      } else if (turn == 1) {
        ptx::mbarrier_init(rows_full, 1);
        ptx::mbarrier_init(rows_empty, 8);
        ptx::fence_mbarrier_init();
        ptx::wait_for_previous_kernel();
        fetch_x(rows, rows_full, 0, row_of(row_block));
      }
    }
    // (A third case above would become a table of addresses, which is cold.)
    if (turn == 2 && leads) {
      ptx::mbarrier_init(basis_full, 1);
      ptx::mbarrier_init(basis_empty, 8);
      ptx::fence_mbarrier_init();
      ptx::wait_for_previous_kernel();
      fetch_basis(row_of(row_block));
      ptx::prefetch_tensor_map(p.out);
    }
    __syncwarp();
    __syncthreads();
    if (turn > 1 || !leads) return;
    ptx::wait_for_previous_kernel();
    if (turn == 1) {  // basis and first chunk of the CTA's further row blocks
      std::uint32_t parity = 0;
      for (int next = (row_block + 1) * p.heads.value(); next < last; next += p.heads.value()) {
        const int row = row_of(++row_block);
        ptx::mbarrier_wait(basis_empty, parity);
        fetch_basis(row);
        // What comes through the ring is asked into L2 while there is a unit left to do.
#pragma unroll 1
        for (int i = 0; i < kChunks + 2; ++i) ptx::tensor_prefetch(p.x, 64 * i, row);
        ptx::mbarrier_wait(rows_empty, parity);
        fetch_x(rows, rows_full, 0, row);
        parity ^= 1;
      }
      return;
    }
    RingPosition<kSlots> at{1, 0};
    bool rows_are_new = true;
    for (int unit = first; unit < last; ++unit) {
      const std::uint8_t* source = coefficients_of(head);
      const auto fetch_next = [&] {
        ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
        fetch_coefficients(at.slot, source);
        source += kBlockBytes;
        at.advance();
      };
      if (rows_are_new) {
        const int row = row_of(row_block);
        if (unit > first)
          fetch_next();
        else
          source += kBlockBytes;
#pragma unroll 1
        for (int chunk = 1; chunk < kChunks; ++chunk) {
          ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
          fetch_x(ring + at.slot * kChunkBytes, full + 8 * at.slot, chunk, row);
          at.advance();
          fetch_next();
        }
      } else {  // the loop that sets the pace
#pragma unroll
        for (int i = 0; i < kChunks; ++i) fetch_next();
      }
      rows_are_new = false;
      if (++head == p.heads.value()) {
        head = 0;
        ++row_block;
        rows_are_new = true;
      }
    }
  } else {
    // ------------------------------------------------------------------ consumers
    if (turn == 4 && leads) ptx::prefetch_tensor_map(p.x);
    __syncthreads();
    ptx::claim_registers<240>();
    std::uint32_t a[4 * (kChunks - 1)][4];  // this warp's 16 rows of x, 16 channels each
    float even[64], odd[64];                // accumulators of alternate units
    RingPosition<kSlots> at;
    int release_slot = 0;
    std::uint32_t rows_parity = 0, basis_parity = 0;
    bool next_is_full = false;

    // Fragment addresses: row l % 16 of the warp, 16-byte piece 2 j + l / 16 under the swizzle; the
    // 16 columns j are reached by XOR with 32 j.
    std::uint32_t fragment, output_row;
    {
      const std::uint32_t t = ptx::thread_index() - 128;
      const std::uint32_t piece = (((t >> 4) & 1) ^ (t & 7)) << 4;
      fragment = ((t >> 5) * 16 + (t & 15)) * 128 + piece;
      output_row =
          ptx::shared_address(shared.output) + (t >> 5) * kWarpOutputBytes + (t & 15) * 128 + piece;
    }
    const std::uint32_t basis_row = ptx::shared_address(shared.basis) + fragment;
    const auto release_one = [&] {
      if (leads) ptx::mbarrier_arrive(empty + 8 * release_slot);
      if (++release_slot == kSlots) release_slot = 0;
    };
    const auto next_head = [&](int c) { return c + 1 == p.heads.value() ? 0 : c + 1; };

    int row_block = p.heads.quotient(first);
    int head = first - row_block * p.heads.value(), unit = first;  // that is multiplied
    bool rows_are_new = true;
    int stored_row = p.tokens, stored_head = head;  // the unit before: none yet

    // Queues the products of one chunk, and looks ahead whether the next one has come.
    const auto multiply = [&](float(&c)[64], int chunk) {
      if (rows_are_new) {
        if (chunk == 0) {
          ptx::mbarrier_wait(rows_full, rows_parity);
        } else {
          if (!next_is_full) ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
#pragma unroll
          for (int k = 0; k < 4; ++k)
            ptx::load_matrices(a[(chunk - 1) * 4 + k],
                               (ring + at.slot * kChunkBytes + fragment) ^ (k << 5));
          at.advance();
          next_is_full = false;
        }
      }
      if (!next_is_full) ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
      ptx::wgmma_fence();
      const std::uint64_t b = ptx::matrix_descriptor(ring + at.slot * kChunkBytes);
      if (chunk == 0) {
        const std::uint64_t x = ptx::matrix_descriptor(rows + (turn >= 8 ? kBlockBytes : 0));
#pragma unroll
        for (int k = 0; k < 4; ++k) ptx::wgmma<T, 128>(c, x + 2 * k, b + 2 * k, 1);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) ptx::wgmma<T>(c, a[(chunk - 1) * 4 + k], b + 2 * k);
      }
      ptx::wgmma_commit();
      at.advance();
      next_is_full = ptx::mbarrier_test_wait(full + 8 * at.slot, at.parity);
    };
    // After the products of `chunk` are queued: those of the chunk before are done.
    const auto release = [&](int chunk, bool makes_way) {
      ptx::wgmma_wait<1>();
      release_one();
      // A chunk for the registers: its values are in use, so that no ldmatrix is on its way.
      if (rows_are_new) release_one();
      if (makes_way && chunk == 1 && leads) ptx::mbarrier_arrive(rows_empty);
    };

    std::uint32_t basis[2][4];
    const auto load_basis = [&](int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        ptx::load_matrices(basis[i], (basis_row ^ ((j & 3) << 5)) + (j >> 2) * kChunkBytes);
      }
    };
    // 32 columns of what an accumulator starts from.
    const auto start = [&](float(&c)[64], int piece, int head) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float2 v = ptx::unpack_pair<T>(basis[i][e]);
          if constexpr (kBias) {
            const int column = 16 * j + 8 * (e >> 1) + 2 * (ptx::thread_index() & 3);
            const float2 b = ptx::unpack_pair<T>(__ldg(reinterpret_cast<const std::uint32_t*>(
                static_cast<const T*>(p.bias) + head * 128 + column)));
            v.x += b.x;
            v.y += b.y;
          }
          c[8 * j + 2 * e] = v.x;
          c[8 * j + 2 * e + 1] = v.y;
        }
      }
    };
    // Before the first unit of a row block is started, and after the last one.
    const auto await_basis = [&] {
      ptx::mbarrier_wait(basis_full, basis_parity);
      basis_parity ^= 1;
    };
    const auto release_basis = [&] {
      __syncwarp();
      if (leads) ptx::mbarrier_arrive(basis_empty);
    };
    const auto begin_store = [&] {
      if (leads) ptx::bulk_wait_read<0>();
      __syncwarp();
    };
    const auto store_piece = [&](float(&c)[64], int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        const float* v = &c[8 * j];
        store_rounded<T>((output_row ^ ((j & 3) << 5)) + (j >> 2) * 2048, v);
      }
    };
    const auto end_store = [&] {
      ptx::fence_proxy_async();
      __syncwarp();
      const int warp = turn - 4, row = stored_row + 16 * warp;
      if (leads && row < p.tokens) {
        ptx::tensor_store(p.out, ptx::shared_address(shared.output[warp]), 0, row, 0, stored_head,
                          ptx::kEvictFirst);
        ptx::bulk_commit();
      }
    };
    // One unit into `c`; meanwhile the unit before, in `done`, is stored and its accumulator
    // started for the unit after.
    const auto multiply_unit = [&](float(&c)[64], float(&done)[64]) {
      const int following = next_head(head);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        multiply(c, chunk);
        if (chunk == 0 && following == 0 && unit + 1 < last) await_basis();
        if (chunk < 4) load_basis(chunk);
        if (chunk == 0) {  // the last products of the unit before are now complete
          ptx::wgmma_wait<1>();
          if (unit > first) release_one();
          ptx::delivered(done);
          begin_store();
        }
        if (chunk < 4) {
          store_piece(done, chunk);
          start(done, chunk, following);
        }
        if (chunk == 4) {
          if (next_head(following) == 0) release_basis();
          end_store();
        }
        if (chunk > 0) release(chunk, following == 0);
      }
      stored_row = row_of(row_block);
      stored_head = head;
      head = following;
      rows_are_new = false;
      if (head == 0) {
        ++row_block;
        rows_are_new = true;
        rows_parity ^= 1;
      }
      ++unit;
    };
    const auto last_store = [&](float(&done)[64]) {
      ptx::wgmma_wait<0>();
      ptx::delivered(done);
      begin_store();
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) store_piece(done, piece);
      end_store();
    };

    await_basis();
#pragma unroll
    for (int piece = 0; piece < 4; ++piece) {
      load_basis(piece);
      start(even, piece, head);
    }
    if (next_head(head) == 0) release_basis();
    for (;;) {
      multiply_unit(even, odd);
      if (unit == last) {
        last_store(even);
        break;
      }
      multiply_unit(odd, even);
      if (unit == last) {
        last_store(odd);
        break;
      }
    }
    if (leads) ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda
