#include "report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>

namespace convert {

namespace {

using bda::checkpoint::AttentionConversion;
using bda::checkpoint::ConversionPlan;
using bda::checkpoint::PlannedWeights;

template <class... Values>
std::string format(const char* pattern, Values... values) {
  std::array<char, 256> text{};
  std::snprintf(text.data(), text.size(), pattern, values...);
  return text.data();
}

double megabytes(std::int64_t bytes) { return static_cast<double>(bytes) * 1e-6; }

std::string side_columns(const std::optional<bda::DecompositionReport>& side) {
  if (!side) return format("  %-29s", "as it was");
  return format("  %9.2e %9.2e %9.3f", side->mean_residual(), side->max_residual(),
                side->max_alpha());
}

std::string verified_column(const AttentionConversion& a) {
  if (!a.verified_qk && !a.verified_vo) return "";
  double error = 0;
  if (a.verified_qk) error = a.verified_qk->error;
  if (a.verified_vo) error = std::max(error, a.verified_vo->error);
  return format("  %9.2e", error);
}

/// "exact", or in how many modules it is.
std::string side_text(std::int64_t exact, const ConversionPlan& plan) {
  if (exact == plan.modules) return "exact";
  if (exact == 0) return "not exact";
  return format("exact in %lld of %lld", static_cast<long long>(exact),
                static_cast<long long>(plan.modules));
}

std::string weights_text(const PlannedWeights& w, double unit, const char* name) {
  return format("%.1f -> %.1f %s (%+.1f %%)", static_cast<double>(w.before) * unit,
                static_cast<double>(w.after) * unit, name, w.change() * 100);
}

}  // namespace

void print(const bda::checkpoint::ConversionReport& report, std::ostream& out) {
  const bool verified =
      std::any_of(report.attention.begin(), report.attention.end(),
                  [](const AttentionConversion& a) { return a.verified_qk || a.verified_vo; });
  out << format("%-28s  %-29s  %-29s  %-16s %8s %7s%s\n", "", "QK residual mean/max, alpha",
                "VO residual mean/max, alpha", "basis", "saved MB", "s",
                verified ? "  verified" : "");
  for (const AttentionConversion& a : report.attention)
    out << format("%-28s", printable(a.name).c_str()) << side_columns(a.preparation.qk)
        << side_columns(a.preparation.vo)
        << format("  %-16s %8.3f %7.2f", a.preparation.basis.c_str(),
                  megabytes(a.bytes_before - a.bytes_after), a.seconds)
        << verified_column(a) << '\n';
  for (const AttentionConversion& a : report.attention) {
    if (!a.why_not_qk.empty() && !a.preparation.qk) {
      out << "\nQK stays as it was where " << a.why_not_qk << '\n';
      break;
    }
  }
  const std::int64_t before = report.bytes_before(), after = report.bytes_after();
  out << format("\nattention  %.3f MB -> %.3f MB (%+.2f %%)\n", megabytes(before), megabytes(after),
                before > 0 ? (static_cast<double>(after) / static_cast<double>(before) - 1) * 100
                           : 0.0)
      << format("copied     %lld tensors, %.3f MB, and %lld other files\n",
                static_cast<long long>(report.tensors_copied), megabytes(report.bytes_copied),
                static_cast<long long>(report.files_copied))
      << format("time       %.1f s, %lld shards\n", report.seconds,
                static_cast<long long>(report.shards));
}

void print(const std::vector<std::string>& names, const std::vector<ConversionPlan>& plans,
           std::ostream& out) {
  out << "| model | attention modules | QK side | VO side | K/V projections, weights | "
         "operations a token | whole attention, weights | operations a token |\n"
         "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |\n";
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const ConversionPlan& plan = plans[i];
    const double bytes = size_of(plan.dtype) * 1e-6, flops = 2e-6;
    const std::string unit = "MB in " + std::string(name_of(plan.dtype));
    out << "| " << printable(names[i]) << (plan.quantized ? " (published in 8 bits)" : "") << " | "
        << plan.modules << " | " << side_text(plan.qk_modules, plan) << " | "
        << side_text(plan.vo_modules, plan) << " | " << weights_text(plan.kv, bytes, unit.c_str())
        << " | " << weights_text(plan.kv, flops, "MFLOP") << " | "
        << weights_text(plan.attention, bytes, unit.c_str()) << " | "
        << weights_text(plan.attention, flops, "MFLOP") << " |\n";
  }
}

void write_json(const bda::checkpoint::ConversionReport& report,
                const std::filesystem::path& file) {
  std::ofstream out(file);
  out << json_of(report).dump(1) << '\n';
  out.close();
  if (!out) throw bda::Error(file.string(), "a file that can be written", "an error");
}

std::string printable(const std::string& text) {
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      shown += format("\\x%02x", byte);
    else
      shown += c;
  }
  return shown;
}

}  // namespace convert
