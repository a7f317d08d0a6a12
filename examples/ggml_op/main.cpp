// BD projection and ggml's own mul_mat in one ggml graph each: both against double, then timed.
// bda_ggml_op [--time]; exit status 1 where a value is out of its bound.
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "bd_projection.hpp"
#include "bda/linalg/eigen.hpp"

namespace {

using Matrix = bda::linalg::RowMatrix<double>;

struct Shape {
  std::int64_t tokens, kv_dim, basis, heads, width;
};

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using Context = std::unique_ptr<ggml_context, FreeContext>;

Context make_context() {
  return Context(
      ggml_init({.mem_size = std::size_t{1} << 29, .mem_buffer = nullptr, .no_alloc = false}));
}

/// A tensor {columns, rows} of `type`, and its values as they are stored.
ggml_tensor* tensor(ggml_context* context, ggml_type type, Matrix& values) {
  ggml_tensor* const t = ggml_new_tensor_2d(context, type, values.cols(), values.rows());
  for (Eigen::Index i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values.data()[i]);
    if (type == GGML_TYPE_F32) {
      static_cast<float*>(t->data)[i] = value;
      values.data()[i] = value;
    } else if (type == GGML_TYPE_F16) {
      const ggml_fp16_t bits = ggml_fp32_to_fp16(value);
      static_cast<ggml_fp16_t*>(t->data)[i] = bits;
      values.data()[i] = ggml_fp16_to_fp32(bits);
    } else {
      const ggml_bf16_t bits = ggml_fp32_to_bf16(value);
      static_cast<ggml_bf16_t*>(t->data)[i] = bits;
      values.data()[i] = ggml_bf16_to_fp32(bits);
    }
  }
  return t;
}

Matrix random_matrix(std::mt19937& engine, std::int64_t rows, std::int64_t cols, double scale) {
  std::normal_distribution<double> normal(0, scale);
  return Matrix::NullaryExpr(rows, cols, [&] { return normal(engine); });
}

double unit_roundoff(ggml_type type) {
  return type == GGML_TYPE_F32 ? 0x1p-24 : type == GGML_TYPE_F16 ? 0x1p-11 : 0x1p-8;
}

/// The worst difference, in bounds; infinite for a NaN.
double worst(const ggml_tensor* got, const Matrix& want, const Matrix& bound) {
  const auto* values = static_cast<const float*>(got->data);
  double result = 0;
  for (Eigen::Index i = 0; i < want.size(); ++i) {
    const double off = std::abs(static_cast<double>(values[i]) - want.data()[i]) / bound.data()[i];
    result = std::max(result, std::isnan(off) ? std::numeric_limits<double>::infinity() : off);
  }
  return result;
}

struct Outcome {
  double bd_bounds = 0, plain_bounds = 0;  // the largest error, of what it may be
  double bd_ms = 0, plain_ms = 0;
};

double milliseconds(ggml_context* context, ggml_cgraph* graph, int threads, int repeats) {
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ggml_graph_compute_with_ctx(context, graph, threads);
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count());
  }
  return *std::min_element(times.begin(), times.end());  // the others had company
}

Outcome compare(const Shape& s, ggml_type type, int threads, int repeats) {
  std::mt19937 engine(static_cast<std::uint32_t>(s.tokens));
  const std::int64_t rest = s.kv_dim - s.width, columns = s.heads * s.width;
  Matrix latent = random_matrix(engine, s.tokens, s.kv_dim, 1);
  Matrix c = random_matrix(engine, rest, columns, 1 / std::sqrt(static_cast<double>(s.kv_dim)));
  const Context context = make_context();
  ggml_tensor* const x = tensor(context.get(), GGML_TYPE_F32, latent);
  ggml_tensor* const coefficients = tensor(context.get(), type, c);
  // The plain weight that computes the same: [I; C] of every head, transposed as ggml has it.
  Matrix w = Matrix::Zero(columns, s.kv_dim);
  for (std::int64_t j = 0; j < columns; ++j) {
    w(j, s.basis + j % s.width) = 1;
    for (std::int64_t i = 0; i < rest; ++i) w(j, i < s.basis ? i : i + s.width) = c(i, j);
  }
  ggml_tensor* const weight = tensor(context.get(), type, w);

  ggml_bd::BdProjection projection(s.basis, s.heads, s.width, threads);
  ggml_tensor* const bd = projection.build(context.get(), x, coefficients);
  ggml_tensor* const plain = ggml_mul_mat(context.get(), weight, x);
  const auto run = [&](ggml_tensor* result) {
    std::fill_n(static_cast<float*>(result->data), ggml_nelements(result),
                std::numeric_limits<float>::quiet_NaN());
    ggml_cgraph* const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, result);
    ggml_graph_compute_with_ctx(context.get(), graph, threads);
    return repeats > 0 ? milliseconds(context.get(), graph, threads, repeats) : 0;
  };
  Outcome outcome;
  outcome.bd_ms = run(bd);
  outcome.plain_ms = run(plain);

  // A sum of n products in float, in any order, is off by n + 1 roundings of every term; ggml
  // rounds the activations to the type of the weights before.
  const Matrix want = latent * w.transpose();
  const Matrix terms = latent.cwiseAbs() * w.cwiseAbs().transpose();
  const Matrix sums = 1.01 * 0x1p-24 * static_cast<double>(s.kv_dim + 1) * terms;
  outcome.bd_bounds = worst(bd, want, sums);
  const double rounded = type == GGML_TYPE_F32 ? 0 : unit_roundoff(type);
  outcome.plain_bounds = worst(plain, want, sums + 1.01 * rounded * terms);
  return outcome;
}

/// What does not fit is refused before there is a node.
bool refuses_bad_shapes() {
  const Context context = make_context();
  ggml_tensor* const latent = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 40, 3);
  const auto refuses = [&](std::int64_t basis, ggml_type type, std::int64_t columns,
                           std::int64_t rows, const char* name) {
    ggml_tensor* const c = ggml_new_tensor_2d(context.get(), type, columns, rows);
    try {
      ggml_bd::BdProjection(basis, 2, 8, 1).build(context.get(), latent, c);
    } catch (const std::invalid_argument& error) {
      return std::strncmp(error.what(), name, std::strlen(name)) == 0;
    }
    return false;
  };
  return refuses(0, GGML_TYPE_F32, 15, 32, "coefficients ne[0]: expected 16, got 15") &&
         refuses(0, GGML_TYPE_F32, 16, 31, "coefficients ne[1]: expected 32, got 31") &&
         refuses(33, GGML_TYPE_F32, 16, 32, "basis, at most: expected 32, got 33") &&
         refuses(0, GGML_TYPE_I32, 16, 32, "coefficients type");
}

}  // namespace

int main(int argc, char** argv) {
  const bool timed = argc > 1 && std::strcmp(argv[1], "--time") == 0;
  int failed = refuses_bad_shapes() ? 0 : 1;
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    for (const Shape& s : {Shape{1, 80, 8, 3, 24}, Shape{7, 80, 0, 5, 16},
                           Shape{131, 72, 40, 7, 32}, Shape{3, 19, 5, 1, 9}}) {
      for (const int threads : {1, 2, 4}) {
        const Outcome o = compare(s, type, threads, 0);
        const bool ok = o.bd_bounds <= 1 && o.plain_bounds <= 1;
        if (!ok)
          std::printf("%s, %td tokens, %d threads: BD %.2f bounds, mul_mat %.2f bounds\n",
                      ggml_type_name(type), s.tokens, threads, o.bd_bounds, o.plain_bounds);
        failed += !ok;
      }
    }
  }
  std::printf("%d failed\n", failed);
  if (!timed) return failed > 0;
  std::printf(
      "kv_dim 512, 16 heads of 128, one thread, the least of many: mul_mat, BD projection, "
      "ratio\n");
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16})
    for (const std::int64_t tokens : {1, 16, 64, 256, 1024}) {
      const Outcome o = compare({tokens, 512, 128, 16, 128}, type, 1, tokens < 64 ? 101 : 31);
      std::printf("  %s, %4td tokens: %8.3f ms, %8.3f ms, %.2fx (errors of %.2f and %.2f bounds)\n",
                  ggml_type_name(type), tokens, o.plain_ms, o.bd_ms, o.plain_ms / o.bd_ms,
                  o.plain_bounds, o.bd_bounds);
    }
  return failed > 0;
}
