#include "machine.hpp"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bda/cuda/ptx/memory.cuh"

// What a kernel reads of its place, and its shared memory.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
namespace bda::inline v0::cuda {
alignas(1024) std::uint8_t shared_bytes[bda_emulated::kSharedBytes];
}  // namespace bda::inline v0::cuda

namespace bda_emulated {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32, kWarpgroup = 128, kPiece = 16;

struct Groups {
  std::deque<std::vector<std::function<void()>>> committed;
  std::vector<std::function<void()>> open;

  bool run_oldest() {
    if (committed.empty()) return false;
    const auto operations = std::move(committed.front());
    committed.pop_front();
    for (const auto& operation : operations) operation();
    return true;
  }
};

struct Mbarrier {
  std::uint32_t arrivals = 0, pending = 0, phase = 0;
  std::int64_t bytes = 0;
  bool visible = false;  // to the copy engine
};

struct Thread {
  ucontext_t context{};
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  bool done = false;
  std::function<bool()> ready;  // null: may run
  const char* awaited = "";     // what makes it ready
  std::int64_t which = 0;
  Groups stores, loads;
  unsigned cluster_generation = 0;
  std::vector<std::uint32_t> unfenced;  // pieces of 16 bytes that it wrote
  std::vector<Mbarrier*> made;
  bool products_fenced = false;
};

struct Meeting {
  std::array<void*, kWarpgroup> brought{};
  unsigned arrived = 0, generation = 0;
};

struct NamedBarrier {
  int arrived = 0, expected = 0;
  unsigned generation = 0;
};

struct Cta {
  Cta(uint3 at, unsigned rank, unsigned count)
      : place(at),
        own(rank > 0 ? kSharedBytes : 0),
        memory(rank > 0 ? own.data() : bda::cuda::shared_bytes),
        unfenced(kSharedBytes / kPiece, 0),
        threads(count),
        warps(count / kWarp),
        warpgroups(count / kWarpgroup + 1),
        products(count / kWarp) {
    std::fill_n(memory, kSharedBytes, std::uint8_t{0xff});  // what nothing has brought is NaN
  }
  Cta(const Cta&) = delete;
  Cta& operator=(const Cta&) = delete;

  uint3 place;
  std::vector<std::uint8_t> own;
  std::uint8_t* memory;                 // rank 0's is the array that kernels declare
  std::vector<std::uint32_t> unfenced;  // of each 16 bytes: writes that no fence has followed yet
  std::vector<Thread> threads;
  std::vector<Meeting> warps, warpgroups;
  std::vector<Groups> products;
  std::array<NamedBarrier, 16> barriers{};
  std::map<std::uint32_t, Mbarrier> mbarriers;
  std::deque<std::function<void()>> copies;
};

/// CTAs that run at the same time.
struct Cluster {
  std::vector<std::unique_ptr<Cta>> ctas;
  unsigned arrived = 0, generation = 0;
};

// The upper bits of a shared address: 0 in the CTA itself, else 1 + the rank in the cluster.
constexpr std::uint32_t kRankShift = 24;

Timing timing = Timing::kEarlyCopies;
std::mt19937_64 chance;
ucontext_t scheduler;
Cluster* cluster = nullptr;
Cta* cta = nullptr;    // whose thread or operation runs
unsigned running = 0;  // the thread
bool in_thread = false;
std::uint32_t shared_limit = kSharedBytes;
unsigned elected = 0;
const std::function<void()>* body = nullptr;
std::string error;

Thread& self() { return cta->threads[running]; }

void resume(Cta& of, unsigned thread) {
  cta = &of;
  running = thread;
  blockIdx = of.place;
  threadIdx = {thread, 0, 0};
  in_thread = true;
  swapcontext(&scheduler, &self().context);
  in_thread = false;
}

void suspend() { swapcontext(&self().context, &scheduler); }

void begin_thread() {
  (*body)();
  self().done = true;
  suspend();
}

void run_copy(Cta& of, std::size_t at) {
  cta = &of;
  const auto copy = std::move(of.copies[at]);
  of.copies.erase(of.copies.begin() + static_cast<std::ptrdiff_t>(at));
  copy();
}

std::size_t any(std::size_t count) { return static_cast<std::size_t>(chance() % count); }

/// Some of the things nobody needs yet, by chance; whether there was one.
bool run_beside(Cta& of) {
  bool any_run = !of.copies.empty();
  if (any_run) run_copy(of, any(of.copies.size()));
  cta = &of;
  Thread& thread = of.threads[any(of.threads.size())];
  for (Groups* groups : {&of.products[any(of.products.size())], &thread.stores, &thread.loads})
    if (groups->run_oldest()) any_run = true;
  return any_run;
}

/// When all threads wait: a copy is the only thing that can help them.
bool run_what_is_waited_for() {
  for (const auto& c : cluster->ctas) {
    if (c->copies.empty()) continue;
    run_copy(*c, timing == Timing::kRandom ? any(c->copies.size()) : 0);
    return true;
  }
  return false;
}

/// Lets every thread of the warp that may run do so until it waits; whether there was one.
bool run_warp(Cta& of, unsigned warp) {
  bool progress = false;
  for (unsigned i = warp * kWarp; i < (warp + 1) * kWarp; ++i) {
    Thread& t = of.threads[i];
    if (t.done) continue;
    cta = &of;
    if (t.ready && !t.ready()) continue;
    t.ready = nullptr;
    resume(of, i);
    progress = true;
    if (!error.empty()) throw std::runtime_error(std::exchange(error, {}));
  }
  return progress;
}

void finish(const Cta& of) {
  if (!of.copies.empty()) throw std::runtime_error("the CTA ends before its copies have come");
  for (const Groups& g : of.products)
    if (!g.open.empty() || !g.committed.empty())
      throw std::runtime_error("the CTA ends before its products have");
  for (const Thread& t : of.threads) {
    for (const Groups* g : {&t.stores, &t.loads})
      if (!g->open.empty()) throw std::runtime_error("a store or load is not committed");
    if (!t.stores.committed.empty())
      throw std::runtime_error("the CTA ends before its stores have been read");
    for (const auto& group : t.loads.committed)
      if (!group.empty()) throw std::runtime_error("the CTA ends before its loads have come");
  }
}

std::string waits_in_vain(const Cluster& here) {
  std::map<std::pair<std::string, std::int64_t>, int> counts;
  for (const auto& c : here.ctas)
    for (const Thread& t : c->threads)
      if (!t.done) ++counts[{t.awaited, t.which}];
  std::string message = "all threads wait in vain:";
  for (const auto& [awaited, count] : counts)
    message += " " + std::to_string(count) + " for " + awaited.first + " " +
               std::to_string(awaited.second) + ";";
  return message;
}

void run_cluster(Cluster& here) {
  cluster = &here;
  struct Warp {
    Cta* cta;
    unsigned index;
    unsigned pace;  // how many turns pass, by chance, until it takes one
  };
  std::vector<Warp> warps;
  constexpr unsigned kPaces[] = {1, 4, 32};
  for (const auto& c : here.ctas) {
    const unsigned pace = here.ctas.size() > 1 && any(2) == 0 ? 64 : 1;  // of the CTA
    for (unsigned i = 0; i < c->warps.size(); ++i)
      warps.push_back({c.get(), i, pace * kPaces[any(3)]});
    for (Thread& t : c->threads) {
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = t.stack.get();
      t.context.uc_stack.ss_size = kStackBytes;
      t.context.uc_link = nullptr;
      makecontext(&t.context, begin_thread, 0);
    }
  }
  const auto alive = [&] {
    for (const auto& c : here.ctas)
      for (const Thread& t : c->threads)
        if (!t.done) return true;
    return false;
  };
  for (bool all_wait = false; alive();) {
    bool progress = false;
    std::shuffle(warps.begin(), warps.end(), chance);
    for (const auto& [of, index, pace] : warps) {
      if (all_wait || any(pace) == 0) progress = run_warp(*of, index) || progress;
      if (timing == Timing::kRandom) progress = run_beside(*of) || progress;
    }
    // Those that were passed over may help the others yet.
    const bool in_vain = all_wait && !progress;
    all_wait = !progress;
    if (in_vain && alive() && !run_what_is_waited_for())
      throw std::runtime_error(waits_in_vain(here));
  }
  for (const auto& c : here.ctas) finish(*c);
}

/// Of an address, which may be another CTA's.
Cta& owner(std::uint32_t address) {
  const std::uint32_t rank = address >> kRankShift;
  if (rank == 0) return *cta;
  if (rank > cluster->ctas.size()) fail("no such CTA in the cluster: rank", rank - 1);
  return *cluster->ctas[rank - 1];
}

std::uint32_t within(std::uint32_t address) { return address & ((1u << kRankShift) - 1); }

Mbarrier& find(std::uint32_t address) {
  auto& all = owner(address).mbarriers;
  const auto at = all.find(within(address));
  if (at == all.end()) fail("mbarrier not initialised, at", address);
  return at->second;
}

void advance(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.arrivals;
  ++b.phase;
}

Groups& groups(Queue queue) {
  if (queue == Queue::kProducts) return cta->products[running / kWarp];
  return queue == Queue::kStores ? self().stores : self().loads;
}

}  // namespace

void set_timing(Timing wanted, std::uint64_t seed) {
  timing = wanted;
  chance.seed(seed);
  elected = static_cast<unsigned>(any(kWarp));
}

unsigned elected_lane() { return elected; }

void launch(Extent grid, unsigned ctas, unsigned threads, std::uint32_t shared_bytes,
            const std::function<void()>& thread) {
  body = &thread;
  shared_limit = shared_bytes;
  blockDim = dim3(threads);
  gridDim = dim3(grid.x, grid.y, grid.z);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += ctas) {
        Cluster here;
        for (unsigned rank = 0; rank < ctas; ++rank)
          here.ctas.push_back(std::make_unique<Cta>(uint3{x + rank, y, z}, rank, threads));
        run_cluster(here);
      }
}

void* shared(std::uint32_t address, std::size_t bytes) {
  if (within(address) + bytes > shared_limit) fail("address beyond shared memory", address);
  return owner(address).memory + within(address);
}

void note_write(std::uint32_t address, std::uint32_t bytes, unsigned by) {
  (void)shared(address, bytes);
  for (std::uint32_t at = address / kPiece; at <= (address + bytes - 1) / kPiece; ++at) {
    ++cta->unfenced[at];
    cta->threads[by].unfenced.push_back(at);
  }
}

void fence_writes() {
  for (const std::uint32_t at : self().unfenced) --cta->unfenced[at];
  self().unfenced.clear();
}

void check_fenced(std::uint32_t address, std::uint32_t bytes) {
  for (std::uint32_t at = address / kPiece; at <= (address + bytes - 1) / kPiece; ++at)
    if (cta->unfenced[at] != 0) fail("no proxy fence since the writes at", at * kPiece);
}

void fail(const char* what, std::int64_t value) {
  const std::string message = std::string(what) + " " + std::to_string(value);
  if (!in_thread) throw std::runtime_error(message);
  error = message;  // nothing can be thrown from one stack to another
  for (;;) suspend();
}

void wait_until(const char* what, std::int64_t which, std::function<bool()> ready) {
  if (ready()) return;
  self().awaited = what;
  self().which = which;
  self().ready = std::move(ready);
  suspend();
}

void together(unsigned threads, void* mine, const std::function<void(void* const*)>& operation) {
  Meeting& meeting =
      threads == kWarp ? cta->warps[running / kWarp] : cta->warpgroups[running / kWarpgroup];
  meeting.brought[running % threads] = mine;
  if (++meeting.arrived == threads) {
    operation(meeting.brought.data());
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  wait_until("the other threads of its warp or warpgroup, of", threads,
             [&meeting, was = meeting.generation] { return meeting.generation != was; });
}

void barrier(int id, int threads, bool wait) {
  if (id < 0 || id > 15) fail("no such barrier: id", id);
  if (threads % static_cast<int>(kWarp) != 0) fail("a barrier of no whole warps: id", id);
  NamedBarrier& b = cta->barriers[static_cast<std::size_t>(id)];
  if (b.arrived > 0 && b.expected != threads) fail("threads of one barrier disagree: id", id);
  b.expected = threads;
  const unsigned was = b.generation;
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.generation;
  }
  if (wait) wait_until("barrier", id, [&b, was] { return b.generation != was; });
}

void cluster_barrier(bool arrive) {
  const unsigned all =
      static_cast<unsigned>(cluster->ctas.size() * cluster->ctas.front()->threads.size());
  Thread& t = self();
  if (arrive) {
    t.cluster_generation = cluster->generation;
    if (++cluster->arrived == all) {
      cluster->arrived = 0;
      ++cluster->generation;
    }
  } else {
    wait_until("the CTAs of its cluster, of", static_cast<std::int64_t>(cluster->ctas.size()),
               [was = t.cluster_generation] { return cluster->generation != was; });
  }
}

std::uint32_t address_in_cluster(std::uint32_t address, std::uint32_t rank) {
  return within(address) | (rank + 1) << kRankShift;
}

void fence_mbarriers() {
  for (Mbarrier* b : self().made) b->visible = true;
  self().made.clear();
}

void mbarrier_init(std::uint32_t address, std::uint32_t arrivals) {
  (void)shared(address, 8);
  check_multiple("mbarrier at no multiple of 8:", address, 8);
  const auto [at, is_new] = cta->mbarriers.emplace(address, Mbarrier{arrivals, arrivals});
  if (!is_new) fail("mbarrier initialised twice, at", address);
  self().made.push_back(&at->second);
}

void mbarrier_arrive(std::uint32_t address, std::uint32_t expected_bytes) {
  Mbarrier& b = find(address);
  if (b.pending == 0) fail("one arrival too many at the mbarrier at", address);
  b.bytes += expected_bytes;
  --b.pending;
  advance(b);
}

void mbarrier_complete(std::uint32_t address, std::uint32_t bytes) {
  Mbarrier& b = find(address);
  if (!b.visible) fail("no fence since the mbarrier was initialised, at", address);
  b.bytes -= bytes;
  advance(b);
}

bool mbarrier_is_over(std::uint32_t address, std::uint32_t parity) {
  return (find(address).phase & 1) != parity;
}

void later(std::function<void()> copy) {
  if (timing == Timing::kEarlyCopies)
    copy();
  else
    cta->copies.push_back(std::move(copy));
}

void add_to_group(Queue queue, std::function<void()> operation) {
  const bool at_once = timing == Timing::kEarlyCopies || (timing == Timing::kRandom && any(2) == 0);
  if (queue == Queue::kLoads && at_once) return operation();
  groups(queue).open.push_back(std::move(operation));
}

void add_product(unsigned warp, std::function<void()> operation) {
  cta->products[running / kWarpgroup * (kWarpgroup / kWarp) + warp].open.push_back(
      std::move(operation));
}

void commit_group(Queue queue) {
  Groups& g = groups(queue);
  g.committed.push_back(std::move(g.open));
  g.open.clear();
  // Late copies come with early products and stores.
  if (timing == Timing::kLateCopies && queue != Queue::kLoads) g.run_oldest();
}

void wait_for_groups(Queue queue, std::size_t pending) {
  Groups& g = groups(queue);
  while (g.committed.size() > pending) g.run_oldest();
}

void fence_products(bool fenced) { self().products_fenced = fenced; }

void check_products_fenced() {
  if (!self().products_fenced) fail("no wgmma_fence before a product: thread", running);
}

}  // namespace bda_emulated
