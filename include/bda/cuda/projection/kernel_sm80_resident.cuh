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
/// With two warps a scheduler what one waits for is only hidden while the other multiplies: here no
/// product waits for a load behind a barrier, nothing in the loop branches, and copies are few at a
/// time.
namespace bda::inline v0::cuda {

namespace sm80_resident {

constexpr int kGroups = 2, kThreads = kGroups * sm80::kThreads;
constexpr int kSlots = 3;  // of 128 columns x 64 channels, per group

/// The C of one group's tiles on its way into the group's ring, chunk by chunk.
template <class T>
class Stream {
 public:
  /// From `tile` on, the tiles before `last` of this group.
  __device__ __forceinline__ Stream(const Sm80Params<T>& p, int tile, int last, std::uint32_t ring,
                                    int thread)
      : p_(p),
        first_(p.coefficients + 1024 + thread * 8),
        pieces_(thread),
        ring_(ring),
        tile_(tile),
        last_(last),
        column_tile_(tile % p.column_tiles),
        column_step_(kGroups % p.column_tiles) {
    locate();
  }

  /// 64 columns of the chunk.
  __device__ __forceinline__ void copy(int half) const {
#pragma unroll
    for (int quarter = 0; quarter < 2; ++quarter)
      to_.copy((2 * half + quarter) * 4096, source_[half][quarter], tile_ < last_);
  }

  /// To the next chunk; not right behind the copies, which read their addresses late and hold up
  /// whatever changes them.
  __device__ __forceinline__ void advance() {
    slot_ = slot_ == (kSlots - 1) * sm80::kTileBytes ? 0 : slot_ + sm80::kTileBytes;
    const bool next = ++chunk_ == p_.chunks;
    chunk_ = next ? 0 : chunk_;
    tile_ += next ? kGroups : 0;
    column_tile_ += next ? column_step_ : 0;
    column_tile_ -= column_tile_ >= p_.column_tiles ? p_.column_tiles : 0;
    locate();
  }

 private:
  __device__ __forceinline__ void locate() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Beyond the last block that block again, which nobody stores.
      const int block = min(2 * column_tile_ + half, p_.column_blocks - 1);
      source_[half][0] = first_ + static_cast<std::int64_t>(block * p_.chunks + chunk_) * 4096;
      source_[half][1] = source_[half][0] + 2048;
    }
    to_ = pieces_.at(ring_ + slot_);
  }

  const Sm80Params<T>& p_;
  const T* first_;
  const T* source_[2][2];  // [half][quarter of a chunk]
  sm80::ColumnsTarget pieces_, to_;
  std::uint32_t ring_, slot_ = 0;
  int tile_, last_, column_tile_, column_step_, chunk_ = 0;
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
  sm80::Tile<T> t(thread);
  Stream<T> stream(p, first + group, last, ring, thread);
  const std::uint32_t x_first = rows + t.x_offset, c_first = ring + t.c_offset;
  std::uint32_t x = x_first, c = c_first, slot = 0;
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
    // with chunk 0, and wait for each other at their next two barriers too: for chunk 1, for the
    // rest.
    int joint = 0;
    if (end - begin >= kGroups) {
      joint = min(2, p.chunks - 1);
      ptx::async_wait<1>();
    } else {
      ptx::async_commit();
      ptx::async_wait<0>();
    }
    __syncthreads();

    int tile = begin + (begin - first + group) % kGroups;
    const auto tile_column = [&](int of) { return (of - row_tile * p.column_tiles) * 128; };
    const auto basis_of = [&](int of) {
      return [&, of](int part) {
        const int channel =
            p.width.remainder(min(t.column_of(tile_column(of), part), p.columns - 8));
        return basis + channel / 64 * kTileBytes + t.row() * 128 +
               (sm80::basis_piece(channel % 64 / 8, t.row()) << 4);
      };
    };
    if (tile < end) {
      t.start(basis_of(tile));
      if (p.bias != nullptr) t.add_bias(p.bias, tile_column(tile), p.columns);
      x = x_first;
      t.load(0, x, c);
    }
    for (; tile < end; tile += kGroups) {
      for (int chunk = 1; chunk <= p.chunks; ++chunk) {  // the one that comes next
        const auto next = [&] {
          x = chunk == p.chunks ? x_first : x + kTileBytes;
          slot = slot == (kSlots - 1) * kTileBytes ? 0 : slot + kTileBytes;
          c = c_first + slot;
          ptx::async_wait<1>();
          // It has come, and the present one is read: its slot is filled during the next.
          ptx::barrier_sync(joint > 0 ? 0 : 1 + group, joint > 0 ? kThreads : sm80::kThreads);
          --joint;
        };
        t.multiply(x, c, next, [&](int k) {
          if (k == 0) stream.copy(0);
          if (k == 1) {
            stream.copy(1);
            ptx::async_commit();  // also when empty, so that the count of groups stays even
          }
          if (k == 3) stream.advance();
        });
      }
      if (tile + kGroups < end) {
        t.store_and_start(p, token, tile_column(tile), basis_of(tile + kGroups));
        if (p.bias != nullptr) t.add_bias(p.bias, tile_column(tile + kGroups), p.columns);
      } else {
        t.store(p, token, tile_column(tile));
      }
    }
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda
