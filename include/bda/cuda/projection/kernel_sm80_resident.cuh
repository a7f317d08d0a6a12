#pragma once

#include <cstdint>

#include "bda/cuda/projection/sm80_tile.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// sm80_kernel where a multiprocessor's shared memory holds 128 whole rows of x beside the rings: x
/// is read once for many heads, which halves what L2 delivers and what is written to shared memory.
///
/// A CTA has a range of tiles, rows slowest. Two groups of four warps share its rows of x; each
/// takes every second tile and has its own ring of C, so that one group's stores and starts lie
/// beside the other's products. Of C the chunk after the next is on its way, across the edges of
/// tiles and rows. Sums run in the order of sm80_kernel: the bits are the same.
///
/// With two warps a scheduler what one waits for is only hidden while the other multiplies. So a
/// warp has all 128 rows and 32 columns of a tile: it alone reads the C of these, copies it itself,
/// and waits for no other warp before the rows of x change. (It reads a quarter more from shared
/// memory than with 64 x 64, which cost more in barriers and, with two parts of columns, in
/// registers.) No product waits for a load, the loop over chunks branches for nothing but the rows'
/// change, and copies are few at a time.
namespace bda::inline v0::cuda {

namespace sm80_resident {

constexpr int kGroups = 2, kThreads = kGroups * sm80::kThreads;
constexpr int kSlots = 3;  // of 128 columns x 64 channels, per group

/// The C of one warp's columns on its way into the warp's part of its group's ring, chunk by chunk.
template <class T>
class Stream {
 public:
  /// From `tile` on, the tiles before `last` of this group; `thread` is of the group.
  __device__ __forceinline__ Stream(const Sm80Params<T>& p, int tile, int last, std::uint32_t ring,
                                    int thread)
      : p_(p),
        left_(last - tile),
        column_tile_(tile % p.column_tiles),
        column_step_(kGroups % p.column_tiles),
        tile_block_(thread / 64) {
    const sm80::ColumnsCopy copy(thread % 32);
    first_ = p.coefficients + thread / 32 % 2 * 2048 + copy.source;
    end_ = ring + thread / 32 * 4096 + copy.target + kSlots * sm80::kTileBytes;
    to_ = end_ - sm80::kTileBytes;
    locate();
  }

  /// Half of the chunk, the first half first.
  __device__ __forceinline__ void copy(int half) {
    if (half == 0) {
      to_ += sm80::kTileBytes;
      to_ -= to_ == end_ ? kSlots * sm80::kTileBytes : 0;
    }
    sm80::ColumnsCopy::copy(half, to_, source_, left_ > 0);
  }

  /// To the next chunk; not right behind the copies, which read their addresses late and hold up
  /// whatever changes them. (The compiler would move the change of `to_` up there: it is made
  /// before the next copy, a branch later.)
  __device__ __forceinline__ void advance() {
    const bool next = ++chunk_ == p_.chunks;
    chunk_ = next ? 0 : chunk_;
    left_ -= next ? kGroups : 0;
    column_tile_ += next ? column_step_ : 0;
    column_tile_ -= column_tile_ >= p_.column_tiles ? p_.column_tiles : 0;
    locate();
  }

 private:
  __device__ __forceinline__ void locate() {
    // Beyond the last block that block again, which nobody stores.
    const int block = min(2 * column_tile_ + tile_block_, p_.column_blocks - 1);
    source_ = first_ + static_cast<std::int64_t>(block * p_.chunks + chunk_) * 4096;
  }

  const Sm80Params<T>& p_;
  const T *first_, *source_;
  std::uint32_t to_, end_;
  int left_;  // tiles of both groups
  int column_tile_, column_step_, chunk_ = 0;
  int tile_block_;  // of 64 columns, of the tile's two
};

}  // namespace sm80_resident

template <class T>
__global__ void __launch_bounds__(256, 1)
    sm80_resident_kernel(const __grid_constant__ Sm80Params<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace sm80_resident;
  using sm80::kTileBytes;
  // x in blocks of 64 rest channels, the basis in blocks of 64, two rings:
  // detail::sm80_resident_shared_bytes counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const std::uint32_t rows = ptx::shared_address(shared_bytes);
  const std::uint32_t basis = rows + p.chunks * kTileBytes;
  const std::uint32_t ring =
      basis + ((p.width.value() + 63) / 64 + group * kSlots) * kTileBytes;  // of this group

  const int share = p.tiles / static_cast<int>(gridDim.x);
  const int longer = p.tiles % static_cast<int>(gridDim.x);  // CTAs with a tile more
  const int cta = static_cast<int>(blockIdx.x);
  const int first = cta * share + min(cta, longer), last = first + share + (cta < longer ? 1 : 0);

  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();
  sm80::Tile<T, 128, 32> t(thread);
  Stream<T> stream(p, first + group, last, ring, thread);
  const std::uint32_t x_first = rows + t.x_offset, c_first = ring + t.c_offset;
  std::uint32_t x = x_first, c = c_first, slot = 0;
  int joint = 0;
  for (int begin = first, end = 0; begin < last; begin = end) {
    const int row_tile = begin / p.column_tiles, token = row_tile * 128;
    end = min(last, (row_tile + 1) * p.column_tiles);
    __syncthreads();  // nobody reads the rows before any more

    {  // thread t moves piece t % 8 of rows t / 8, + 32, ..; rows beyond the last are copies of it
      const int piece = static_cast<int>(threadIdx.x) % 8;
      const int row = static_cast<int>(threadIdx.x) / 8;
      const T* source[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        source[i] = p.x + min(token + row + 32 * i, p.tokens - 1) * p.x_stride;
      const auto fetch = [&](std::uint32_t to, int to_piece, int channel, bool valid) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ptx::async_load_16(to + (row + 32 * i) * 128 + (to_piece << 4),
                             source[i] + (valid ? channel : 0), valid);
      };
      for (int k = 0; 64 * k < p.width.value(); ++k) {
        const int channel = 64 * k + 8 * piece;
        fetch(basis + k * kTileBytes, sm80::basis_piece(piece, row), p.basis_begin + channel,
              channel < p.width.value());
      }
      // A commit each for the basis with chunk 0, and for chunk 1; the rest joins the stream's
      // next.
      for (int k = 0; k < max(p.chunks, 2); ++k) {
        const int rest = 64 * k + 8 * piece;
        if (k < p.chunks)
          fetch(rows + k * kTileBytes, piece ^ (row & 7),
                rest < p.basis_begin ? rest : rest + p.width.value(), rest < p.rest);
        if (begin == first && k < 2) {
          stream.copy(0);
          stream.copy(1);
          stream.advance();
        }
        if (k < 2) ptx::async_commit();
      }
    }
    // Each group makes half of the copies of x. If both have a tile with these rows, they begin
    // with chunk 0, and wait for each other behind their next two chunks too: for chunk 1, for the
    // rest.
    joint = 0;
    if (end - begin >= kGroups) {
      joint = min(2, p.chunks - 1);
      ptx::async_wait<1>();
    } else {
      ptx::async_commit();
      ptx::async_wait<0>();
    }
    __syncthreads();

    // The group's tiles with these rows, by their first columns.
    const int row_begin = row_tile * p.column_tiles;
    int column = (begin - row_begin + (begin - first + group) % kGroups) * 128;
    const int column_end = (end - row_begin) * 128;
    if (column >= column_end) continue;
    std::uint32_t basis_at[1];
    const auto locate_basis = [&] {
      const int channel = p.width.remainder(min(column + t.column, p.columns - 8));
      basis_at[0] = basis + channel / 64 * kTileBytes + t.row * 128 +
                    (sm80::basis_piece(channel % 64 / 8, t.row) << 4);
    };
    locate_basis();
    t.start(p, column, basis_at);
    x = x_first;
    t.load(x, c);
    const auto copy_first = [&](int i) {
      if (i == 4) stream.copy(0);
    };
    const auto copy_second = [&](int i) {
      if (i != 4) return;
      stream.copy(1);
      ptx::async_commit();  // also when empty, so that the count of groups stays even
    };
    t.template multiply<0>(x, c, copy_first);
    for (;;) {
      for (int chunk = 1;; ++chunk) {  // the one that comes next
        t.template multiply<1>(x, c, copy_second);
        t.template multiply<2>(x, c, [](int) {});
        x = chunk == p.chunks ? x_first : x + kTileBytes;
        slot = slot == (kSlots - 1) * kTileBytes ? 0 : slot + kTileBytes;
        c = c_first + slot;
        ptx::async_wait<1>();  // what comes next is there
        if (joint > 0) ptx::barrier_sync<0>(kThreads);
        __syncwarp();
        --joint;
        t.template multiply<3>(x, c, [&](int i) {
          if (i == 1) stream.advance();
        });
        if (chunk == p.chunks) break;
        t.template multiply<0>(x, c, copy_first);
      }
      if (column + kGroups * 128 >= column_end) break;
      // The next tile's start and first products beside the stores, by rows: each hides what the
      // others wait for.
      const typename decltype(t)::Output out(t, p, token, column);
      column += kGroups * 128;
      locate_basis();
      auto rows_basis = t.load_basis(basis_at, 0);
      t.template multiply<0>(x, c, [&](int i) {
        t.store_rows(out, i);
        t.start_rows(rows_basis, i);
        // Read anew each time: registers are short.
        if (p.bias != nullptr) t.add_bias(p, column, i, i + 1);
        if (i < 7) rows_basis = t.load_basis(basis_at, i + 1);
        copy_first(i);
      });
    }
    t.store(p, token, column);
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda
