// adapterd_bench: how fast this build is, as ratios to something that runs beside it.
#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "bench/echo_server.h"
#include "bench/load_memory.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "bench/suite.h"
#include "core/compute/kernels.h"

namespace adapterd::bench {
namespace {

constexpr int kExitMissed = 1;
constexpr int kExitFailed = 2;

// As the server sets them, like the mode of mutexes: otherwise page faults drown what is measured.
constexpr int kMmapThreshold = 32 << 20;
constexpr int kTrimThreshold = 1 << 30;

struct Arguments {
  std::vector<std::string> suites;  // empty: all
  bool json = false;
  bool quick = false;
  bool check = false;
};

std::string SuiteList() {
  std::string text = "Suites, all of them when none is named:\n";
  for (const Suite& suite : AllSuites())
    text += fmt::format("  {:<8} {}\n", suite.name, suite.summary);
  return text;
}

std::vector<std::string> SuiteNames() {
  std::vector<std::string> names;
  for (const Suite& suite : AllSuites()) names.emplace_back(suite.name);
  return names;
}

void AddOptions(CLI::App& app, Arguments& arguments) {
  app.footer(SuiteList());
  app.add_option("suite", arguments.suites, "suites to run")->check(CLI::IsMember(SuiteNames()));
  app.add_flag("--json", arguments.json, "one JSON object a line instead of tables");
  app.add_flag("--quick", arguments.quick, "fewer repetitions: seconds instead of minutes");
  app.add_flag("--check", arguments.check, "exit with 1 when a bar is missed");
}

bool Chosen(const Arguments& arguments, const Suite& suite) {
  return arguments.suites.empty() || std::find(arguments.suites.begin(), arguments.suites.end(),
                                               suite.name) != arguments.suites.end();
}

int RunSuites(const Arguments& arguments) {
  PrepareComputeThread();  // this thread takes part in the work, as a server's worker does
  Report report(arguments.json ? Report::Format::kJson : Report::Format::kTable, DescribeMachine());
  SuiteContext context{arguments.quick, UsableCores(), report};
  bool failed = false;
  for (const Suite& suite : AllSuites()) {
    if (!Chosen(arguments, suite)) continue;
    const absl::Status status = suite.run(context);
    if (status.ok()) continue;
    fmt::print(stderr, "adapterd_bench: {}: {}\n", suite.name, std::string(status.message()));
    failed = true;
  }
  report.Finish();
  if (failed) return kExitFailed;
  return arguments.check && !report.all_hold() ? kExitMissed : EXIT_SUCCESS;
}

int Main(int argc, char** argv) {
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  mallopt(M_TRIM_THRESHOLD, kTrimThreshold);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  if (argc == 3 && std::string_view(argv[1]) == kEchoServerFlag) return RunEchoServer(argv[2]);
  if (argc == 4 && std::string_view(argv[1]) == kLoadMemoryFlag) {
    return RunLoadMemory(argv[2], argv[3]);
  }
  Arguments arguments;
  CLI::App app("Measures adapterd against references that run in turns with it.", "adapterd_bench");
  AddOptions(app, arguments);
  CLI11_PARSE(app, argc, argv);
  return RunSuites(arguments);
}

}  // namespace
}  // namespace adapterd::bench

int main(int argc, char** argv) { return adapterd::bench::Main(argc, argv); }
