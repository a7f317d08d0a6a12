#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <string>
#include <variant>

#include "../perplexity/cuda_kernels.hpp"
#include "bda/cuda_backend.hpp"
#include "bda/linalg/scalar.hpp"
#include "cuda_kernels.hpp"
#include "engine.hpp"

namespace engine {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw bda::Error("CUDA", "success", cudaGetErrorString(error));
}

/// Throws where there is no GPU that the program could use.
inline void require_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0)
    throw bda::Error("--device cuda", "a GPU",
                     std::string("no CUDA device: ") + cudaGetErrorString(error));
}

/// The engine's attention step on a GPU: its own kernels over its own pages.
template <class T>
struct CudaAttend {
  using Cache = PagedCache<T>;
  using Arguments = bda::cuda::AttendArguments<T>;
  static std::size_t workspace_size(const Arguments&, const Cache*, const bda::cuda::DeviceInfo&) {
    return 0;
  }
  static bda::Status run(const Arguments& a, Cache* cache, const bda::cuda::DeviceInfo&, void*,
                         std::size_t, cudaStream_t stream) {
    if (!cache || a.sinks || a.softcap > 0 || a.window > 0 || !a.causal)
      return bda::Status::error(bda::Status::Code::kUnsupported, "mask", "causal alone", 1, 0);
    paged_attend<T>(a.q.data, a.k.data, a.v.data, *cache,
                    {cache->length(), a.q.extent(1), a.q.extent(2), a.k.extent(2), a.k.extent(3),
                     a.v.extent(3)},
                    a.scale, a.out.data, stream);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess
               ? bda::Status{}
               : bda::Status::error(bda::Status::Code::kDeviceError, "paged_attend",
                                    "success (as cudaError_t)", cudaSuccess, error);
  }
};

/// The model less attention, on the current GPU: weights and products in S, the residual stream in
/// fp32, all on one stream. Models with learned positions or experts are refused.
template <class S>
class Cuda {
 public:
  using Stored = S;
  using T = typename bda::cuda::ElementOf<bda::StorageTraits<S>::dtype>::type;
  using Backend = bda::CudaBackend<S, CudaAttend<T>>;
  struct Free {
    void operator()(std::byte* memory) const { cudaFree(memory); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;
  static Memory allocate(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes));
    return Memory(static_cast<std::byte*>(memory));
  }
  cudaStream_t stream() const { return stream_.get(); }
  void upload(const std::vector<std::int32_t>& from, std::int32_t* to) {
    copy(to, from.data(), from.size(), cudaMemcpyHostToDevice);
  }

  Cuda(const bda::checkpoint::TransformerWeights<S>& model, std::int64_t most)
      : hidden_(model.hidden_dim()),
        vocab_(model.vocab_size()),
        embedding_(model.embedding.data(), model.embedding.size()),
        final_norm_(model.final_norm),
        x_(most * hidden_),
        in_(most * hidden_),
        tokens_(most),
        logits_(vocab_),
        blas_workspace_(static_cast<std::int64_t>(bda::cuda::kBlasWorkspaceBytes)) {
    if (!model.positions.empty()) throw bda::Error("--device cuda", "rotary positions", "learned");
    std::int64_t widest = 0;
    for (const auto& layer : model.layers) {
      const auto* mlp = std::get_if<bda::checkpoint::GatedMlp<S>>(&layer.mlp);
      if (mlp == nullptr) throw bda::Error("--device cuda: MLP", "a gated one", "another");
      layers_.push_back({Norm(layer.attention_norm), Norm(layer.mlp_norm), Linear(mlp->gate, blas_),
                         Linear(mlp->up, blas_), Linear(mlp->down, blas_), mlp->activation});
      widest = std::max(widest, mlp->up.weight.cols);
    }
    gate_ = Array<T>(most * widest), up_ = Array<T>(most * widest);
    const bda::Matrix<S>& head =
        model.output_embedding();  // [vocab, hidden]; Product takes [in, out]
    bda::Matrix<S> transposed(head.cols, head.rows);
    for (std::int64_t i = 0; i < head.rows; ++i)
      for (std::int64_t j = 0; j < head.cols; ++j) transposed(j, i) = head(i, j);
    head_ = Array<T>(transposed.data(), transposed.size());
    head_product_ = {blas_, head_.data(), nullptr, hidden_, vocab_};
  }

  void embed(std::span<const std::int64_t> tokens, std::int64_t) {
    rows_ = static_cast<std::int64_t>(tokens.size());
    copy(tokens_.data(), tokens.data(), tokens.size(), cudaMemcpyHostToDevice);
    perplexity::embed<T>(embedding_.data(), nullptr, tokens_.data(), rows_, rows_, hidden_,
                         x_.data(), stream());
  }
  void norm_into(std::size_t layer, T* out) {
    layers_[layer].attention_norm.run(x_.data(), rows_, hidden_, out, stream());
  }
  void add_and_mlp(std::size_t i, const T* attention) {
    const Layer& layer = layers_[i];
    perplexity::add<T>(attention, rows_ * hidden_, x_.data(), stream());
    layer.mlp_norm.run(x_.data(), rows_, hidden_, in_.data(), stream());
    multiply(layer.gate, in_.data(), gate_.data());
    multiply(layer.up, in_.data(), up_.data());
    perplexity::activate<T>(layer.activation, up_.data(), rows_ * layer.up.product.columns(),
                            gate_.data(), stream());
    multiply(layer.down, gate_.data(), in_.data());
    perplexity::add<T>(in_.data(), rows_ * hidden_, x_.data(), stream());
  }
  std::int64_t likeliest() {
    final_norm_.run(x_.data() + (rows_ - 1) * hidden_, 1, hidden_, in_.data(), stream());
    const bda::TensorView<const T, 2> last(in_.data(), {1, hidden_});
    const bda::TensorView<float, 2> logits(logits_.data(), {1, vocab_});
    check(head_product_.run(last, logits, blas_workspace_.data(), stream()));
    engine::likeliest(logits_.data(), vocab_, tokens_.data(), stream());
    std::int64_t word = 0;
    copy(&word, tokens_.data(), 1, cudaMemcpyDeviceToHost);
    check_cuda(cudaStreamSynchronize(stream()));
    return word;
  }

 private:
  template <class U>
  using Array = bda::cuda::DeviceArray<U>;
  using Blas = std::shared_ptr<const bda::cuda::BlasHandle>;
  struct Norm {
    explicit Norm(const bda::checkpoint::Norm<S>& n)
        : kind(n.kind),
          epsilon(static_cast<float>(n.epsilon)),
          weight(n.weight.data(), static_cast<std::int64_t>(n.weight.size())),
          bias(n.bias.data(), static_cast<std::int64_t>(n.bias.size())) {}
    void run(const float* x, std::int64_t rows, std::int64_t width, T* y, cudaStream_t s) const {
      perplexity::norm<T>(kind, x, weight.data(), bias.data(), epsilon, rows, width, y, s);
    }
    bda::checkpoint::NormKind kind;
    float epsilon;
    Array<T> weight, bias;
  };
  struct Linear {
    Linear(const bda::checkpoint::Linear<S>& linear, const Blas& blas)
        : depth(linear.weight.rows),
          weight(linear.weight.data(), linear.weight.size()),
          bias(linear.bias.data(), static_cast<std::int64_t>(linear.bias.size())),
          product(blas, weight.data(), bias.data(), linear.weight.rows, linear.weight.cols) {}
    std::int64_t depth;
    Array<T> weight, bias;
    bda::cuda::Product<T> product;
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    Linear gate, up, down;
    bda::checkpoint::Activation activation;
  };
  struct EndStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };

  static void check(const bda::Status& s) {
    if (!s) throw bda::Error(s.argument(), "success", s.message());
  }
  static cudaStream_t make_stream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
  }
  template <class U>
  void copy(U* to, const U* from, std::size_t count, cudaMemcpyKind kind) {
    check_cuda(cudaMemcpyAsync(to, from, count * sizeof(U), kind, stream()));
  }
  void multiply(const Linear& linear, const T* x, T* y) {
    const bda::TensorView<const T, 2> from(x, {rows_, linear.depth});
    const bda::TensorView<T, 2> to(y, {rows_, linear.product.columns()});
    check(linear.product.run(from, to, blas_workspace_.data(), stream()));
  }

  std::unique_ptr<CUstream_st, EndStream> stream_{make_stream()};
  Blas blas_ = std::make_shared<const bda::cuda::BlasHandle>();
  std::int64_t hidden_, vocab_, rows_ = 0;
  Array<T> embedding_;
  Norm final_norm_;
  std::vector<Layer> layers_;
  Array<float> x_;
  Array<T> in_, gate_, up_, head_;
  Array<std::int64_t> tokens_;
  Array<float> logits_;
  Array<std::byte> blas_workspace_;
  bda::cuda::Product<T, float> head_product_;
};

}  // namespace engine
