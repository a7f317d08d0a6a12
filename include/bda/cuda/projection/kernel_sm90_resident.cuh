#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Width 128 over 384 rest channels (DeepSeek's latent) on sm_90a: x stays in registers while the
/// heads pass by.
///
/// One persistent CTA per multiprocessor. Its work is a range of units, a unit being one head for a
/// block of 128 tokens: 128 x 128 of the output. Roles:
///   producer, one thread (four for the opening): fills a ring with C in chunks of 128 columns x 64
///   channels, and with the
///     rows of x when a row block begins;
///   two consumer warpgroups, 64 tokens each: hold five sixths of their rows of x in registers as
///     wgmma operands (all of it, and the compiler serialises every wgmma for want of registers),
///     and two accumulators, used by turns: while the products of one head run, the finished
///     accumulator of the head before is stored, piece by piece between them, and at once refilled
///     with the basis channels, so that the identity part of the product costs no operation.
/// The next unit's products are queued before the last one's are stored: the tensor cores never
/// wait for an epilogue.
namespace bda::inline v0::cuda {

struct Sm90ResidentParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of 128 rows x 64 channels, 128-byte swizzle
  CUtensorMap out;           // [heads, 2, tokens, 64], boxes of both halves x 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, 128]
  int tokens;
  int heads;
  int basis_begin;
  int units;
  int units_per_cta;
};

namespace sm90_resident {

constexpr int kThreads = 384;
constexpr int kSlots = 9;
constexpr int kChunks = 6;                              // of 64 rest channels
constexpr int kRegisterChunks = 5;                      // of them, kept in registers
constexpr std::uint32_t kBlockBytes = 8192;             // 64 columns x 64 channels of C
constexpr std::uint32_t kChunkBytes = 2 * kBlockBytes;  // 128 columns (or 128 rows of x)
constexpr std::uint32_t kWarpOutputBytes = 4096;        // 16 rows, two halves of 64 columns

struct Shared {
  alignas(1024) std::uint8_t ring[kSlots][kChunkBytes];
  std::uint8_t output[8][kWarpOutputBytes];
  std::uint8_t basis[2][kChunkBytes];
  std::uint8_t last_chunk[kChunkBytes];  // of x: the sixth, read from here
  RingBarriers<kSlots> barriers;
  std::uint64_t basis_full, last_full, row_empty;  // basis and last_chunk; row_empty is of both
};

__device__ __forceinline__ int first_unit(const Sm90ResidentParams& p) {
  return static_cast<int>(ptx::block_index()) * p.units_per_cta;
}

/// What a CTA does in one row block: `count` heads from `head` on, cyclically.
///
/// Units are dealt out in row-block-major ranges [first, last). Within a row block the ranges of
/// two CTAs are turned so that every CTA reads the heads in the same cyclic order from head 0 on:
/// all of them then want the same part of C at about the same time, and it comes from L2.
struct HeadRange {
  int head;
  int count;

  __device__ __forceinline__ HeadRange(const Sm90ResidentParams& p, int block) {
    const int first = first_unit(p), last = min(first + p.units_per_cta, p.units);
    const int begin = max(first, block * p.heads), end = min(last, (block + 1) * p.heads);
    const bool enters_late = begin > block * p.heads, leaves_early = end < (block + 1) * p.heads;
    count = end - begin;
    if (p.units_per_cta < p.heads || (enters_late && leaves_early))
      head = begin - block * p.heads;  // three or more CTAs share the block: as they come
    else if (enters_late)
      head = 0;
    else if (leaves_early)
      head = p.heads - count;
    else
      head = (begin - first) % p.heads;
  }
};

}  // namespace sm90_resident

template <class T, bool kBias>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_resident_kernel(const __grid_constant__ Sm90ResidentParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_resident;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const std::uint32_t ring = ptx::shared_address(shared.ring);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);
  const std::uint32_t basis_full = ptx::shared_address(&shared.basis_full);
  const std::uint32_t last_full = ptx::shared_address(&shared.last_full);
  const std::uint32_t row_empty = ptx::shared_address(&shared.row_empty);

  if (threadIdx.x == 0) {
    shared.barriers.init(8);  // one arrival per consumer warp
    ptx::mbarrier_init(basis_full, 1);
    ptx::mbarrier_init(last_full, 1);
    ptx::mbarrier_init(row_empty, 8);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::allow_next_kernel();

  if (threadIdx.x < 128) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    if (threadIdx.x % 32 != 0) return;
    const auto x_column = [&](int chunk) {  // of a chunk of rest channels: it steps over S
      return chunk * 64 < p.basis_begin ? chunk * 64 : chunk * 64 + 128;
    };

    const auto fetch_rows = [&](int slot, int chunk, int block) {
      ptx::mbarrier_arrive_expect_bytes(full + 8 * slot, kChunkBytes);
      ptx::tensor_load(ring + slot * kChunkBytes, p.x, full + 8 * slot, x_column(chunk),
                       block * 128);
    };
    const auto fetch_coefficients = [&](int slot, int head, int chunk) {
      const std::uint8_t* source = static_cast<const std::uint8_t*>(p.coefficients) +
                                   (static_cast<std::int64_t>(head) * 2 * kChunks + chunk) *
                                       static_cast<std::int64_t>(kBlockBytes);
      const std::uint32_t target = ring + slot * kChunkBytes, barrier = full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, kChunkBytes);
      ptx::bulk_load(target, source, kBlockBytes, barrier);
      ptx::bulk_load(target + kBlockBytes, source + kChunks * kBlockBytes, kBlockBytes, barrier);
    };
    // The ring is filled in this order: for the first head of a row block x and C by turns (x0 C0
    // x1 C1 .. x4 C4 C5), for the other heads C.
    const int first_block = first_unit(p) / p.heads;
    const int end_block = (min(first_unit(p) + p.units_per_cta, p.units) - 1) / p.heads + 1;

    const auto fetch_basis_and_last_chunk = [&](int block) {
      ptx::mbarrier_arrive_expect_bytes(basis_full, 2 * kChunkBytes);
      for (int half = 0; half < 2; ++half)
        ptx::tensor_load(ptx::shared_address(shared.basis[half]), p.x, basis_full,
                         p.basis_begin + 64 * half, block * 128);
      ptx::mbarrier_arrive_expect_bytes(last_full, kChunkBytes);
      ptx::tensor_load(ptx::shared_address(shared.last_chunk), p.x, last_full,
                       x_column(kRegisterChunks), block * 128);
    };

    // The first round of slots needs no waiting, and four threads fill it, because one takes longer
    // to issue the copies than the first of them takes to arrive.
    if (const int turn = static_cast<int>(threadIdx.x) / 32; turn > 0) {
      ptx::wait_for_previous_kernel();
      if (turn == 3) {
        fetch_basis_and_last_chunk(first_block);
        ptx::prefetch_tensor_map(p.out);
      } else {
        for (int chunk = turn - 1; chunk < kRegisterChunks; chunk += 2)
          fetch_rows(2 * chunk, chunk, first_block);
      }
      return;
    }

    // C does not depend on the kernel before.
    const int head = HeadRange(p, first_block).head;
    for (int slot = 1; slot < kSlots; slot += 2) fetch_coefficients(slot, head, slot / 2);
    ptx::wait_for_previous_kernel();
    RingPosition<kSlots> at;
    std::uint32_t row_parity = 0;
    for (int block = first_block; block < end_block; ++block) {
      HeadRange heads(p, block);
      const int filled = block == first_block ? kSlots : 0;
      for (int i = 0; i < kRegisterChunks + kChunks; ++i) {
        if (i >= filled) {
          if (i == kSlots - 1) {  // this late, because it waits for the end of the block before
            ptx::mbarrier_wait(row_empty, row_parity);
            row_parity ^= 1;
            fetch_basis_and_last_chunk(block);
          }
          ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
          if (i % 2 == 0 && i < 2 * kRegisterChunks)
            fetch_rows(at.slot, i / 2, block);
          else
            fetch_coefficients(at.slot, heads.head, i / 2);
        }
        at.advance();
      }
      while (--heads.count > 0) {
        if (++heads.head == p.heads) heads.head = 0;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
          fetch_coefficients(at.slot, heads.head, chunk);
          at.advance();
        }
      }
    }
  } else {
    // ------------------------------------------------------------------ consumers
    ptx::claim_registers<240>();
    std::uint32_t a[4 * kRegisterChunks][4];  // this warp's 16 rows of x, 16 channels each
    float even[64], odd[64];                  // accumulators of alternate units
    RingPosition<kSlots> at;
    int release_slot = 0;
    bool next_is_full = false;
    std::uint32_t row_parity = 0;
    int row = 0, head = 0;  // of the unit being stored

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

    // The basis (and bias) of 32 columns: what an accumulator starts from.
    std::uint32_t basis[2][4];
    const auto load_basis = [&](int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        ptx::load_matrices(basis[i], (basis_row ^ ((j & 3) << 5)) + (j >> 2) * kChunkBytes);
      }
    };
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
    const auto following = [&](int h, int steps) { return kBias ? (h + steps) % p.heads : 0; };

    // The epilogue of a unit: four pieces of 32 columns, then one store a warp.
    const auto begin_store = [&] {
      if ((ptx::thread_index() & 31) == 0) ptx::bulk_wait_read<0>();
      __syncwarp();
    };
    const auto store_piece = [&](float(&c)[64], int piece) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * piece + i;
        const float* v = &c[8 * j];
        ptx::store_matrices((output_row ^ ((j & 3) << 5)) + (j >> 2) * 2048,
                            ptx::pack_pair<T>(v[0], v[1]), ptx::pack_pair<T>(v[2], v[3]),
                            ptx::pack_pair<T>(v[4], v[5]), ptx::pack_pair<T>(v[6], v[7]));
      }
    };
    const auto end_store = [&] {
      ptx::fence_proxy_async();
      __syncwarp();
      const int warp = (static_cast<int>(ptx::thread_index()) - 128) >> 5;
      if ((ptx::thread_index() & 31) == 0 && row + 16 * warp < p.tokens) {
        ptx::tensor_store(p.out, ptx::shared_address(shared.output[warp]), 0, row + 16 * warp, 0,
                          head, ptx::policy_evict_first());
        ptx::bulk_commit();
      }
      if (++head == p.heads) head = 0;
    };

    // The first unit of a row block, into `even`: the rows of x come through the ring between the
    // chunks of C, each multiplied as soon as it is there, and stay. Meanwhile `odd` is started.
    const auto first_unit_of_rows = [&](int head) {
      ptx::mbarrier_wait(basis_full, row_parity);
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) {
        load_basis(piece);
        start(even, piece, head);
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
          start(odd, chunk, following(head, 1));
        }
        // The slot of x not before its products are issued: they take the values of the last
        // ldmatrix, so that none can still be on its way.
        if (chunk > 0) {
          ptx::wgmma_wait<1>();
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
          start(done, chunk, following(head, 2));
        }
        if (chunk == 4) end_store();
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
      // Nothing of this row block is needed any more: the next one's basis may come.
      if ((ptx::thread_index() & 31) == 0) ptx::mbarrier_arrive(row_empty);
      begin_store();
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) store_piece(done, piece);
      end_store();
    };

    for (row = first_unit(p) / p.heads * 128;; row += 128) {
      const HeadRange heads(p, row / 128);
      if (heads.count <= 0) break;
      int left = heads.count;
      head = heads.head;

      first_unit_of_rows(head);
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
    }
    if ((ptx::thread_index() & 31) == 0) ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda
