#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/even_ranges.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Width 128 over 384 rest channels (DeepSeek's latent) on sm_90a, in one wave: x stays in
/// registers while a few half heads pass by.
///
/// A CTA has one block of up to 128 tokens and a range of units, a unit being half a head: 64
/// columns. Roles:
///   producers: one thread fills a ring with C in steps of 64 columns x 128 channels; for the
///     opening, a second one brings x through the same ring, and a third one the basis channels;
///   two consumer warpgroups, 64 tokens each, with two accumulators used by turns: while the
///     products of one unit run, the finished accumulator of the unit before is stored, piece by
///     piece between them, and at once refilled with the basis channels, so that the identity part
///     of the product costs no operation.
/// Against sm90_resident, which goes on to further rows: units are half as large, because the last
/// one of a CTA is stored beside nothing, and there is little code, because every launch finds the
/// instruction caches cold. Many half heads cost more than as many halves of heads, though: the
/// tensor cores idle 2 % longer between smaller products.
namespace bda::inline v0::cuda {

struct Sm90ShortParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of `rows` x 64 channels, 128-byte swizzle
  CUtensorMap out;           // [heads, 2, tokens, 64], boxes of 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, 128]
  int tokens;
  int rows;      // of a row block
  int last_row;  // the most that a row block begins with: `last_row_of`
  int basis_begin;
  TileOrder order;    // of the CTAs' ranges: row blocks x ranges
  EvenRanges ranges;  // of the units of a row block: two for each head
};

namespace sm90_short {

constexpr int kThreads = 384;
constexpr int kColumns = 64;                           // of a unit
constexpr int kChunks = 6;                             // of 64 rest channels
constexpr int kSteps = kChunks / 2;                    // of a unit, two chunks each
constexpr std::uint32_t kBlockBytes = 8192;            // 64 columns x 64 channels of C
constexpr std::uint32_t kSlotBytes = 2 * kBlockBytes;  // a step of C, or 128 rows of a chunk of x
constexpr std::uint32_t kOutputBytes = 16 * kColumns * 2;  // of a warp

struct Shared {
  /// At first x and C by turns (x0 x1 C0 x2 x3 C1 x4 x5 C2 C3), as the consumers want them.
  static constexpr int kSlots = 10;
  alignas(1024) std::uint8_t ring[kSlots][kSlotBytes];
  std::uint8_t output[8][2][kOutputBytes];  // of each warp, by turns
  std::uint8_t basis[2][kSlotBytes];        // 64 channels each
  RingBarriers<kSlots> barriers;
  std::uint64_t basis_full[2];
};

/// Where the steps of C lie that come first, and the chunks of x.
BDA_HOST_DEVICE constexpr int columns_slot(int step) { return step < kSteps ? 3 * step + 2 : 9; }
BDA_HOST_DEVICE constexpr int rows_slot(int chunk) { return chunk + chunk / 2; }

}  // namespace sm90_short

template <class T, bool kBias>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_short_kernel(const __grid_constant__ Sm90ShortParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_short;
  constexpr int kSlots = Shared::kSlots;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const std::uint32_t ring = ptx::shared_address(shared.ring);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);
  const std::uint32_t basis = ptx::shared_address(shared.basis);
  const std::uint32_t basis_full = ptx::shared_address(shared.basis_full);

  ptx::allow_next_kernel();
  const int turn = ptx::warp_index();
  const bool leads = ptx::elect_one();
  const TileOrder::Place place = p.order.at(blockIdx.x, blockIdx.y);
  const EvenRanges::Range units = p.ranges.at(place.column);
  const int first = units.begin, last = units.end;
  const int row = min(place.row * p.rows, p.last_row);

  if (turn < 4) {
    // ------------------------------------------------------------------ producers
    const std::uint8_t* source = static_cast<const std::uint8_t*>(p.coefficients) +
                                 static_cast<std::int64_t>(first) * (kChunks * kBlockBytes);
    const auto fetch_columns = [&](int slot) {  // the next step of C
      const std::uint32_t barrier = full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, kSlotBytes);
      ptx::bulk_load(ring + slot * kSlotBytes, source, kSlotBytes, barrier, ptx::kEvictFirst);
      source += kSlotBytes;
    };
    const auto fetch_box = [&](std::uint32_t target, std::uint32_t barrier, int channel) {
      ptx::mbarrier_arrive_expect_bytes(barrier, p.rows * 128);
      ptx::tensor_load(target, p.x, barrier, channel, row);
    };
    const auto fetch_rows = [&](int begin, int end) {  // chunks of x
#pragma unroll 1
      for (int chunk = begin; chunk < end; ++chunk) {
        const int slot = rows_slot(chunk), channel = chunk * 64;
        fetch_box(ring + slot * kSlotBytes, full + 8 * slot,
                  channel < p.basis_begin ? channel : channel + 128);
      }
    };
    const int steps = (last - first) * kSteps;
    // The opening. Nobody waits for barriers that it can do without, and C, which does not depend
    // on the kernel before, leaves at once; but only two steps of C and two chunks of x leave ahead
    // of the barrier of all warps: more of one would hold up the other.
    if (leads) {
      if (turn == 0) {
#pragma unroll 1
        for (int step = 0; step <= kSteps; ++step)
          ptx::mbarrier_init(full + 8 * columns_slot(step), 1);
        ptx::fence_mbarrier_init();
        fetch_columns(columns_slot(0));
#pragma unroll 1
        for (int slot = 0; slot < kSlots; ++slot)
          ptx::mbarrier_init(empty + 8 * slot, 8);  // one arrival per consumer warp
        ptx::fence_mbarrier_init();
        fetch_columns(columns_slot(1));
      } else if (turn == 1) {
#pragma unroll 1
        for (int chunk = 0; chunk < kChunks; ++chunk)
          ptx::mbarrier_init(full + 8 * rows_slot(chunk), 1);
        ptx::fence_mbarrier_init();
        ptx::wait_for_previous_kernel();
        fetch_rows(0, 2);
      }
    }
    // (A third case above would become a table of addresses, which is cold.)
    if (turn == 2 && leads) {
      ptx::mbarrier_init(basis_full, 1);
      ptx::mbarrier_init(basis_full + 8, 1);
      ptx::fence_mbarrier_init();
      ptx::wait_for_previous_kernel();
#pragma unroll 1
      for (int i = 0; i < 2 && first + i < last; ++i) {
        const int half = (first + i) & 1;
        fetch_box(basis + half * kSlotBytes, basis_full + 8 * half, p.basis_begin + 64 * half);
      }
      ptx::prefetch_tensor_map(p.out);
    }
    __syncwarp();
    ptx::give_up_registers<24>();
    __syncthreads();
    if (turn > 1 || !leads) return;
    if (turn == 1) {
      fetch_rows(2, kChunks);
      return;
    }
#pragma unroll 1
    for (int step = 2; step <= kSteps && step < steps; ++step) fetch_columns(columns_slot(step));
    RingPosition<kSlots> at{0, 1};  // the second round
#pragma unroll 1
    for (int step = kSteps + 1; step < steps; ++step) {
      ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
      fetch_columns(at.slot);
      at.advance();
    }
  } else {
    // ------------------------------------------------------------------ consumers
    if (turn == 4 && leads) ptx::prefetch_tensor_map(p.x);
    __syncthreads();
    ptx::claim_registers<240>();
    std::uint32_t a[4 * kChunks][4];              // this warp's 16 rows of x, 16 channels each
    float even[kColumns / 2], odd[kColumns / 2];  // accumulators of alternate units
    RingPosition<kSlots> at;
    int release_slot = 0;
    bool next_is_full = false;

    // Fragment addresses: row l % 16 of the warp, 16-byte piece 2 j + l / 16 under the swizzle; the
    // 16 columns j are reached by XOR with 32 j.
    std::uint32_t fragment, output;
    {
      const std::uint32_t t = ptx::thread_index() - 128;
      const std::uint32_t piece = (((t >> 4) & 1) ^ (t & 7)) << 4;
      fragment = ((t >> 5) * 16 + (t & 15)) * 128 + piece;
      output = ptx::shared_address(shared.output) + (t >> 5) * (2 * kOutputBytes) + (t & 15) * 128 +
               piece;
    }
    const auto release_one = [&] {
      if (leads) ptx::mbarrier_arrive(empty + 8 * release_slot);
      if (++release_slot == kSlots) release_slot = 0;
    };

    int unit = first;          // that is multiplied: into `even` at first, then by turns
    std::uint32_t buffer = 0;  // of the output: 0 or kOutputBytes

    const auto await_next = [&] {
      if (!next_is_full) ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
    };
    // Queues the products of one step, and looks ahead whether the next one has come.
    const auto multiply = [&](float(&c)[kColumns / 2], int step, bool rows_are_new) {
      if (rows_are_new) {
#pragma unroll
        for (int chunk = 2 * step; chunk < 2 * step + 2; ++chunk) {
          await_next();
#pragma unroll
          for (int k = 0; k < 4; ++k)
            ptx::load_matrices(a[chunk * 4 + k],
                               (ring + at.slot * kSlotBytes + fragment) ^ (k << 5));
          at.advance();
          next_is_full = false;
        }
      }
      await_next();
      ptx::wgmma_fence();
      const std::uint64_t b = ptx::matrix_descriptor(ring + at.slot * kSlotBytes);
#pragma unroll
      for (int k = 0; k < 8; ++k)
        ptx::wgmma<T, kColumns>(c, a[step * 8 + k], b + k / 4 * (kBlockBytes / 16) + k % 4 * 2);
      ptx::wgmma_commit();
      at.advance();
      next_is_full = ptx::mbarrier_test_wait(full + 8 * at.slot, at.parity);
    };
    // After the products of a step are queued: those of the step before are done. The chunks for
    // the registers make way too: their values are in use, so that no ldmatrix is on its way.
    const auto release = [&](bool any_before, bool rows_are_new) {
      ptx::wgmma_wait<1>();
      if (any_before) release_one();
      if (rows_are_new) {
        release_one();
        release_one();
      }
    };

    std::uint32_t loaded[2][4];
    const auto load_basis = [&](int piece, int half) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ptx::load_matrices(loaded[i],
                           (basis + half * kSlotBytes + fragment) ^ ((2 * piece + i) << 5));
    };
    // 32 columns of what an accumulator starts from.
    const auto start = [&](float(&c)[kColumns / 2], int piece, int of) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float2 v = ptx::unpack_pair<T>(loaded[i][e]);
          if constexpr (kBias) {
            const int channel = 16 * j + 8 * (e >> 1) + 2 * (ptx::thread_index() & 3);
            const float2 b = ptx::unpack_pair<T>(__ldg(reinterpret_cast<const std::uint32_t*>(
                static_cast<const T*>(p.bias) + of * kColumns + channel)));
            v.x += b.x;
            v.y += b.y;
          }
          c[8 * j + 2 * e] = v.x;
          c[8 * j + 2 * e + 1] = v.y;
        }
      }
    };
    const auto begin_store = [&] {
      if (leads) ptx::bulk_wait_read<1>();
      __syncwarp();
    };
    const auto store_piece = [&](float(&c)[kColumns / 2], int piece) {
#pragma unroll
      for (int j = 2 * piece; j < 2 * piece + 2; ++j) {
        const float* v = &c[8 * j];
        store_rounded<T>((output + buffer) ^ (j << 5), v);
      }
    };
    const auto end_store = [&](int of) {
      ptx::fence_proxy_async();
      __syncwarp();
      const int warp = turn - 4, token = row + 16 * warp;
      if (leads && of >= first && 16 * warp < p.rows && token < p.tokens) {
        ptx::tensor_store(p.out, ptx::shared_address(shared.output[warp]) + buffer, 0, token,
                          of & 1, of >> 1, ptx::kEvictFirst);
        ptx::bulk_commit();
      }
      buffer ^= kOutputBytes;
    };
    // One unit into `c`; meanwhile the unit before, in `done`, is stored (the first time there is
    // none) and its accumulator started for the unit after. What can never be the first unit is
    // told so, which saves its code that takes x.
    const auto multiply_unit = [&](float(&c)[kColumns / 2], float(&done)[kColumns / 2],
                                   bool may_be_first) {
      const bool rows_are_new = may_be_first && unit == first;
      const int following = min(unit + 1, last - 1);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        multiply(c, step, rows_are_new);
        if (step == 0 && unit + 1 < last) ptx::mbarrier_wait(basis_full + 8 * (following & 1), 0);
        if (step < 2) load_basis(step, following & 1);
        release(step > 0 || !rows_are_new, rows_are_new);
        if (step == 0) {  // the last products of the unit before are now complete
          ptx::delivered(done);
          begin_store();
        }
        if (step < 2) {
          store_piece(done, step);
          start(done, step, following);
        } else {
          end_store(unit - 1);
        }
      }
      ++unit;
    };
    const auto last_store = [&](float(&done)[kColumns / 2]) {
      ptx::wgmma_wait<0>();
      ptx::delivered(done);
      begin_store();
#pragma unroll
      for (int piece = 0; piece < 2; ++piece) store_piece(done, piece);
      end_store(unit - 1);
    };

    ptx::mbarrier_wait(basis_full + 8 * (first & 1), 0);
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      load_basis(piece, first & 1);
      start(even, piece, first);
    }
    for (;;) {
      multiply_unit(even, odd, true);
      if (unit == last) {
        last_store(even);
        break;
      }
      multiply_unit(odd, even, false);
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
