#include "cuda_model.hpp"

#ifdef PERPLEXITY_CUDA

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "bda/attention/bd_attention.hpp"
#include "bda/cuda_backend.hpp"
#include "bda/linalg/scalar.hpp"
#include "cuda_kernels.hpp"

namespace perplexity {

template <class T, class A>
struct BackendOf {
  using type = bda::CastingCudaBackend<T, bda::CudaBackend<A>>;
};
template <class T>
struct BackendOf<T, T> {
  using type = bda::CudaBackend<T>;
};

template <class T, class A>
class CudaLanguageModel<T, A>::State {
 public:
  using Attention = bda::BDAttention<typename BackendOf<T, A>::type>;
  using Element = typename Attention::Compute;
  template <class U>
  using Array = bda::cuda::DeviceArray<U>;
  using Product = bda::cuda::Product<Element>;

  State(const checkpoint::TransformerWeights<T>& weights,
        std::vector<bda::AttentionWeights<A>> attention)
      : hidden_(weights.hidden_dim()),
        vocab_(weights.vocab_size()),
        embedding_(weights.embedding.data(), weights.embedding.size()),
        positions_(weights.positions.data(), weights.positions.size()),
        final_norm_(weights.final_norm) {
    for (std::size_t i = 0; i < weights.layers.size(); ++i)
      layers_.emplace_back(weights.layers[i], std::move(attention[i]), blas_);
    // Logits are x E^T, and Product takes [in, out].
    const bda::Matrix<T>& head = weights.output_embedding();
    bda::Matrix<T> transposed(head.cols, head.rows);
    for (std::int64_t word = 0; word < head.rows; ++word)
      for (std::int64_t channel = 0; channel < head.cols; ++channel)
        transposed(channel, word) = head(word, channel);
    head_weight_ = Array<Element>(transposed.data(), transposed.size());
    head_ =
        bda::cuda::Product<Element, float>(blas_, head_weight_.data(), nullptr, hidden_, vocab_);
  }

  void token_losses(std::span<const std::int64_t> tokens, std::int64_t length,
                    std::span<double> out) {
    const auto rows = static_cast<std::int64_t>(tokens.size());
    const std::int64_t sequences = rows / length;
    reserve(rows, sequences, length);
    std::vector<std::int64_t> targets(tokens.begin() + 1, tokens.end());
    targets.push_back(-1);
    for (std::int64_t s = 1; s <= sequences; ++s)  // nothing follows the last of a sequence
      targets[static_cast<std::size_t>(s * length - 1)] = -1;
    upload(tokens_, tokens.data(), rows);
    upload(targets_, targets.data(), rows);

    embed<Element>(embedding_.data(), positions_.data(), tokens_.data(), rows, length, hidden_,
                   x_.data(), stream_);
    for (Layer& layer : layers_) {
      layer.attention_norm.run(x_.data(), rows, hidden_, normed_.data(), stream_);
      typename Attention::Arguments args;  // causal self-attention by default
      args.x = {normed_.data(), {sequences, length, hidden_}};
      args.out = {delta_.data(), {sequences, length, hidden_}};
      check(layer.attention.run(args, {workspace_.data(), workspace_.bytes()}, stream_));
      add<Element>(delta_.data(), rows * hidden_, x_.data(), stream_);
      layer.mlp_norm.run(x_.data(), rows, hidden_, normed_.data(), stream_);
      const bda::TensorView<const Element, 2> in(normed_.data(), {rows, hidden_});
      const bda::TensorView<Element, 2> up(up_.data(), {rows, layer.up.columns()});
      check(layer.up.run(in, up, workspace_.data(), stream_));
      if (layer.gate.columns() > 0) {
        const bda::TensorView<Element, 2> gate(gate_.data(), {rows, layer.gate.columns()});
        check(layer.gate.run(in, gate, workspace_.data(), stream_));
        activate<Element>(layer.activation, up_.data(), rows * layer.gate.columns(), gate_.data(),
                          stream_);
        check(layer.down.run(gate, {delta_.data(), {rows, hidden_}}, workspace_.data(), stream_));
      } else {
        activate<Element>(layer.activation, nullptr, rows * layer.up.columns(), up_.data(),
                          stream_);
        check(layer.down.run(up, {delta_.data(), {rows, hidden_}}, workspace_.data(), stream_));
      }
      add<Element>(delta_.data(), rows * hidden_, x_.data(), stream_);
    }
    final_norm_.run(x_.data(), rows, hidden_, normed_.data(), stream_);
    for (std::int64_t begin = 0; begin < rows; begin += kLogitRows) {
      const std::int64_t count = std::min(kLogitRows, rows - begin);
      check(head_.run({normed_.data() + begin * hidden_, {count, hidden_}},
                      {logits_.data(), {count, vocab_}}, workspace_.data(), stream_));
      losses(logits_.data(), targets_.data() + begin, count, vocab_, losses_.data() + begin,
             stream_);
    }
    std::vector<double> all(static_cast<std::size_t>(rows));
    check(cudaMemcpyAsync(all.data(), losses_.data(), losses_.bytes(), cudaMemcpyDeviceToHost,
                          stream_));
    check(cudaStreamSynchronize(stream_));
    for (std::int64_t row = 0, at = 0; row < rows; ++row)
      if (row % length + 1 < length)
        out[static_cast<std::size_t>(at++)] = all[static_cast<std::size_t>(row)];
  }

  ~State() { cudaStreamDestroy(stream_); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

 private:
  static constexpr std::int64_t kLogitRows = 1024;

  struct DeviceNorm {
    explicit DeviceNorm(const checkpoint::Norm<T>& norm)
        : kind(norm.kind),
          epsilon(static_cast<float>(norm.epsilon)),
          weight(norm.weight.data(), static_cast<std::int64_t>(norm.weight.size())),
          bias(norm.bias.data(), static_cast<std::int64_t>(norm.bias.size())) {}
    void run(const float* x, std::int64_t rows, std::int64_t width, Element* y,
             cudaStream_t stream) const {
      norm<Element>(kind, x, weight.data(), bias.data(), epsilon, rows, width, y, stream);
    }
    checkpoint::NormKind kind;
    float epsilon;
    Array<Element> weight, bias;
  };

  struct DeviceLinear {
    DeviceLinear() = default;
    DeviceLinear(const checkpoint::Linear<T>& linear,
                 const std::shared_ptr<const bda::cuda::BlasHandle>& blas)
        : weight(linear.weight.data(), linear.weight.size()),
          bias(linear.bias.data(), static_cast<std::int64_t>(linear.bias.size())),
          product(blas, weight.data(), bias.data(), linear.weight.rows, linear.weight.cols) {}
    [[nodiscard]] std::int64_t columns() const { return product.columns(); }
    bda::Status run(const bda::TensorView<const Element, 2>& x,
                    const bda::TensorView<Element, 2>& y, void* workspace,
                    cudaStream_t stream) const {
      return product.run(x, y, workspace, stream);
    }
    Array<Element> weight, bias;
    Product product;
  };

  struct Layer {
    Layer(const checkpoint::TransformerLayer<T>& layer, bda::AttentionWeights<A> weights,
          const std::shared_ptr<const bda::cuda::BlasHandle>& blas)
        : attention_norm(layer.attention_norm),
          mlp_norm(layer.mlp_norm),
          attention(std::move(weights)) {
      if (const auto* mlp = std::get_if<checkpoint::GatedMlp<T>>(&layer.mlp)) {
        gate = DeviceLinear(mlp->gate, blas);
        up = DeviceLinear(mlp->up, blas);
        down = DeviceLinear(mlp->down, blas);
        activation = mlp->activation;
      } else if (const auto* plain = std::get_if<checkpoint::PlainMlp<T>>(&layer.mlp)) {
        up = DeviceLinear(plain->up, blas);
        down = DeviceLinear(plain->down, blas);
        activation = plain->activation;
      } else {
        throw bda::Error("--device cuda: MLP", "one without experts", "a mixture of experts");
      }
    }
    DeviceNorm attention_norm, mlp_norm;
    Attention attention;
    DeviceLinear gate, up, down;
    checkpoint::Activation activation{};
  };

  static void check(const bda::Status& status) {
    if (!status.ok()) throw bda::Error(status.argument(), "success", status.message());
  }
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw bda::Error("CUDA", "success", cudaGetErrorString(error));
  }
  template <class U>
  void upload(Array<U>& to, const U* from, std::int64_t count) {
    check(cudaMemcpyAsync(to.data(), from, static_cast<std::size_t>(count) * sizeof(U),
                          cudaMemcpyHostToDevice, stream_));
  }

  void reserve(std::int64_t rows, std::int64_t sequences, std::int64_t length) {
    if (rows == x_.size() / hidden_ && length == length_) return;
    length_ = length;
    std::int64_t widest = 0;
    std::size_t workspace = bda::cuda::kBlasWorkspaceBytes;
    for (const Layer& layer : layers_) {
      widest = std::max(widest, layer.up.columns());
      typename Attention::Arguments args;
      args.x = {normed_.data(), {sequences, length, hidden_}};
      args.out = {delta_.data(), {sequences, length, hidden_}};
      static const Element unread{};  // sizes need no data, but an argument that is there
      if (args.x.data == nullptr) args.x.data = &unread;
      if (args.out.data == nullptr) args.out.data = const_cast<Element*>(&unread);
      workspace = std::max(workspace, layer.attention.workspace_size(args));
    }
    x_ = Array<float>(rows * hidden_);
    normed_ = Array<Element>(rows * hidden_);
    delta_ = Array<Element>(rows * hidden_);
    up_ = Array<Element>(rows * widest);
    gate_ = Array<Element>(rows * widest);
    logits_ = Array<float>(std::min(rows, kLogitRows) * vocab_);
    tokens_ = Array<std::int64_t>(rows);
    targets_ = Array<std::int64_t>(rows);
    losses_ = Array<double>(rows);
    workspace_ = Array<std::byte>(static_cast<std::int64_t>(workspace));
  }

  static cudaStream_t make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
  }

  std::int64_t hidden_, vocab_, length_ = 0;
  cudaStream_t stream_ = make_stream();
  std::shared_ptr<const bda::cuda::BlasHandle> blas_ =
      std::make_shared<const bda::cuda::BlasHandle>();
  Array<Element> embedding_, positions_, head_weight_;
  DeviceNorm final_norm_;
  std::vector<Layer> layers_;
  bda::cuda::Product<Element, float> head_;
  Array<float> x_, logits_;
  Array<Element> normed_, delta_, up_, gate_;
  Array<std::int64_t> tokens_, targets_;
  Array<double> losses_;
  Array<std::byte> workspace_;
};

template <class T, class A>
CudaLanguageModel<T, A>::CudaLanguageModel(const checkpoint::TransformerWeights<T>& weights,
                                           std::vector<bda::AttentionWeights<A>> attention)
    : state_(std::make_unique<State>(weights, std::move(attention))) {}
template <class T, class A>
CudaLanguageModel<T, A>::~CudaLanguageModel() = default;
template <class T, class A>
void CudaLanguageModel<T, A>::token_losses(std::span<const std::int64_t> tokens,
                                           std::int64_t length, std::span<double> losses) const {
  state_->token_losses(tokens, length, losses);
}

template class CudaLanguageModel<Eigen::half>;
template class CudaLanguageModel<Eigen::bfloat16>;
template class CudaLanguageModel<Eigen::bfloat16, Eigen::half>;

}  // namespace perplexity

#endif
