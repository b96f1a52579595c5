// What a run prints: a table for people or a JSON object a line, and whether the bars hold.
#ifndef ADAPTERD_BENCH_REPORT_H_
#define ADAPTERD_BENCH_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bench/measure.h"

namespace adapterd::bench {

// Ratios of ours over the reference. Below 1 they are said as "so many times faster".
struct Bars {
  std::optional<double> must;  // the largest that is good enough
  std::optional<double> goal;  // the largest that is hoped for; missing it fails nothing
};

// One measured pair.
struct Row {
  std::string suite;
  std::string name;  // what was timed
  std::string shape;
  std::string dtype;
  std::string reference;  // what it was timed against
  Comparison comparison;
  Bars bars;

  bool holds() const { return !bars.must || comparison.ratio() <= *bars.must; }
};

// Two sizes in bytes, measured once.
struct MemoryRow {
  std::string suite;
  std::string name;  // what takes the memory
  std::string shape;
  std::string dtype;
  std::string reference;  // what it is compared with
  int64_t bytes = 0;
  int64_t reference_bytes = 0;
  std::optional<double> bar;  // the largest ratio that is good enough

  double ratio() const { return static_cast<double>(bytes) / static_cast<double>(reference_bytes); }
  bool holds() const { return !bar || ratio() <= *bar; }
};

// One number.
struct Figure {
  std::string suite;
  std::string name;  // what was measured
  std::string shape;
  double value = 0;
  std::string unit;
  std::optional<double> at_least;  // bars
  std::optional<double> at_most;

  bool has_bar() const { return at_least || at_most; }
  bool holds() const {
    return (!at_least || value >= *at_least) && (!at_most || value <= *at_most);
  }
};

// Prints rows as they come. One thread.
class Report {
 public:
  enum class Format { kTable, kJson };
  enum class Columns { kComparisons, kFigures };  // what a suite's table is made of

  // `machine` is printed first, and is part of every JSON object: numbers without it mean nothing.
  Report(Format format, std::string machine);

  // A title above the rows of a suite and how they were measured. JSON has it on standard error.
  void Begin(const std::string& suite, const std::string& how,
             Columns columns = Columns::kComparisons);
  void Add(const Row& row);
  void Add(const MemoryRow& row);
  void Add(const Figure& figure);
  // A line for each row that has a bar: HOLDS or MISSED, REPORTED when it has but a goal. JSON has
  // them on standard error, too.
  void Finish() const;

  bool all_hold() const;

 private:
  struct Verdict {
    bool holds;
    std::string text;
  };

  void PrintTableRow(const Row& row) const;
  void PrintJsonRow(const Row& row) const;

  const Format format_;
  const std::string machine_;
  std::vector<Verdict> verdicts_;  // of the rows that have a bar
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_REPORT_H_
