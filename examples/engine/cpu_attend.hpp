#pragma once
#include <numeric>

#include "bda/cpu/backend.hpp"
#include "engine.hpp"
namespace engine {
/// The attention step: new keys and values into their pages, then one pass over all of them.
template <class T>
struct CpuAttend {
  using Cache = PagedCache<T>;
  using Arguments = bda::cpu::AttendArguments<T, T>;
  static std::size_t workspace_size(const Arguments&, const Cache*) { return 0; }
  static bda::Status run(const Arguments& a, Cache* cache, std::span<std::byte>) {
    if (!cache || a.sinks || a.score.softcap > 0 || a.score.mask.window > 0 || !a.score.mask.causal)
      return bda::Status::error(bda::Status::Code::kUnsupported, "mask", "causal alone", 1, 0);
    const std::int64_t qk = a.k.extent(3), v = a.v.extent(3), group = a.q.extent(2) / a.k.extent(2);
    for (std::int64_t i = 0; i < a.q.extent(1); ++i) {
      const std::int64_t last = cache->length() + i;
      for (std::int64_t g = 0; g < a.k.extent(2); ++g)
        std::copy_n(&a.k(0, i, g, 0), qk, cache->key(last) + g * qk),
            std::copy_n(&a.v(0, i, g, 0), v, cache->value(last) + g * v);
      for (std::int64_t h = 0; h < a.q.extent(2); ++h) {
        T* const out = std::fill_n(&a.out(0, i, h, 0), v, T(0)) - v;
        T largest = std::numeric_limits<T>::lowest(), sum = 0;
        for (std::int64_t j = 0; j <= last; ++j) {
          const T *key = cache->key(j) + h / group * qk, *value = cache->value(j) + h / group * v;
          const T s = a.score.scale * std::inner_product(key, key + qk, &a.q(0, i, h, 0), T(0));
          const T old = std::exp(std::min(largest - s, T(0)));
          largest = std::max(largest, s);
          const T weight = std::exp(s - largest);
          sum = sum * old + weight;
          for (std::int64_t r = 0; r < v; ++r) out[r] = out[r] * old + weight * value[r];
        }
        for (std::int64_t r = 0; r < v; ++r) out[r] /= sum;
      }
    }
    return {};
  }
};
}  // namespace engine
