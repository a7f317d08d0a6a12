#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pages.hpp"

/// The engine's own kernels, for plain C++. T is __half or __nv_bfloat16; bodies in
/// cuda_kernels.cu.
namespace engine {

struct PagedShape {
  std::int64_t past, tokens;  // in the pages before, and new
  std::int64_t heads, kv_heads, key_width, value_width;
};

/// Puts the new tokens' k [tokens, kv_heads, key_width] and v into their pages, then
/// out [tokens, heads, value_width] = causal attention of q over the pages. All dense.
template <class T>
void paged_attend(const T* q, const T* k, const T* v, const Pages<T>& pages,
                  const PagedShape& shape, float scale, T* out, cudaStream_t stream);

/// *word = the index of the largest of logits [vocab].
void likeliest(const float* logits, std::int64_t vocab, std::int64_t* word, cudaStream_t stream);

}  // namespace engine
