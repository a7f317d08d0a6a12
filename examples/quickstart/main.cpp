// One attention layer with random weights: decompose it, run both forms, compare.
#include <bda/bda.hpp>
#include <cstdio>
int main() {
  constexpr std::int64_t d = 512, n = 4, r = 128, tokens = 64;
  const auto draw = [](std::int64_t rows, std::int64_t cols) {
    bda::Matrix<float> m(rows, cols);
    bda::linalg::map(m).setRandom() *= 0.1F;
    return m;
  };
  bda::AttentionWeights<float> layer;
  layer.q = draw(d, n * r), layer.k.weight = draw(d, n * r);
  layer.v.weight = draw(d, n * r), layer.o = draw(n * r, d);
  bda::AttentionConfig& c = layer.config;
  c.query_dim = c.kv_dim = c.out_dim = d, c.heads = c.kv_heads = n, c.qk_dim = c.v_dim = r;
  c.scale = 1 / std::sqrt(double{r});
  const bda::PreparedLayer<float> bd = bda::prepare<float>(layer);
  bda::Matrix<float> x = draw(tokens, d), y[2] = {x, x};
  for (const bool decomposed : {false, true}) {
    const bda::BDAttention<bda::CpuBackend<float>> attention(decomposed ? bd.weights : layer);
    bda::AttentionArguments<float> args;
    args.x = {x.data(), {1, tokens, d}}, args.out = {y[decomposed].data(), {1, tokens, d}};
    std::vector<std::byte> workspace(attention.workspace_size(args));
    if (!attention.run(args, workspace)) return 1;
  }
  const float error = (bda::linalg::map(y[0]) - bda::linalg::map(y[1])).cwiseAbs().maxCoeff();
  std::printf("largest difference %.1e, %td bytes saved\n", double{error},
              bd.report.bytes_before - bd.report.bytes_after);
}
