// A server that knows many more adapters than it has memory for.
#include "bench/fleet.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "bench/fleet_traffic.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/suite.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr double kZipfExponent = 1.05;
constexpr size_t kHot = 100;
constexpr size_t kReplaced = 64;
constexpr size_t kGuests = Fleet::kSpares - kReplaced;  // content that no other name has
constexpr absl::Duration kSamplePeriod = absl::Milliseconds(5);
constexpr absl::Duration kReplacePeriod = absl::Milliseconds(20);
constexpr absl::Duration kChurnPeriod = absl::Milliseconds(10);

// Bars.
constexpr double kBudgetShare = 1;  // of memory in use, at every sample
constexpr double kApplyBesideLoads = 0.95;
constexpr double kPageMs = 50;
constexpr double kRestartSeconds = 5;

struct Plan {
  FleetSize size;
  absl::Duration steady;  // as long again with replaces
  absl::Duration phase;   // with or without loads beside
  int rounds;             // of two phases
  int listings;
};
constexpr Plan kFull{{10000, 1000}, absl::Seconds(8), absl::Milliseconds(500), 20, 5};
constexpr Plan kQuick{{2000, 200}, absl::Seconds(2), absl::Milliseconds(300), 5, 2};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return Percentile(values, 0.5);
}

// The suite over one fleet.
class FleetRun {
 public:
  FleetRun(SuiteContext& context, const Plan& plan, Fleet& fleet)
      : context_(context), plan_(plan), fleet_(fleet) {}

  absl::Status Load();
  absl::Status ZipfTraffic();
  absl::Status HotTraffic();
  absl::Status Listing();
  absl::Status Restart();

 private:
  struct Phase {
    Traffic traffic;
    double loads = 0;        // and as many unloads
    double cpu_seconds = 0;  // of the server
  };

  // Highest of what is in use, by samples while `traffic` runs, as a share of the budget.
  absl::StatusOr<double> PeakDuring(absl::FunctionRef<absl::Status()> traffic);
  absl::Status ReplaceOne();
  absl::Status LoadAndUnload();
  absl::StatusOr<double> CpuSecondsOfLoadAndUnload();
  absl::StatusOr<Phase> RunPhase(Applier& applier, absl::FunctionRef<size_t()> next,
                                 bool with_loads);
  void ReportHotTraffic(const std::vector<Phase>& alone, const std::vector<Phase>& beside,
                        double load_seconds);
  absl::Status ListInPages(int64_t page_size);

  void Add(std::string name, double value, std::string unit, std::optional<double> at_least = {},
           std::optional<double> at_most = {}) {
    context_.report.Add(Figure{"fleet", std::move(name),
                               fmt::format("n={} fit={}", plan_.size.adapters, plan_.size.resident),
                               value, std::move(unit), at_least, at_most});
  }
  void AddLatency(const std::string& name, const std::vector<Phase>& phases);

  SuiteContext& context_;
  const Plan& plan_;
  Fleet& fleet_;
  size_t replaced_ = 0;            // how many have been
  size_t guest_ = 0;               // the next one's number
  double load_seconds_alone_ = 0;  // the server's CPU time of a load while it knows nothing else
};

void FleetRun::AddLatency(const std::string& name, const std::vector<Phase>& phases) {
  std::vector<double> all_us;
  for (const Phase& phase : phases) {
    const std::vector<double>& some_us = phase.traffic.latencies_us;
    all_us.insert(all_us.end(), some_us.begin(), some_us.end());
  }
  std::sort(all_us.begin(), all_us.end());
  Add(name + ", p50", Percentile(all_us, 0.5), "us");
  Add(name + ", p99", Percentile(all_us, 0.99), "us");
}

absl::Status FleetRun::Load() {
  ASSIGN_OR_RETURN(load_seconds_alone_, CpuSecondsOfLoadAndUnload());
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(fleet_.LoadAll());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  Add("loads with journal", static_cast<double>(plan_.size.adapters) / seconds, "/s");
  for (const size_t index : {size_t{0}, plan_.size.adapters / 2, plan_.size.adapters - 1}) {
    RETURN_IF_ERROR(fleet_.VerifyOne(index));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> FleetRun::PeakDuring(absl::FunctionRef<absl::Status()> traffic) {
  double peak = 0;
  FleetClient watcher(fleet_.server().address());
  Beside samples(kSamplePeriod, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const FleetState state, watcher.State());
    peak = std::max(
        peak, static_cast<double>(state.memory_bytes) / static_cast<double>(state.budget_bytes));
    return absl::OkStatus();
  });
  const absl::Status status = traffic();
  ASSIGN_OR_RETURN(const int64_t count, samples.Stop());
  RETURN_IF_ERROR(status);
  if (count == 0) return absl::InternalError("no sample was taken");
  return peak;
}

// Gives one of the adapters that are asked for most other content, or its own again.
absl::Status FleetRun::ReplaceOne() {
  const size_t index = replaced_ % kReplaced;
  const bool is_own = replaced_ / kReplaced % 2 == 1;
  ++replaced_;
  return fleet_.client().Load(Fleet::NameOf(index),
                              Fleet::NameOf(is_own ? index : plan_.size.adapters + index),
                              /*replace=*/true);
}

absl::Status FleetRun::ZipfTraffic() {
  Applier applier(fleet_);
  Zipf zipf(plan_.size.adapters, kZipfExponent);
  const auto next = [&] { return zipf.Next(); };
  RETURN_IF_ERROR(applier.Run(plan_.steady / 2, next).status());  // until it is steady
  ASSIGN_OR_RETURN(const FleetState before, fleet_.client().State());
  Traffic steady;
  ASSIGN_OR_RETURN(const double steady_peak, PeakDuring([&]() -> absl::Status {
                     ASSIGN_OR_RETURN(steady, applier.Run(plan_.steady, next));
                     return absl::OkStatus();
                   }));
  ASSIGN_OR_RETURN(const FleetState after, fleet_.client().State());
  // Nothing else happens meanwhile: each event is an eviction or a return.
  const auto events = static_cast<double>(after.sequence - before.sequence);
  const auto more_resident = static_cast<double>(after.resident - before.resident);
  const double returns = (events + more_resident) / 2;
  Add("Zipf applies", steady.rate(), "/s");
  AddLatency("Zipf applies", {{steady}});
  Add("evictions", (events - more_resident) / 2 / steady.seconds, "/s");
  Add("hit rate", 100 * (1 - returns / steady.calls()), "%");
  Add("peak memory, of the budget", steady_peak, "x", {}, kBudgetShare);

  int64_t replaces = 0;
  Traffic replaced;
  ASSIGN_OR_RETURN(const double replace_peak, PeakDuring([&]() -> absl::Status {
                     Beside replacing(kReplacePeriod, [this] { return ReplaceOne(); });
                     ASSIGN_OR_RETURN(replaced, applier.Run(plan_.steady, next));
                     ASSIGN_OR_RETURN(replaces, replacing.Stop());
                     return absl::OkStatus();
                   }));
  Add("replaces", static_cast<double>(replaces) / absl::ToDoubleSeconds(plan_.steady), "/s");
  AddLatency("Zipf applies beside replaces", {{replaced}});
  Add("peak memory beside replaces, of the budget", replace_peak, "x", {}, kBudgetShare);
  return absl::OkStatus();
}

absl::Status FleetRun::LoadAndUnload() {
  const std::string source = Fleet::NameOf(plan_.size.adapters + kReplaced + guest_++ % kGuests);
  RETURN_IF_ERROR(fleet_.client().Load("guest", source));
  return fleet_.client().Unload("guest");
}

// Of the server, in a while when it does nothing else.
absl::StatusOr<double> FleetRun::CpuSecondsOfLoadAndUnload() {
  ASSIGN_OR_RETURN(const absl::Duration before, fleet_.server().CpuTime());
  Beside churn(kChurnPeriod, [this] { return LoadAndUnload(); });
  absl::SleepFor(4 * plan_.phase);
  ASSIGN_OR_RETURN(const int64_t count, churn.Stop());
  ASSIGN_OR_RETURN(const absl::Duration after, fleet_.server().CpuTime());
  return absl::ToDoubleSeconds(after - before) / static_cast<double>(count);
}

// One phase with loads beside, or without.
absl::StatusOr<FleetRun::Phase> FleetRun::RunPhase(Applier& applier,
                                                   absl::FunctionRef<size_t()> next,
                                                   bool with_loads) {
  Phase phase;
  ASSIGN_OR_RETURN(const absl::Duration before, fleet_.server().CpuTime());
  std::optional<Beside> churn;
  if (with_loads) churn.emplace(kChurnPeriod, [this] { return LoadAndUnload(); });
  ASSIGN_OR_RETURN(phase.traffic, applier.Run(plan_.phase, next));
  if (with_loads) {
    ASSIGN_OR_RETURN(const int64_t loads, churn->Stop());
    phase.loads = static_cast<double>(loads);
  }
  ASSIGN_OR_RETURN(const absl::Duration after, fleet_.server().CpuTime());
  phase.cpu_seconds = absl::ToDoubleSeconds(after - before);
  return phase;
}

void FleetRun::ReportHotTraffic(const std::vector<Phase>& alone, const std::vector<Phase>& beside,
                                double load_seconds) {
  const double phase_seconds = absl::ToDoubleSeconds(plan_.phase);
  std::vector<double> loads;
  std::vector<double> rates;
  std::vector<double> ratios;
  std::vector<double> ratios_less_loads;
  std::vector<double> cpu_ratios;
  for (size_t i = 0; i < alone.size(); ++i) {
    const Traffic& reference = alone[i].traffic;
    const Traffic& traffic = beside[i].traffic;
    const double loads_cpu = beside[i].loads * load_seconds;
    const double left = 1 - loads_cpu / phase_seconds;  // of the time, for applies
    loads.push_back(beside[i].loads / phase_seconds);
    rates.push_back(reference.rate());
    ratios.push_back(traffic.rate() / reference.rate());
    ratios_less_loads.push_back(ratios.back() / left);
    cpu_ratios.push_back((beside[i].cpu_seconds - loads_cpu) / traffic.calls() /
                         (alone[i].cpu_seconds / reference.calls()));
  }
  Add("server CPU of a load and its unload", 1e6 * load_seconds, "us");
  Add("the same, of that with no other adapter", load_seconds / load_seconds_alone_, "x");
  Add("loads and unloads beside", Median(loads), "/s");
  Add("hot applies", Median(rates), "/s");
  AddLatency("hot applies", alone);
  AddLatency("hot applies beside loads", beside);
  Add("hot applies beside loads, of those without", Median(ratios), "x");
  Add("the same, less the CPU of the loads", Median(ratios_less_loads), "x", kApplyBesideLoads);
  Add("CPU of an apply beside loads, of without", Median(cpu_ratios), "x");
}

absl::Status FleetRun::HotTraffic() {
  Applier applier(fleet_);
  size_t at = 0;
  const auto next = [&] { return at++ % kHot; };
  RETURN_IF_ERROR(applier.Run(plan_.phase, next).status());  // now they are all in memory
  ASSIGN_OR_RETURN(const double load_seconds, CpuSecondsOfLoadAndUnload());
  std::vector<Phase> phases[2];
  for (int i = 0; i < 2 * plan_.rounds; ++i) {
    const bool with_loads = i % 4 == 1 || i % 4 == 2;  // neither is always the first of its pair
    ASSIGN_OR_RETURN(Phase phase, RunPhase(applier, next, with_loads));
    phases[with_loads ? 1 : 0].push_back(std::move(phase));
  }
  ReportHotTraffic(phases[0], phases[1], load_seconds);
  return absl::OkStatus();
}

absl::Status FleetRun::ListInPages(int64_t page_size) {
  std::vector<double> pages_ms;
  const CoreWait core_wait;
  for (int listing = 0; listing < plan_.listings; ++listing) {
    size_t adapters = 0;
    std::string token;
    do {
      const absl::Time start = absl::Now();
      const double waited = core_wait.Seconds();
      ASSIGN_OR_RETURN(const v1::ListAdaptersResponse page, fleet_.client().Page(page_size, token));
      pages_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - start) -
                         1e3 * (core_wait.Seconds() - waited));
      adapters += static_cast<size_t>(page.adapters_size());
      token = page.next_page_token();
    } while (!token.empty());
    if (adapters != plan_.size.adapters) {
      return absl::InternalError(
          fmt::format("{} of {} adapters are listed", adapters, plan_.size.adapters));
    }
  }
  const std::string name = fmt::format("page of {}", page_size);
  Add(name + ", median", Median(pages_ms), "ms");
  Add(name + ", slowest", *std::max_element(pages_ms.begin(), pages_ms.end()), "ms", {}, kPageMs);
  return absl::OkStatus();
}

absl::Status FleetRun::Listing() {
  for (const int64_t page_size : {1000, 100}) RETURN_IF_ERROR(ListInPages(page_size));
  return absl::OkStatus();
}

absl::Status FleetRun::Restart() {
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const absl::Duration until_ready, fleet_.Restart());
  const size_t last = plan_.size.adapters - 1;  // was never replaced
  RETURN_IF_ERROR(fleet_.VerifyOne(last));
  const absl::Duration until_answer = absl::Now() - start;
  ASSIGN_OR_RETURN(const FleetState state, fleet_.client().State());
  if (state.adapters != static_cast<int64_t>(plan_.size.adapters)) {
    return absl::InternalError(
        fmt::format("{} of {} adapters came back", state.adapters, plan_.size.adapters));
  }
  Add("restart, until ready", absl::ToDoubleSeconds(until_ready), "s", {}, kRestartSeconds);
  Add("restart, until the first answer", absl::ToDoubleSeconds(until_answer), "s", {},
      kRestartSeconds);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunFleetSuite(SuiteContext& context) {
  const std::vector<int> cores = CoreNumbers();
  std::optional<PinnedThread> pinned;
  std::optional<int> server_core;
  if (cores.size() > 1) {
    pinned.emplace(cores[0]);
    server_core = cores[1];
  }
  const Plan& plan = context.quick ? kQuick : kFull;
  context.report.Begin(
      "fleet",
      fmt::format("{} adapters of rank {} on {} features, memory for {}; one serial "
                  "client over loopback TCP, {}",
                  plan.size.adapters, Fleet::kRank, Fleet::kFeatures, plan.size.resident,
                  server_core ? "client and server on a core each" : "nothing pinned"),
      Report::Columns::kFigures);
  ASSIGN_OR_RETURN(const auto fleet, Fleet::Create(plan.size, server_core));
  FleetRun run(context, plan, *fleet);
  RETURN_IF_ERROR(run.Load());
  RETURN_IF_ERROR(run.ZipfTraffic());
  RETURN_IF_ERROR(run.HotTraffic());
  RETURN_IF_ERROR(run.Listing());
  return run.Restart();
}

}  // namespace adapterd::bench
