#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace adapterd::bench {
namespace {

constexpr char kColumns[] =
    "{:<21} {:<18} {:<5} {:>9} {:>9}  {:<42} {:>9} {:>9} {:>7} {:>7} {:>6} {:>8}\n";

constexpr char kFigureColumns[] = "{:<46} {:<17} {:>9} {}\n";

constexpr char kLegend[] =
    "us: medians in microseconds. ratio: ours over reference, of these; in CPU: of the CPU time of "
    "all\nthreads of this process, which other load changes less. runs: of the side that had fewer."
    "\nspread: interquartile range over median, the larger of both sides.";

// Three digits that mean something, whatever the size.
std::string Significant(double value) {
  return fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 1000 ? 1 : 0);
}

std::string OrDash(const std::optional<double>& value) { return value ? Significant(*value) : "-"; }

std::string Ratio(const std::optional<double>& ratio) {
  return ratio ? fmt::format("{:.3f}", *ratio) : "-";
}

nlohmann::ordered_json OrNull(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

// Limits below 1 are said as speed-ups, and so are ratios that are held against one.
std::string RatioTo(const std::string& reference, double ratio, double limit) {
  return limit < 1 ? fmt::format("{:.2f} x faster than {}", 1 / ratio, reference)
                   : fmt::format("{:.2f} x {}", ratio, reference);
}

std::string Limit(double ratio) {
  return ratio < 1 ? fmt::format("at least {:.2f} x faster", 1 / ratio)
                   : fmt::format("at most {:.2f} x", ratio);
}

// "missed by 0.20", or by how many percent the time is too long when the limit is a speed-up.
std::string MissedBy(double ratio, double limit) {
  return limit < 1 ? fmt::format("missed by {:.0f} % of the time", 100 * (ratio / limit - 1))
                   : fmt::format("missed by {:.2f}", ratio - limit);
}

std::string AgainstGoal(double ratio, double goal) {
  return fmt::format("goal {}: {}", Limit(goal), ratio <= goal ? "reached" : MissedBy(ratio, goal));
}

// REQUIRES: there is a bar.
template <typename AnyRow>
std::string AgainstBars(const AnyRow& row, double ratio, const Bars& bars) {
  const double limit = bars.must ? *bars.must : *bars.goal;
  const std::string what = fmt::format("{} {} {} {} is {}", row.suite, row.name, row.shape,
                                       row.dtype, RatioTo(row.reference, ratio, limit));
  if (!bars.must) return fmt::format("REPORTED: {}; {}", what, AgainstGoal(ratio, *bars.goal));
  const std::string verdict =
      ratio <= *bars.must ? "HOLDS" : fmt::format("MISSED ({})", MissedBy(ratio, *bars.must));
  const std::string goal = bars.goal ? "; " + AgainstGoal(ratio, *bars.goal) : "";
  return fmt::format("{}: {}, {}{}", verdict, what, Limit(*bars.must), goal);
}

std::string AgainstBars(const Figure& figure) {
  const bool is_least = figure.at_least.has_value();
  return fmt::format("{}: {} {} {} is {} {}, at {} {}", figure.holds() ? "HOLDS" : "MISSED",
                     figure.suite, figure.name, figure.shape, Significant(figure.value),
                     figure.unit, is_least ? "least" : "most",
                     Significant(is_least ? *figure.at_least : *figure.at_most));
}

}  // namespace

Report::Report(Format format, std::string machine) : format_(format), machine_(std::move(machine)) {
  if (format_ == Format::kTable) fmt::print("{}\n{}\n", machine_, kLegend);
}

void Report::Begin(const std::string& suite, const std::string& how, Columns columns) {
  std::FILE* out = format_ == Format::kTable ? stdout : stderr;
  fmt::print(out, "\n{}: {}\n", suite, how);
  if (format_ == Format::kTable && columns == Columns::kComparisons) {
    fmt::print(kColumns, "case", "shape", "dtype", "ours us", "p99 us", "reference", "ref us",
               "p99 us", "ratio", "in CPU", "runs", "spread %");
  }
  std::fflush(out);
}

void Report::Add(const Row& row) {
  format_ == Format::kTable ? PrintTableRow(row) : PrintJsonRow(row);
  std::fflush(stdout);  // a suite takes a while
  if (!row.bars.must && !row.bars.goal) return;
  verdicts_.push_back({row.holds(), AgainstBars(row, row.comparison.ratio(), row.bars)});
}

void Report::Add(const MemoryRow& row) {
  if (format_ == Format::kTable) {
    fmt::print("{:<21} {:<18} {:<5} {:>9} KiB      {:<42} {:>9} KiB   {:>7.3f}\n", row.name,
               row.shape, row.dtype, row.bytes >> 10, row.reference, row.reference_bytes >> 10,
               row.ratio());
  } else {
    nlohmann::ordered_json json = {{"suite", row.suite},
                                   {"case", row.name},
                                   {"shape", row.shape},
                                   {"dtype", row.dtype},
                                   {"bytes", row.bytes},
                                   {"reference", row.reference},
                                   {"reference_bytes", row.reference_bytes},
                                   {"ratio", row.ratio()},
                                   {"bar", OrNull(row.bar)},
                                   {"holds", row.holds()},
                                   {"machine", machine_}};
    if (!row.bar) json["holds"] = nullptr;
    fmt::print("{}\n", json.dump());
  }
  std::fflush(stdout);
  if (row.bar) verdicts_.push_back({row.holds(), AgainstBars(row, row.ratio(), {row.bar, {}})});
}

void Report::Add(const Figure& figure) {
  if (format_ == Format::kTable) {
    fmt::print(kFigureColumns, figure.name, figure.shape, Significant(figure.value), figure.unit);
  } else {
    nlohmann::ordered_json json = {{"suite", figure.suite},
                                   {"case", figure.name},
                                   {"shape", figure.shape},
                                   {"value", figure.value},
                                   {"unit", figure.unit},
                                   {"at_least", OrNull(figure.at_least)},
                                   {"at_most", OrNull(figure.at_most)},
                                   {"holds", figure.holds()},
                                   {"machine", machine_}};
    if (!figure.has_bar()) json["holds"] = nullptr;
    fmt::print("{}\n", json.dump());
  }
  std::fflush(stdout);
  if (figure.has_bar()) verdicts_.push_back({figure.holds(), AgainstBars(figure)});
}

void Report::PrintTableRow(const Row& row) const {
  const Comparison& c = row.comparison;
  fmt::print(kColumns, row.name, row.shape, row.dtype, Significant(c.ours.median_us),
             OrDash(c.ours.p99_us), row.reference, Significant(c.reference.median_us),
             OrDash(c.reference.p99_us), Ratio(c.ratio()), Ratio(c.cpu_ratio()), c.repetitions(),
             fmt::format("{:.0f}", 100 * c.spread()));
}

void Report::PrintJsonRow(const Row& row) const {
  const Comparison& c = row.comparison;
  nlohmann::ordered_json json = {{"suite", row.suite},
                                 {"case", row.name},
                                 {"shape", row.shape},
                                 {"dtype", row.dtype},
                                 {"ours_us", c.ours.median_us},
                                 {"reference", row.reference},
                                 {"reference_us", c.reference.median_us},
                                 {"ratio", c.ratio()},
                                 {"repetitions", c.repetitions()},
                                 {"spread", c.spread()},
                                 {"ours_cpu_us", OrNull(c.ours.cpu_us)},
                                 {"reference_cpu_us", OrNull(c.reference.cpu_us)},
                                 {"ours_p99_us", OrNull(c.ours.p99_us)},
                                 {"reference_p99_us", OrNull(c.reference.p99_us)},
                                 {"bar", OrNull(row.bars.must)},
                                 {"goal", OrNull(row.bars.goal)},
                                 {"holds", row.holds()},
                                 {"machine", machine_}};
  if (!row.bars.must) json["holds"] = nullptr;
  fmt::print("{}\n", json.dump());
}

void Report::Finish() const {
  std::FILE* out = format_ == Format::kTable ? stdout : stderr;
  fmt::print(out, "\n");
  for (const Verdict& verdict : verdicts_) fmt::print(out, "{}\n", verdict.text);
  const auto missed = std::ranges::count(verdicts_, false, &Verdict::holds);
  fmt::print(out, "{} rows with a bar or a goal, {} bars missed\n", verdicts_.size(), missed);
}

bool Report::all_hold() const { return std::ranges::all_of(verdicts_, &Verdict::holds); }

}  // namespace adapterd::bench
