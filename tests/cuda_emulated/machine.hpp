#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

/// A multiprocessor, emulated: the threads of a CTA are coroutines of one host thread, and what the
/// hardware does beside them (copies, products, stores) waits in queues until a thread waits for
/// it, or until chance picks it. So a kernel that reads a buffer before it is full, or gives one
/// back before it is read, computes something else here, whatever the timing of a real device would
/// have hidden.
///
/// bda/cuda/ptx beside this file has the functions of include/bda/cuda/ptx in terms of this. Not
/// modelled: the kernel before (`wait_for_previous_kernel`), registers, the time that ldmatrix
/// takes, warps that diverge at an `.aligned` instruction, and what a kernel writes to shared
/// memory through a C++ pointer (it counts as fenced, and as the first CTA's of a cluster).
namespace bda_emulated {

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

/// How the queues are served: copies as early and products and stores as late as allowed, the other
/// way round, or by chance.
enum class Timing { kEarlyCopies, kLateCopies, kRandom };

/// Of the launches that follow; `seed` also decides which warp runs next.
void set_timing(Timing timing, std::uint64_t seed);

/// Runs `thread` for every thread of every CTA, one cluster (of `ctas` along x) after the other,
/// with `shared_bytes` of shared memory a CTA. Throws std::runtime_error where the kernel misuses a
/// barrier or an address, forgets a fence, leaves something undone, or waits for what never comes.
void launch(Extent grid, unsigned ctas, unsigned threads, std::uint32_t shared_bytes,
            const std::function<void()>& thread);

// ---- for the functions of ptx, called by a thread of the CTA

constexpr std::uint32_t kSharedBytes = 227 * 1024;  // the most a CTA may have

/// `bytes` of shared memory, this CTA's or another's in the cluster, from `address`.
void* shared(std::uint32_t address, std::size_t bytes);

/// Thread `by` has written there itself.
void note_write(std::uint32_t address, std::uint32_t bytes, unsigned by);
/// The calling thread's writes are visible to the copy engine and to wgmma from here on.
void fence_writes();
/// What the copy engine or wgmma is about to read must be visible to it.
void check_fenced(std::uint32_t address, std::uint32_t bytes);

/// The lane of each warp that elect.sync elects.
unsigned elected_lane();

/// Reports misuse; does not return.
[[noreturn]] void fail(const char* what, std::int64_t value);

/// Suspends the calling thread until `ready`; `what`, a literal, and `which` say what it waits for.
void wait_until(const char* what, std::int64_t which, std::function<bool()> ready);

/// All of the `threads` (32 or 128) neighbours must come here; the last one runs `operation` on
/// what each has brought, in the order of the threads.
void together(unsigned threads, void* mine, const std::function<void(void* const*)>& operation);

/// The CTA's named barriers; 0 is that of __syncthreads.
void barrier(int id, int threads, bool wait);

/// Of all threads of the cluster: to arrive, and then to wait.
void cluster_barrier(bool arrive);

std::uint32_t address_in_cluster(std::uint32_t address, std::uint32_t rank);

/// The calling thread's new barriers are visible to the copy engine from here on.
void fence_mbarriers();
void mbarrier_init(std::uint32_t address, std::uint32_t arrivals);
void mbarrier_arrive(std::uint32_t address, std::uint32_t expected_bytes);
void mbarrier_complete(std::uint32_t address, std::uint32_t bytes);
bool mbarrier_is_over(std::uint32_t address, std::uint32_t parity);

/// Queues a copy into shared memory.
void later(std::function<void()> copy);

/// What a thread (of products: a warp) has asked for in committed groups, which end in order. Loads
/// are those of cp.async.
enum class Queue { kStores, kLoads, kProducts };
void add_to_group(Queue queue, std::function<void()> operation);
void commit_group(Queue queue);
void wait_for_groups(Queue queue, std::size_t pending);

/// Of the calling thread's warpgroup: adds to the open group of `warp` (0 to 3).
void add_product(unsigned warp, std::function<void()> operation);
/// Whether the calling thread has fenced its registers since it last committed products.
void fence_products(bool fenced);
void check_products_fenced();

}  // namespace bda_emulated
