#include "service/collectors.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "core/compute/kernels.h"
#include "service/adapter_listing.h"

namespace adapterd {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr char kOther[] = "other";

class FamilyBuilder {
 public:
  FamilyBuilder(const std::string& name, const std::string& help, MetricType type) {
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }

  FamilyBuilder& Add(double value, std::vector<ClientMetric::Label> labels = {}) {
    ClientMetric metric;
    metric.label = std::move(labels);
    if (family_.type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family_.metric.push_back(std::move(metric));
    return *this;
  }

  MetricFamily Build() { return std::move(family_); }

 private:
  MetricFamily family_;
};

ClientMetric::Label MakeLabel(const std::string& name, const std::string& value) {
  ClientMetric::Label label;
  label.name = name;
  label.value = value;
  return label;
}

// One series an adapter, largest value first; what is over the cap is summed.
template <typename Value>
MetricFamily PerAdapter(FamilyBuilder builder, const std::vector<AdapterSnapshot>& adapters,
                        Value value) {
  std::vector<const AdapterSnapshot*> order;
  for (const AdapterSnapshot& adapter : adapters) order.push_back(&adapter);
  std::sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
    return value(*a) != value(*b) ? value(*a) > value(*b) : a->name < b->name;
  });
  std::optional<double> other;
  for (size_t i = 0; i < order.size(); ++i) {
    const auto number = static_cast<double>(value(*order[i]));
    if (i < kMaxAdapterSeries && order[i]->name != kOther) {
      builder.Add(number, {MakeLabel("adapter", order[i]->name)});
    } else {  // also an adapter that is really called that: a label must not occur twice
      other = other.value_or(0) + number;
    }
  }
  if (other) builder.Add(*other, {MakeLabel("adapter", kOther)});
  return builder.Build();
}

// Fields of /proc/self/stat after the command's name, from field 3 (state) on.
std::vector<double> ProcStat() {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<double> fields;
  const size_t paren = text.rfind(')');
  if (paren == std::string::npos) return fields;
  std::istringstream in(text.substr(paren + 1));
  for (std::string field; in >> field;) fields.push_back(std::strtod(field.c_str(), nullptr));
  return fields;
}

double BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("btime ", 0) == 0) return std::strtod(line.c_str() + 6, nullptr);
  }
  return 0;
}

int OpenDescriptors() {
  std::error_code error;
  int count = 0;
  for (const auto& unused : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    static_cast<void>(unused);
    ++count;
  }
  return std::max(0, count - 1);  // without the one that lists them
}

}  // namespace

const char* StateLabel(AdapterState state) {
  switch (state) {
    case AdapterState::kLoading:
      return "loading";
    case AdapterState::kReady:
      return "ready";
    case AdapterState::kEvicted:
      return "evicted";
    default:
      return "failed";
  }
}

std::vector<MetricFamily> CollectAdapters(const AdapterRegistry& registry) {
  const std::vector<AdapterSnapshot> adapters = ListEverything(registry);
  std::vector<MetricFamily> families;
  FamilyBuilder states("adapterd_adapters", "Adapters, by state.", MetricType::Gauge);
  for (AdapterState state : kAdapterStates) {
    const auto count = std::count_if(adapters.begin(), adapters.end(),
                                     [&](const auto& a) { return a.state == state; });
    states.Add(static_cast<double>(count), {MakeLabel("state", StateLabel(state))});
  }
  families.push_back(states.Build());
  families.push_back(PerAdapter(
      FamilyBuilder("adapterd_adapter_memory_bytes",
                    "Bytes reserved for an adapter; beyond the largest 200, summed as \"other\".",
                    MetricType::Gauge),
      adapters, [](const AdapterSnapshot& a) { return a.memory_bytes; }));
  families.push_back(PerAdapter(
      FamilyBuilder("adapterd_apply_requests_total",
                    "Uses of an adapter by requests; beyond the busiest 200, summed as \"other\".",
                    MetricType::Counter),
      adapters, [](const AdapterSnapshot& a) { return a.use_count; }));
  families.push_back(FamilyBuilder("adapterd_memory_bytes",
                                   "Bytes reserved in the memory budget, by kind.",
                                   MetricType::Gauge)
                         .Add(static_cast<double>(registry.budget().used(MemoryKind::kAdapters)),
                              {MakeLabel("kind", "adapters")})
                         .Add(static_cast<double>(registry.budget().used(MemoryKind::kBaseModels)),
                              {MakeLabel("kind", "base_models")})
                         .Build());
  families.push_back(FamilyBuilder("adapterd_memory_budget_bytes",
                                   "Bytes that adapters and base models may hold together.",
                                   MetricType::Gauge)
                         .Add(static_cast<double>(registry.budget().limit()))
                         .Build());
  families.push_back(
      FamilyBuilder("adapterd_thrashing",
                    "1 while more bytes came back from eviction in 30 s than the budget holds.",
                    MetricType::Gauge)
          .Add(registry.totals().thrashing ? 1 : 0)
          .Build());
  return families;
}

std::vector<MetricFamily> CollectServer(const ThreadPool& workers, const ThreadPool& io_pool,
                                        const BufferPool& buffers, const std::string& isa) {
  std::vector<MetricFamily> families;
  families.push_back(FamilyBuilder("adapterd_io_queue_length", "Reads that wait for an I/O thread.",
                                   MetricType::Gauge)
                         .Add(io_pool.queue_length())
                         .Build());
  families.push_back(FamilyBuilder("adapterd_queue_length", "Jobs that wait for a compute thread.",
                                   MetricType::Gauge)
                         .Add(workers.queue_length())
                         .Build());
  families.push_back(
      FamilyBuilder("adapterd_buffer_bytes",
                    "Memory of tensors in requests and replies: in use, or kept for "
                    "the next.",
                    MetricType::Gauge)
          .Add(static_cast<double>(buffers.used_bytes()), {MakeLabel("state", "used")})
          .Add(static_cast<double>(buffers.idle_bytes()), {MakeLabel("state", "idle")})
          .Build());
  families.push_back(FamilyBuilder("adapterd_build_info",
                                   "Always 1; the labels say what is running.", MetricType::Gauge)
                         .Add(1, {MakeLabel("version", ADAPTERD_VERSION), MakeLabel("isa", isa),
                                  MakeLabel("onednn_version", Kernels::OneDnnVersion())})
                         .Build());
  return families;
}

std::vector<MetricFamily> CollectProcess() {
  std::vector<MetricFamily> families;
  const auto add = [&](const std::string& name, const std::string& help, MetricType type,
                       double value) {
    families.push_back(FamilyBuilder(name, help, type).Add(value).Build());
  };
  const std::vector<double> stat = ProcStat();
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  if (stat.size() > 21) {  // proc(5): utime is field 14, stime 15, threads 20, starttime 22, ...
    add("process_cpu_seconds_total", "User and system CPU time, in seconds.", MetricType::Counter,
        (stat[11] + stat[12]) / ticks);
    add("process_threads", "Threads.", MetricType::Gauge, stat[17]);
    add("process_start_time_seconds", "Start time, in seconds since the epoch.", MetricType::Gauge,
        BootTime() + stat[19] / ticks);
    add("process_virtual_memory_bytes", "Virtual memory, in bytes.", MetricType::Gauge, stat[20]);
    add("process_resident_memory_bytes", "Resident memory, in bytes.", MetricType::Gauge,
        stat[21] * static_cast<double>(sysconf(_SC_PAGESIZE)));
  }
  add("process_open_fds", "Open file descriptors.", MetricType::Gauge, OpenDescriptors());
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    add("process_max_fds", "Most file descriptors that may be open.", MetricType::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace adapterd
