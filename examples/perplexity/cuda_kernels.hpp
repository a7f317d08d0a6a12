#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "bda/checkpoint/transformer.hpp"

/// The parts of a transformer that are neither products nor attention, on the GPU. T is __half or
/// __nv_bfloat16; the residual stream x is fp32, [rows, width]. Bodies in cuda_kernels.cu.
namespace perplexity {

/// x[row] = embedding[tokens[row]] (+ positions[row % length]).
template <class T>
void embed(const T* embedding, const T* positions, const std::int64_t* tokens, std::int64_t rows,
           std::int64_t length, std::int64_t width, float* x, cudaStream_t stream);

/// y = norm(x); `bias` null for none.
template <class T>
void norm(bda::checkpoint::NormKind kind, const float* x, const T* weight, const T* bias,
          float epsilon, std::int64_t rows, std::int64_t width, T* y, cudaStream_t stream);

/// x += y.
template <class T>
void add(const T* y, std::int64_t count, float* x, cudaStream_t stream);

/// x = activation(x) (* factor), in place.
template <class T>
void activate(bda::checkpoint::Activation kind, const T* factor, std::int64_t count, T* x,
              cudaStream_t stream);

/// losses[row] = log(sum(exp(logits[row]))) - logits[row][targets[row]]; 0 for a negative target.
void losses(const float* logits, const std::int64_t* targets, std::int64_t rows, std::int64_t vocab,
            double* losses, cudaStream_t stream);

}  // namespace perplexity
