// What conv-basis attention does to a trained model: for k terms a head, the error of the attention
// output and the perplexity of the model, as it is.
//
//     report_conv_basis WINDOWS OUT.json MODEL_DIR EVAL.safetensors [MODEL_DIR EVAL.safetensors
//     ...]
//
// Two ways of choosing the k columns that a basis is read from: `recover` is the paper's search
// with epsilon = 0, T = 8 and the smallest delta (bisected, head by head) that finds at most k;
// `even` takes columns at equal distances. The assumptions of the first do not hold for trained
// models.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../examples/perplexity/evaluation_set.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/conv_basis.hpp"
#include "open_model.hpp"

namespace {

namespace conv = bda::conv_basis;
using Model = bda_bench::OpenModel<double>;

constexpr std::int64_t kWindow = 8;

conv::ConvBasis even(const conv::ScoreColumns& scores, std::int64_t terms) {
  std::vector<std::int64_t> starts;
  for (std::int64_t i = 0; i < terms; ++i) starts.push_back(i * scores.size() / terms);
  return conv::basis_from_columns(scores, starts);
}

/// The basis of at most `terms` terms that the search finds at the smallest delta; and the largest
/// deviation it saw.
conv::Recovery recovered(const conv::ScoreColumns& scores, std::int64_t terms) {
  const auto at = [&](double delta) {
    return conv::recover(scores, {.window = kWindow, .delta = delta, .max_terms = terms});
  };
  double low = 1e-6, high = 1e6;  // too many terms; few enough
  for (int i = 0; i < 24; ++i) {
    const double middle = std::sqrt(low * high);
    (at(middle).stopped_early ? low : high) = middle;
  }
  return at(high);
}

struct Outcome {
  double squared_error = 0, squared_norm = 0, deviation = 0, terms = 0;
  std::int64_t heads = 0, fallbacks = 0;
  double loss = 0;
};

/// One forward pass with every head's attention replaced.
Outcome measure(Model& model, const bda::Matrix<std::int64_t>& tokens, bool search,
                std::int64_t terms) {
  Outcome o;
  model.attend = [&](std::int64_t, std::int64_t, const Model::Rows& q, const Model::Rows& k,
                     const Model::Rows& v, double scale) -> Model::Rows {
    const Eigen::MatrixXd qs = q, ks = k, vs = v;
    const conv::ScoreColumns scores(qs, ks, scale);
    const Model::Rows exact = Model::softmax_attention(q, k, v, scale);
    conv::ConvBasis basis(scores.size());
    if (search) {
      conv::Recovery r = recovered(scores, terms);
      o.deviation = std::max(o.deviation, r.largest_deviation);
      basis = std::move(r.basis);
    } else {
      basis = even(scores, terms);
    }
    o.terms += static_cast<double>(basis.terms());
    ++o.heads;
    Model::Rows out = exact;
    try {
      out = conv::AttentionMatrix(basis).times(vs);
    } catch (const bda::Error&) {
      ++o.fallbacks;  // a normalizer lost in rounding: exact attention in its place
    }
    o.squared_error += (out - exact).squaredNorm();
    o.squared_norm += exact.squaredNorm();
    return out;
  };
  for (std::int64_t w = 0; w < tokens.rows; ++w)
    o.loss += model.loss({&tokens(w, 0), static_cast<std::size_t>(tokens.cols)});
  return o;
}

nlohmann::json report(const std::filesystem::path& folder, const std::filesystem::path& evaluation,
                      std::int64_t windows) {
  const auto weights = bda::checkpoint::load_transformer<double>(folder);
  const auto set = perplexity::read_evaluation_set(evaluation, windows, weights.vocab_size(),
                                                   weights.max_positions);
  const std::string name = std::filesystem::canonical(folder).filename();
  const double count = static_cast<double>(set.tokens.rows * (set.tokens.cols - 1));
  Model model(weights);
  double exact = 0;
  for (std::int64_t w = 0; w < set.tokens.rows; ++w)
    exact += model.loss({&set.tokens(w, 0), static_cast<std::size_t>(set.tokens.cols)});
  nlohmann::json runs = nlohmann::json::array();
  std::printf("%s: perplexity %.6f\n", name.c_str(), std::exp(exact / count));
  for (const bool search : {true, false}) {
    for (std::int64_t terms : {1, 4, 16, 64, 128, 256, 384, 512}) {
      const Outcome o = measure(model, set.tokens, search, terms);
      nlohmann::json run{{"model", name},
                         {"evaluation", evaluation.filename()},
                         {"windows", set.tokens.rows},
                         {"tokens", set.tokens.cols},
                         {"columns", search ? "recover" : "even"},
                         {"k", terms},
                         {"mean_terms", o.terms / static_cast<double>(o.heads)},
                         {"perplexity", std::exp(o.loss / count)},
                         {"perplexity_exact", std::exp(exact / count)},
                         {"output_error", std::sqrt(o.squared_error / o.squared_norm)},
                         {"exact_heads", o.fallbacks},
                         {"heads", o.heads}};
      if (search) run["largest_deviation"] = o.deviation;
      std::printf(
          "  %s k %3ld: perplexity %12.4f, output error %.3e, terms %.1f, exact %ld of %ld\n",
          search ? "recover" : "even   ", static_cast<long>(terms), std::exp(o.loss / count),
          std::sqrt(o.squared_error / o.squared_norm), o.terms / static_cast<double>(o.heads),
          static_cast<long>(o.fallbacks), static_cast<long>(o.heads));
      std::fflush(stdout);
      runs.push_back(run);
    }
  }
  return runs;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || argc % 2 == 0) {
    std::fprintf(stderr,
                 "usage: report_conv_basis WINDOWS OUT.json MODEL_DIR EVAL.safetensors ...\n");
    return 2;
  }
  try {
    nlohmann::json all = nlohmann::json::array();
    for (int i = 3; i + 1 < argc; i += 2)
      for (auto& run : report(argv[i], argv[i + 1], std::stol(argv[1]))) all.push_back(run);
    std::ofstream(argv[2]) << all.dump(1) << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
