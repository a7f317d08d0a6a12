#pragma once

#include <cstdint>

#include "bda/cuda/kv_layout/destination.cuh"
#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/divisor.hpp"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Keys and values of width 128 over 384 rest channels (DeepSeek's latent) in one launch on sm_90a:
/// x stays in registers while the heads of both pass by.
///
/// One persistent CTA per multiprocessor. Its work is a range of units, a unit being one head for a
/// block of 128 tokens: 128 x 128 of the output. Roles:
///   producer, one thread (four for the opening): fills a ring with C in chunks of 128 columns x 64
///     channels, and with the rows of x when a row block begins;
///   two consumer warpgroups, 64 tokens each: hold five sixths of their rows of x in registers as
///     wgmma operands (all of it, and the compiler serialises every wgmma for want of registers),
///     and two accumulators, used by turns: while the products of one head run, the finished
///     accumulator of the head before is stored, piece by piece between them, and at once refilled
///     with the basis channels, so that the identity part of the product costs no operation.
/// The next unit's products are queued before the last one's are stored: the tensor cores never
/// wait for an epilogue within a row block.
///
/// Where keys and values have the same basis, a row block has twice the heads, the value's after
/// the key's; else the value's row blocks follow the key's, and x is read again, from L2.
namespace bda::inline v0::cuda {

/// Where units go.
enum class ReadyOutput {
  kTensor,    // any strides: tensor stores
  kRows,      // each row where its slot says: 16-byte stores
  kRowsE4m3,  // the same, rounded to e4m3
};

struct Sm90ReadySide {
  CUtensorMap out;           // [heads, 2, tokens, 64], boxes of both halves x 16 rows
  const void* coefficients;  // packed
  int basis_begin;
  KvDestination rows;  // in place of `out` where rows are stored one by one
};

struct Sm90ReadyParams {
  CUtensorMap x;  // [tokens, kv_dim], boxes of 128 rows x 64 channels, 128-byte swizzle
  Sm90ReadySide sides[2];
  CUtensorMap rope;      // [tokens, rope_width], boxes of 128 rows x 64 channels
  CUtensorMap rope_out;  // [heads, 1, tokens, rope_width], boxes of 16 rows x 64 channels
  int rope_width;        // 0: none. The rope part is sides[0]'s
  int tokens;
  int last_row;         // the most that a row block begins with: `last_row_of`
  int heads;            // of one side
  Divisor block_heads;  // of one row block: those of both sides where they share the basis
  int row_blocks;       // of one side
  int units;
  Divisor units_per_cta;  // and one more in each of the first `longer_ctas`
  int longer_ctas;
};

namespace sm90_ready {

constexpr int kThreads = 384;
constexpr int kChunks = 6;                              // of 64 rest channels
constexpr int kRegisterChunks = 5;                      // of them, kept in registers
constexpr std::uint32_t kBlockBytes = 8192;             // 64 columns x 64 channels of C
constexpr std::uint32_t kChunkBytes = 2 * kBlockBytes;  // 128 columns (or 128 rows of x)
constexpr std::uint32_t kWarpOutputBytes = 4096;        // 16 rows, two halves of 64 columns

struct RopeShared {
  std::uint8_t tile[kChunkBytes];     // the row block's rope part, 64 channels
  std::int64_t row_offset[2][8][16];  // of every side's rows, by warp; negative: not stored
};

struct Shared {
  static constexpr int kSlots = 8;
  alignas(1024) std::uint8_t ring[kSlots][kChunkBytes];
  std::uint8_t output[8][kWarpOutputBytes];
  std::uint8_t basis[2][kChunkBytes];
  std::uint8_t last_chunk[kChunkBytes];  // of x: the sixth, read from here
  RopeShared rope;
  RingBarriers<kSlots> barriers;
  // Basis and rope; last_chunk; row_empty is of all three.
  std::uint64_t basis_full, last_full, row_empty;
};

__device__ __forceinline__ int first_unit(const Sm90ReadyParams& p) {
  const int cta = static_cast<int>(ptx::block_index());
  return cta * p.units_per_cta.value() + min(cta, p.longer_ctas);
}
__device__ __forceinline__ int unit_count(const Sm90ReadyParams& p) {
  return p.units_per_cta.value() + (static_cast<int>(ptx::block_index()) < p.longer_ctas ? 1 : 0);
}

/// What a CTA does in one row block: `count` heads from `head` on, cyclically.
///
/// Units are dealt out in row-block-major ranges [first, last). Within a row block the ranges are
/// turned so that all CTAs read the heads in step: they then want the same few parts of C at about
/// the same time, and these come from L2.
///
/// Ranges longer than a row block: every CTA reads the heads in the same cyclic order from head 0
/// on. Shorter ones: a row block has CTAs that are wholly inside, one that began in the block
/// before, and one that goes on in the next. The first begin at multiples of the range's length;
/// what remains is shared by the others, which take the later of their blocks first, so that all of
/// the one kind come to this block together, at the start, and all of the other at the same time
/// before the end.
struct HeadRange {
  int head;
  int count;

  __device__ __forceinline__ HeadRange(const Sm90ReadyParams& p, int block) {
    const int heads = p.block_heads.value(), length = p.units_per_cta.value();
    const int first = first_unit(p), last = min(first + unit_count(p), p.units);
    const int begin = max(first, block * heads), end = min(last, (block + 1) * heads);
    const bool enters_late = begin > block * heads, leaves_early = end < (block + 1) * heads;
    count = end - begin;
    if (length < heads) {
      const int past = p.units_per_cta.remainder(block * heads);
      const int from_before = past == 0 ? 0 : length - past;  // of the block's heads
      if (begin > first)
        head = p.units_per_cta.quotient(heads - from_before) * length;
      else if (count < length)
        head = heads - count;
      else
        head = begin - block * heads - from_before;
    } else if (enters_late) {
      head = 0;
    } else if (leaves_early) {
      head = heads - count;
    } else {
      head = p.block_heads.remainder(begin - first);
    }
  }
};

/// A CTA's row blocks: the first, and the step to the next while HeadRange::count is positive.
__device__ __forceinline__ int first_block(const Sm90ReadyParams& p) {
  const int first = first_unit(p);
  const bool short_ranges = p.units_per_cta.value() < p.block_heads.value();
  return p.block_heads.quotient(short_ranges ? min(first + p.units_per_cta.value(), p.units) - 1
                                             : first);
}
__device__ __forceinline__ int block_step(const Sm90ReadyParams& p) {
  return p.units_per_cta.value() < p.block_heads.value() ? -1 : 1;
}

/// A row block: its rows of x, and which of the 2 `heads` heads of both sides is its first.
struct RowBlock {
  int row;
  int first_head;

  static __device__ __forceinline__ RowBlock at(const Sm90ReadyParams& p, int block) {
    const bool second = block >= p.row_blocks;
    return {min((second ? block - p.row_blocks : block) * 128, p.last_row), second ? p.heads : 0};
  }
};

/// 16 columns j of a warp's 16 rows as e4m3 into rows of 128 bytes under the 128-byte swizzle. A
/// thread holds two neighbouring columns of both eights; it trades with its neighbour for four.
__device__ __forceinline__ void store_e4m3(std::uint32_t tile, std::uint32_t lane, int j,
                                           const float* v, float scale) {
  const std::uint32_t low = ptx::pack_e4m3(v[0] * scale, v[1] * scale) |
                            ptx::pack_e4m3(v[2] * scale, v[3] * scale) << 16;  // rows r, r + 8
  const std::uint32_t high =
      ptx::pack_e4m3(v[4] * scale, v[5] * scale) | ptx::pack_e4m3(v[6] * scale, v[7] * scale) << 16;
  const bool odd = (lane & 1) != 0;  // odd lanes collect the second eight columns
  const std::uint32_t theirs = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
  const std::uint32_t first = odd ? theirs : low, second = odd ? high : theirs;
  const std::uint32_t row = lane >> 2, word = ((lane & 1) << 1) | ((lane >> 1) & 1);
  const std::uint32_t at =
      tile + row * 128 + ((static_cast<std::uint32_t>(j) ^ row) << 4) + word * 4;
  ptx::store_word(at, __byte_perm(first, second, 0x5410));
  ptx::store_word(at + 8 * 128, __byte_perm(first, second, 0x7632));
}

/// Eight of a warp's 16 rows, from row `first` on, from shared memory to where they belong, and the
/// rope part behind them.
template <class T>
__device__ __forceinline__ void store_rows(const KvDestination& to, int head,
                                           const std::int64_t* offsets, std::uint32_t tile,
                                           std::uint32_t rope_tile, int rope_width, int first) {
  const int lane = static_cast<int>(ptx::thread_index()) & 31;
  T* const base = static_cast<T*>(to.data) + head * to.head_stride;
#pragma unroll 2
  for (int i = 0; i < 8; i += 2) {
    const int row = first + i + (lane >> 4), piece = lane & 15;
    const std::int64_t offset = offsets[row];
    const uint4 v =
        ptx::load_16(tile + (piece >> 3) * 2048 + row * 128 + (((piece & 7) ^ (row & 7)) << 4));
    if (offset >= 0) ptx::store_16_streaming(base + offset + piece * 8, v);
  }
  if ((lane & 7) * 8 >= rope_width) return;
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const int row = first + i + (lane >> 3), piece = lane & 7;
    const std::int64_t offset = offsets[row];
    const uint4 v = ptx::load_16(rope_tile + row * 128 + ((piece ^ (row & 7)) << 4));
    if (offset >= 0) ptx::store_16_streaming(base + offset + 128 + piece * 8, v);
  }
}

/// The same of e4m3 rows; the rope part is rounded here, because the scale may be the head's.
template <class T>
__device__ __forceinline__ void store_rows_e4m3(const KvDestination& to, int head,
                                                const std::int64_t* offsets, std::uint32_t tile,
                                                std::uint32_t rope_tile, int rope_width,
                                                float scale, int first) {
  const int lane = static_cast<int>(ptx::thread_index()) & 31;
  std::uint8_t* const base = static_cast<std::uint8_t*>(to.data) + head * to.head_stride;
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const int row = first + i + (lane >> 3), piece = lane & 7;
    const std::int64_t offset = offsets[row];
    const uint4 v = ptx::load_16(tile + row * 128 + ((piece ^ (row & 7)) << 4));
    if (offset >= 0) ptx::store_16_streaming(base + offset + piece * 16, v);
  }
  if ((lane & 3) * 16 >= rope_width) return;
  const int row = first + (lane >> 2), quarter = lane & 3;
  const std::int64_t offset = offsets[row];
  uint2 half[2];
#pragma unroll
  for (int e = 0; e < 2; ++e)
    half[e] = to_e4m3<T>(
        ptx::load_16(rope_tile + row * 128 + (((2 * quarter + e) ^ (row & 7)) << 4)), scale);
  if (offset >= 0)
    ptx::store_16_streaming(base + offset + 128 + quarter * 16,
                            make_uint4(half[0].x, half[0].y, half[1].x, half[1].y));
}

}  // namespace sm90_ready

template <class T, ReadyOutput kOutput>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_ready_kernel(const __grid_constant__ Sm90ReadyParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_ready;
  constexpr bool kRows = kOutput == ReadyOutput::kRows || kOutput == ReadyOutput::kRowsE4m3;
  constexpr int kSlots = Shared::kSlots;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const std::uint32_t ring = ptx::shared_address(shared.ring);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);
  const std::uint32_t basis_full = ptx::shared_address(&shared.basis_full);
  const std::uint32_t last_full = ptx::shared_address(&shared.last_full);
  const std::uint32_t row_empty = ptx::shared_address(&shared.row_empty);

  ptx::allow_next_kernel();
  const int turn = ptx::warp_index();
  const bool leads = ptx::elect_one();
  if (turn < 4) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    const auto fetch_coefficients = [&](int slot, int head, int chunk) {
      const int side = head >= p.heads ? 1 : 0;
      if (side == 1) head -= p.heads;
      const std::uint8_t* source = static_cast<const std::uint8_t*>(p.sides[side].coefficients) +
                                   (static_cast<std::int64_t>(head) * 2 * kChunks + chunk) *
                                       static_cast<std::int64_t>(kBlockBytes);
      const std::uint32_t target = ring + slot * kChunkBytes, barrier = full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, kChunkBytes);
      ptx::bulk_load(target, source, kBlockBytes, barrier);
      ptx::bulk_load(target + kBlockBytes, source + kChunks * kBlockBytes, kBlockBytes, barrier);
    };
    RowBlock rows{};
    const auto basis_begin = [&] { return p.sides[rows.first_head > 0 ? 1 : 0].basis_begin; };
    const auto x_column = [&](int chunk) {  // of a chunk of rest channels: it steps over S
      return chunk * 64 < basis_begin() ? chunk * 64 : chunk * 64 + 128;
    };

    const auto fetch_basis_and_last_chunk = [&] {
      const bool rope = rows.first_head == 0 && p.rope_width > 0;
      ptx::mbarrier_arrive_expect_bytes(basis_full, (rope ? 3 : 2) * kChunkBytes);
      for (int half = 0; half < 2; ++half)
        ptx::tensor_load(ptx::shared_address(shared.basis[half]), p.x, basis_full,
                         basis_begin() + 64 * half, rows.row);
      if (rope)
        ptx::tensor_load(ptx::shared_address(shared.rope.tile), p.rope, basis_full, 0, rows.row);
      ptx::mbarrier_arrive_expect_bytes(last_full, kChunkBytes);
      ptx::tensor_load(ptx::shared_address(shared.last_chunk), p.x, last_full,
                       x_column(kRegisterChunks), rows.row);
    };
    const auto fetch_rows = [&](int slot, int chunk) {
      ptx::mbarrier_arrive_expect_bytes(full + 8 * slot, kChunkBytes);
      ptx::tensor_load(ring + slot * kChunkBytes, p.x, full + 8 * slot, x_column(chunk), rows.row);
    };

    // The next rows come from memory: into L2 while two units are left of these.
    const auto prefetch_rows = [&](int next) {
      if (HeadRange(p, next).count <= 0) return;
      const int row = RowBlock::at(p, next).row;
#pragma unroll 1
      for (int i = 0; i < kChunks + 2; ++i) ptx::tensor_prefetch(p.x, 64 * i, row);
    };

    // The ring is filled in this order: for the first head of a row block x and C by turns (x0 C0
    // x1 C1 .. x4 C4 C5), for its other heads C. The first round of slots needs no waiting, and
    // four threads fill it, because one takes longer to issue the copies than the first of them
    // takes to arrive: one C, which does not depend on the kernel before, the others the first rows
    // of x. Each of them makes the barriers of what it asks for, and waits for no other warp.
    int block = first_block(p);
    rows = RowBlock::at(p, block);
    if (leads) {
      if (turn == 3) {
        ptx::mbarrier_init(basis_full, 1);
        ptx::mbarrier_init(last_full, 1);
        ptx::mbarrier_init(row_empty, 8);
      } else {
#pragma unroll 1
        for (int slot = turn == 0 ? 1 : 2 * turn - 2; slot < kSlots; slot += turn == 0 ? 2 : 4) {
          ptx::mbarrier_init(full + 8 * slot, 1);
          ptx::mbarrier_init(empty + 8 * slot, 8);  // one arrival per consumer warp
        }
      }
      ptx::fence_mbarrier_init();
      if (turn == 0) {
        const int head = rows.first_head + HeadRange(p, block).head;
#pragma unroll 1
        for (int slot = 1; slot < kSlots; slot += 2) fetch_coefficients(slot, head, slot / 2);
      } else {
        ptx::wait_for_previous_kernel();
        if (turn == 3) {
          fetch_basis_and_last_chunk();
          if (!kRows) ptx::prefetch_tensor_map(p.sides[0].out);
        } else {
#pragma unroll 1
          for (int chunk = turn - 1; 2 * chunk < kSlots; chunk += 2) fetch_rows(2 * chunk, chunk);
        }
      }
    }
    __syncwarp();
    __syncthreads();
    if (turn > 0 || !leads) return;
    ptx::wait_for_previous_kernel();

    RingPosition<kSlots> at;
    std::uint32_t row_parity = 0;
    for (int filled = kSlots;; filled = 0, block += block_step(p)) {
      HeadRange heads(p, block);
      if (heads.count <= 0) break;
      rows = RowBlock::at(p, block);
      for (int i = 0; i < kRegisterChunks + kChunks; ++i) {
        if (i >= filled) {
          if (i == kSlots - 1) {  // this late, because it waits for the end of the block before
            ptx::mbarrier_wait(row_empty, row_parity);
            row_parity ^= 1;
            fetch_basis_and_last_chunk();
          }
          ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
          if (i % 2 == 0 && i < 2 * kRegisterChunks)
            fetch_rows(at.slot, i / 2);
          else
            fetch_coefficients(at.slot, rows.first_head + heads.head, i / 2);
        }
        at.advance();
      }
      // The loop that sets the pace.
      while (--heads.count > 0) {
        if (heads.count == 2) prefetch_rows(block + block_step(p));
        if (++heads.head == p.block_heads.value()) heads.head = 0;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
          fetch_coefficients(at.slot, rows.first_head + heads.head, chunk);
          at.advance();
        }
      }
    }
  } else {
    // ------------------------------------------------------------------ consumers
    if (turn == 4 && leads) ptx::prefetch_tensor_map(p.x);
    __syncthreads();
    ptx::claim_registers<240>();
    std::uint32_t a[4 * kRegisterChunks][4];  // this warp's 16 rows of x, 16 channels each
    float even[64], odd[64];                  // accumulators of alternate units
    RingPosition<kSlots> at;
    int release_slot = 0;
    bool next_is_full = false;
    std::uint32_t row_parity = 0;
    int row = 0, head = 0;  // of the unit being stored; row blocks of both sides counted through

    // Fragment addresses: row l % 16 of the warp, 16-byte piece 2 j + l / 16 under the swizzle; the
    // 16 columns j are reached by XOR with 32 j.
    std::uint32_t basis_row, output_row;
    {
      const std::uint32_t t = ptx::thread_index() - 128, row = (t >> 5) * 16 + (t & 15);
      const std::uint32_t piece = (((t >> 4) & 1) ^ (t & 7)) << 4;
      basis_row = ptx::shared_address(shared.basis) + row * 128 + piece;
      output_row =
          ptx::shared_address(shared.output) + (t >> 5) * kWarpOutputBytes + (t & 15) * 128 + piece;
    }
    const auto release = [&] {
      if ((ptx::thread_index() & 31) == 0) ptx::mbarrier_arrive(empty + 8 * release_slot);
      if (++release_slot == kSlots) release_slot = 0;
    };

    // Queues the products of one chunk, and looks ahead whether the next one has come.
    const auto multiply = [&](float(&c)[64], int chunk) {
      if (!next_is_full) ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
      ptx::wgmma_fence();
      const std::uint64_t b = ptx::matrix_descriptor(ring + at.slot * kChunkBytes);
      if (chunk < kRegisterChunks) {
#pragma unroll
        for (int k = 0; k < 4; ++k) ptx::wgmma<T>(c, a[chunk * 4 + k], b + 2 * k);
      } else {
        const std::uint64_t x = ptx::matrix_descriptor(ptx::shared_address(shared.last_chunk) +
                                                       (ptx::thread_index() >= 256 ? 8192 : 0));
#pragma unroll
        for (int k = 0; k < 4; ++k) ptx::wgmma<T, 128>(c, x + 2 * k, b + 2 * k, 1);
      }
      ptx::wgmma_commit();
      at.advance();
      next_is_full = ptx::mbarrier_test_wait(full + 8 * at.slot, at.parity);
    };

    // The basis of 32 columns: what an accumulator starts from.
    std::uint32_t basis[2][4];
    const auto load_basis = [&](int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        ptx::load_matrices(basis[i], (basis_row ^ ((j & 3) << 5)) + (j >> 2) * kChunkBytes);
      }
    };
    const auto start = [&](float(&c)[64], int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        unpack_fragment<T>(basis[i], &c[8 * j]);
      }
    };

    // The epilogue of a unit: four pieces of 32 columns, then one store a warp.
    const auto side_of_unit = [&] {
      return RowBlock::at(p, row / 128).first_head + head >= p.heads ? 1 : 0;
    };
    const auto head_in_side = [&](int side) {
      const int first_head = RowBlock::at(p, row / 128).first_head;
      return first_head + head - side * p.heads;
    };
    float inverse_scale = 1;
    const auto begin_store = [&] {
      if constexpr (!kRows)
        if ((ptx::thread_index() & 31) == 0) ptx::bulk_wait_read<0>();
      if constexpr (kOutput == ReadyOutput::kRowsE4m3) {
        const int side = side_of_unit();
        inverse_scale = p.sides[side].rows.inverse_scale(head_in_side(side));
      }
      __syncwarp();
    };
    const auto store_piece = [&](float(&c)[64], int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        const float* v = &c[8 * j];
        if constexpr (kOutput == ReadyOutput::kRowsE4m3) {
          const std::uint32_t lane = ptx::thread_index() & 31;
          const std::uint32_t warp = (ptx::thread_index() - 128) >> 5;
          sm90_ready::store_e4m3(ptx::shared_address(shared.output[warp]), lane, j, v,
                                 inverse_scale);
        } else {
          store_rounded<T>((output_row ^ ((j & 3) << 5)) + (j >> 2) * 2048, v);
        }
      }
    };
    // Rows are stored one by one in two parts, so that neither holds up the next products for long.
    const auto store_half = [&](int first) {
      if constexpr (kRows) {
        const int warp = (static_cast<int>(ptx::thread_index()) - 128) >> 5;
        const int side = side_of_unit(), to_head = head_in_side(side);
        const int rope_width = side == 0 ? p.rope_width : 0;
        const KvDestination& to = p.sides[side].rows;
        const std::int64_t* offsets = shared.rope.row_offset[side][warp];
        const std::uint32_t tile = ptx::shared_address(shared.output[warp]);
        const std::uint32_t rope_tile = ptx::shared_address(shared.rope.tile) + warp * 2048;
        __syncwarp();
        if constexpr (kOutput == ReadyOutput::kRows)
          sm90_ready::store_rows<T>(to, to_head, offsets, tile, rope_tile, rope_width, first);
        else
          sm90_ready::store_rows_e4m3<T>(to, to_head, offsets, tile, rope_tile, rope_width,
                                         inverse_scale, first);
        __syncwarp();
      }
    };
    const auto end_store = [&] {
      const int side = side_of_unit(), to_head = head_in_side(side);
      if constexpr (kRows) {
        store_half(8);
      } else {
        ptx::fence_proxy_async();
        __syncwarp();
        // A warp index that the compiler knows to be uniform: else it puts a loop over differing
        // operands around every store.
        const int warp = turn - 4;
        const int first_row = RowBlock::at(p, row / 128).row;
        if ((ptx::thread_index() & 31) == 0 && first_row + 16 * warp < p.tokens) {
          ptx::tensor_store(p.sides[side].out, ptx::shared_address(shared.output[warp]), 0,
                            first_row + 16 * warp, 0, to_head, ptx::kEvictFirst);
          if (side == 0 && p.rope_width > 0)
            ptx::tensor_store(p.rope_out, ptx::shared_address(shared.rope.tile) + warp * 2048, 0,
                              first_row + 16 * warp, 0, to_head, ptx::kEvictFirst);
          ptx::bulk_commit();
        }
      }
      if (++head == p.block_heads.value()) head = 0;
    };

    // The first unit of a row block, into `even`: the rows of x come through the ring between the
    // chunks of C, each multiplied as soon as it is there, and stay. Meanwhile `odd` is started.
    const auto first_unit_of_rows = [&] {
      ptx::mbarrier_wait(basis_full, row_parity);
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) {
        load_basis(piece);
        start(even, piece);
      }
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk < kRegisterChunks) {
          const std::uint32_t t = ptx::thread_index() - 128, row = (t >> 5) * 16 + (t & 15);
          ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const std::uint32_t piece = ((2 * k + ((t >> 4) & 1)) ^ (t & 7)) << 4;
            ptx::load_matrices(a[chunk * 4 + k], ring + at.slot * kChunkBytes + row * 128 + piece);
          }
          at.advance();
          next_is_full = false;
        } else {
          ptx::mbarrier_wait(last_full, row_parity);
        }
        multiply(even, chunk);
        if (chunk < 4) {
          load_basis(chunk);
          start(odd, chunk);
        }
        // The slot of x not before its products are issued: they take the values of the last
        // ldmatrix, so that none can still be on its way.
        if (chunk > 0) {
          ptx::wgmma_wait<1>();
          __syncwarp();
          release();
          release();
        }
      }
      row_parity ^= 1;
    };
    // One unit into `c`; meanwhile the unit before, in `done`, is stored and its accumulator
    // started for the unit after.
    const auto unit_and_store = [&](float(&c)[64], float(&done)[64]) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        multiply(c, chunk);
        if (chunk < 4) load_basis(chunk);
        if (chunk == 0) {  // the last products of the unit before are now complete
          ptx::wgmma_wait<1>();
          release();
          ptx::delivered(done);
          begin_store();
        }
        if (chunk < 4) {
          store_piece(done, chunk);
          start(done, chunk);
        }
        if (chunk == 4) store_half(0);
        if (chunk == (kRows ? 5 : 4)) end_store();
        if (chunk > 0) {
          ptx::wgmma_wait<1>();
          release();
        }
      }
    };
    const auto last_store = [&](float(&done)[64]) {
      ptx::wgmma_wait<0>();
      release();
      ptx::delivered(done);
      begin_store();
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) store_piece(done, piece);
      store_half(0);
      end_store();
    };

    if constexpr (kRows) ptx::wait_for_previous_kernel();  // it may have written the slots
    for (row = first_block(p) * 128;; row += block_step(p) * 128) {
      const HeadRange heads(p, row / 128);
      if (heads.count <= 0) break;
      int left = heads.count;
      head = heads.head;
      if constexpr (kRows) {  // a warp's own rows: no other reads or writes them
        const int t = static_cast<int>(ptx::thread_index()) - 128;
        const int token = RowBlock::at(p, row / 128).row + (t >> 5) * 16 + (t & 15);
        const int side = (t >> 4) & 1;
        shared.rope.row_offset[side][t >> 5][t & 15] =
            token < p.tokens ? p.sides[side].rows.row_offset(token) : -1;
        __syncwarp();
      }

      first_unit_of_rows();
      for (;;) {
        if (--left == 0) {
          last_store(even);
          break;
        }
        unit_and_store(odd, even);
        if (--left == 0) {
          last_store(odd);
          break;
        }
        unit_and_store(even, odd);
      }
      // The stores read the rope part.
      if ((ptx::thread_index() & 31) == 0) ptx::bulk_wait_read<0>();
      __syncwarp();
      if ((ptx::thread_index() & 31) == 0) ptx::mbarrier_arrive(row_empty);
    }
    if ((ptx::thread_index() & 31) == 0) ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda
