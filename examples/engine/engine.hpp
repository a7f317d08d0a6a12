#pragma once
#include "bda/attention/bd_attention.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "pages.hpp"

/// A small inference engine around BDAttention: memory, pages, stream and attention kernel are its
/// own. Device (cpu.hpp, cuda.hpp) is where it runs: the kernel, and the model less attention.
namespace engine {
/// One piece of memory, taken at the start and handed out in order.
template <class Device>
struct Pool {
  std::size_t bytes = std::size_t{1} << 27, used = 0;
  typename Device::Memory memory = Device::allocate(bytes);
  template <class T>
  T* take(std::int64_t count) {
    std::byte* const at = memory.get() + used;
    used += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    if (used > bytes) throw bda::Error("pool", std::to_string(bytes), std::to_string(used));
    return reinterpret_cast<T*>(at);
  }
};

/// The cache that the attention step brings: a page is taken when a token needs it.
template <class T>
struct PagedCache : Pages<T> {
  std::vector<std::int32_t> taken{};
  std::int64_t tokens = 0;
  std::int64_t batch() const { return 1; }
  std::int64_t length() const { return tokens; }
  std::int64_t capacity() const { return static_cast<std::int64_t>(taken.size()) * kPage; }
  void set_length(std::int64_t length) { tokens = length; }
};

/// A decoder-only language model for one sequence of at most `most` tokens, decoded greedily.
template <class Device>
class Engine {
 public:
  using Attention = bda::BDAttention<typename Device::Backend>;
  using T = typename Attention::Compute;
  /// `attention`: each layer's weights, plain or decomposed. `model` outlives the engine.
  Engine(const bda::checkpoint::TransformerWeights<typename Device::Stored>& model,
         std::vector<typename Attention::Weights> attention, std::int64_t most)
      : device_(model, most), hidden_(model.hidden_dim()) {
    const bda::AttentionConfig c = attention.front().config;
    const std::int64_t keys = c.kv_heads * c.head_dim(), values = c.kv_heads * c.v_dim;
    const std::int64_t pages = (most + kPage - 1) / kPage;
    T* const memory =
        pool_.template take<T>(std::ssize(attention) * pages * kPage * (keys + values));
    for (auto& weights : attention) {
      caches_.push_back({{memory, pool_.template take<std::int32_t>(pages), keys, values}});
      layers_.emplace_back(std::move(weights));
    }
    in_ = pool_.template take<T>(most * hidden_), out_ = pool_.template take<T>(most * hidden_);
    const auto bytes = static_cast<std::int64_t>(layers_.front().workspace_size(arguments(most)));
    workspace_ = {pool_.template take<std::byte>(bytes), static_cast<std::size_t>(bytes)};
  }
  /// Prefill, then one token at a time: the `count` likeliest tokens behind the prompt.
  std::vector<std::int64_t> generate(std::span<const std::int64_t> prompt, std::int64_t count) {
    std::vector<std::int64_t> made{next(prompt)};
    while (std::ssize(made) < count) made.push_back(next({&made.back(), 1}));
    return made;
  }

 private:
  typename Attention::Arguments arguments(std::int64_t tokens) const {
    typename Attention::Arguments args;  // causal self-attention by default
    args.x = {in_, {1, tokens, hidden_}}, args.out = {out_, {1, tokens, hidden_}};
    return args;
  }
  std::int64_t next(std::span<const std::int64_t> tokens) {
    const std::int64_t count = std::ssize(tokens);
    device_.embed(tokens, caches_.front().length());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      PagedCache<T>& cache = caches_[i];
      while (cache.capacity() < cache.length() + count) cache.taken.push_back(free_page_++);
      device_.upload(cache.taken, cache.table);
      device_.norm_into(i, in_);
      if (const auto s = layers_[i].run(arguments(count), cache, workspace_, device_.stream()); !s)
        throw bda::Error("attention", "success", s.message());
      device_.add_and_mlp(i, out_);
    }
    return device_.likeliest();
  }
  Device device_;
  std::int64_t hidden_;
  Pool<Device> pool_;
  std::int32_t free_page_ = 0;
  std::vector<Attention> layers_;
  std::vector<PagedCache<T>> caches_;
  T *in_ = nullptr, *out_ = nullptr;
  std::span<std::byte> workspace_;
};
}  // namespace engine
