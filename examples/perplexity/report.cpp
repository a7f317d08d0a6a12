#include "report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "bda/core/error.hpp"

namespace perplexity {

namespace {

using Json = nlohmann::ordered_json;

template <class... Values>
std::string format(const char* pattern, Values... values) {
  std::array<char, 256> text{};
  std::snprintf(text.data(), text.size(), pattern, values...);
  return text.data();
}

double megabytes(std::int64_t bytes) { return static_cast<double>(bytes) * 1e-6; }

std::string saving(const char* what, const Bytes& bytes) {
  if (bytes.original == 0) return format("%-22s %10.3f MB\n", what, megabytes(bytes.bd));
  return format("%-22s %10.3f MB -> %10.3f MB  (%+.2f %%)\n", what, megabytes(bytes.original),
                megabytes(bytes.bd),
                (static_cast<double>(bytes.bd) / static_cast<double>(bytes.original) - 1) * 100);
}

std::string side_columns(const std::optional<SideSummary>& side) {
  if (!side) return format("  %-41s", "not decomposed");
  return format("  %9.2e %9.2e %10.3f %10.3f", side->residual_mean, side->residual_max,
                side->alpha_mean, side->alpha_max);
}

Json side_json(const std::optional<SideSummary>& side) {
  if (!side) return nullptr;
  return {{"residual_mean", side->residual_mean},
          {"residual_max", side->residual_max},
          {"mean_squared_error", side->mean_squared_error},
          {"alpha_mean", side->alpha_mean},
          {"alpha_max", side->alpha_max},
          {"coefficient_max", side->coefficient_max}};
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json to_json(const Comparison& r) {
  Json layers = Json::array();
  for (const LayerSummary& layer : r.layers)
    layers.push_back({{"qk", side_json(layer.qk)}, {"vo", side_json(layer.vo)}});
  return {{"model", r.model},
          {"evaluation", r.evaluation},
          {"dtype", bda::name_of(r.dtype)},
          {"attention_dtype", bda::name_of(r.attention_dtype)},
          {"device", r.device},
          {"basis", r.basis},
          {"sides", r.sides},
          {"rounding", r.rounding},
          {"exact", r.exact},
          {"windows", r.windows},
          {"tokens_per_window", r.tokens_per_window},
          {"perplexity_reference", or_null(r.perplexity_reference)},
          {"perplexity_original", or_null(r.perplexity_original)},
          {"perplexity_bd", r.perplexity_bd},
          {"relative_change_percent", or_null(r.relative_change_percent())},
          {"max_token_loss_error", or_null(r.max_token_loss_error)},
          {"alpha_max", r.layers.empty() ? Json(nullptr) : Json(r.max_alpha())},
          {"bytes_original", r.model_bytes.original},
          {"bytes_bd", r.model_bytes.bd},
          {"attention_bytes_original", r.attention_bytes.original},
          {"attention_bytes_bd", r.attention_bytes.bd},
          {"layers", layers}};
}

bool same_run(const Json& a, const Json& b) {
  for (const char* key : {"model", "evaluation", "dtype", "attention_dtype", "device", "basis",
                          "sides", "rounding", "windows"})
    if (a.value(key, Json()) != b.value(key, Json())) return false;
  return true;
}

Json read_runs(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return Json::array();
  std::ifstream in(file);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  Json runs = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_object = [](const Json& run) { return run.is_object(); };
  if (!runs.is_array() || !std::all_of(runs.begin(), runs.end(), is_object))
    throw bda::Error(file.string(), "a JSON array of runs, or no file", "something else");
  return runs;
}

}  // namespace

void print(const Comparison& r, std::ostream& out) {
  out << "model        " << r.model << " (" << r.model_type << "), weights in "
      << bda::name_of(r.dtype)
      << (r.attention_dtype == r.dtype
              ? ""
              : ", attention in " + std::string(bda::name_of(r.attention_dtype)))
      << (r.device == "cuda" ? ", on the GPU" : "") << '\n'
      << "evaluation   " << r.evaluation << ", "
      << format("%lld windows of %lld tokens\n", static_cast<long long>(r.windows),
                static_cast<long long>(r.tokens_per_window))
      << "basis        " << r.basis << ", sides " << r.sides
      << (r.layers.empty() ? ", as converted\n" : ", " + r.rounding + " rounding\n");
  if (!r.exact)
    out << "INEXACT      a side was forced that is not the same attention: for the record only\n";

  if (!r.layers.empty())
    out << "\nlayer  QK residual mean/max, alpha mean/max         VO residual mean/max, alpha "
           "mean/max\n";
  for (std::size_t i = 0; i < r.layers.size(); ++i)
    out << format("%5zu", i) << side_columns(r.layers[i].qk) << "  " << side_columns(r.layers[i].vo)
        << '\n';

  out << '\n'
      << saving("attention weights", r.attention_bytes) << saving("all weights", r.model_bytes)
      << '\n';
  if (r.perplexity_reference) {
    out << format("perplexity   reference  %.8f\n", *r.perplexity_reference);
  }
  if (r.perplexity_original)
    out << format("perplexity   original   %.8f   (%.1f s)\n", *r.perplexity_original,
                  r.seconds_original);
  out << format("perplexity   BDA        %.8f   (%.1f s, after %.1f s of preparation)\n",
                r.perplexity_bd, r.seconds_bd, r.seconds_prepare);
  if (const std::optional<double> change = r.relative_change_percent())
    out << format("change       %+.3g %%%s\n", *change, r.exact ? "" : "   INEXACT");
  if (r.perplexity_reference) {
    out << format(
        "original against the file's nll: largest token error %.2g, perplexity %+.2g relative",
        *r.max_token_loss_error, *r.perplexity_original / *r.perplexity_reference - 1);
    if (const std::optional<bool> agrees = r.agrees())
      out << (*agrees ? ": agrees" : ": DOES NOT AGREE (limits 1e-4 and 1e-5)");
    out << '\n';
  }
}

void check_json(const std::filesystem::path& file) { (void)read_runs(file); }

void add_to_json(const Comparison& result, const std::filesystem::path& file) {
  Json runs = read_runs(file);
  const Json run = to_json(result);
  const auto found = std::find_if(runs.begin(), runs.end(),
                                  [&](const Json& other) { return same_run(other, run); });
  if (found != runs.end())
    *found = run;
  else
    runs.push_back(run);

  std::filesystem::path partial = file;
  partial += ".partial";
  std::ofstream out(partial);
  out << runs.dump(1) << '\n';
  out.close();
  if (!out) throw bda::Error(partial.string(), "a file that can be written", "an error");
  std::filesystem::rename(partial, file);
}

}  // namespace perplexity
