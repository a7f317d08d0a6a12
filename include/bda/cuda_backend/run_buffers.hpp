#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "bda/cuda/checks.hpp"
#include "bda/cuda_backend/product.hpp"
#include "bda/model/attention_config.hpp"

namespace bda::inline v0::cuda {

/// The sizes of one run of a layer.
struct RunShape {
  std::int64_t batch = 0, queries = 0;
  std::int64_t past = 0, fresh = 0;  // keys in the cache before, and new ones
  bool cached = false;               // keys and values go to a cache of their own
  bool latent_cache = false;
  bool absorbed = false;
  std::int64_t formed = 0;  // keys of each sequence that are formed in the workspace

  [[nodiscard]] std::int64_t rows() const { return batch * queries; }
  [[nodiscard]] std::int64_t fresh_rows() const { return batch * fresh; }
  [[nodiscard]] std::int64_t keys() const { return past + fresh; }
};

/// Where everything of a run lies in the workspace; with a null base only its size.
template <class T>
class RunBuffers {
 public:
  /// `scratch_rows(n)`: elements that projecting n tokens needs beside its operands.
  template <class Scratch>
  RunBuffers(const AttentionConfig& c, bool has_latent, bool has_query_latent, const RunShape& s,
             const Scratch& scratch_rows, std::byte* memory)
      : base_(memory) {
    const std::int64_t latent_width = c.kv_dim + c.rope_dim;
    // Latents in a cache are no even rows: they are projected one sequence at a time.
    const std::int64_t at_once = s.absorbed ? 0 : s.latent_cache ? s.keys() : s.fresh_rows();
    const std::int64_t formed = s.batch * s.formed;
    blas = take(kBlasWorkspaceBytes);
    query_latent = array<T>(has_query_latent ? s.rows() * c.query_dim : 0);
    q = array<T>(s.rows() * c.heads * c.head_dim());
    latent = array<T>(has_latent ? s.fresh_rows() * c.kv_dim : 0);
    rope = array<T>(s.fresh_rows() * c.rope_key_heads() * c.rope_dim);
    latents = array<T>(s.absorbed && !s.latent_cache ? s.fresh_rows() * latent_width : 0);
    keys = array<T>(formed * c.kv_heads * c.head_dim());
    values = array<T>(formed * c.kv_heads * c.v_dim);
    side = array<T>(at_once * c.kv_heads * std::max(c.qk_dim, c.v_dim));
    scratch = array<T>(scratch_rows(std::max(at_once, s.fresh_rows())));
    absorbed_q = array<T>(s.absorbed ? s.rows() * c.heads * latent_width : 0);
    mixed = array<T>(s.absorbed ? s.rows() * c.heads * c.kv_dim : 0);
    attended = array<T>(s.rows() * c.heads * c.v_dim);
    key_lengths = array<std::int32_t>(s.batch);
  }

  /// The attention step's own part, last.
  void add_attend(std::size_t size) {
    attend_bytes = size;
    attend = take(size);
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  void* blas;
  T *query_latent, *q;        // [rows, query_dim], [rows, heads, qk + rope]
  T *latent, *rope;           // [fresh rows, kv_dim], [fresh rows, rope heads, rope]
  T* latents;                 // [fresh rows, kv_dim + rope], absorbed without a cache
  T *keys, *values;           // [batch, keys, kv_heads, width] where no cache has them
  T *side, *scratch;          // sides that are projected by themselves
  T *absorbed_q, *mixed;      // [rows, heads, kv_dim + rope], [rows, heads, kv_dim]
  T* attended;                // [rows, heads, v]
  std::int32_t* key_lengths;  // [batch]
  std::byte* attend = nullptr;
  std::size_t attend_bytes = 0;

 private:
  std::byte* take(std::size_t size) {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += detail::part_size(size);
    return at;
  }
  template <class U>
  U* array(std::int64_t count) {
    return reinterpret_cast<U*>(take(static_cast<std::size_t>(count) * sizeof(U)));
  }

  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace bda::inline v0::cuda
