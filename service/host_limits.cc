#include "service/host_limits.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>

namespace adapterd {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

std::optional<std::string> ReadLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

// A limit file holds a number, or "max".
int64_t ReadLimit(const std::string& path) {
  const auto line = ReadLine(path);
  if (!line) return kNone;
  std::istringstream in(*line);
  int64_t value = 0;
  return in >> value && value > 0 ? value : kNone;
}

// The process's folder below the v2 mount ("0::/path"), or "" (the container's own root).
std::string CgroupV2Path(const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("0::/", 0) == 0) return line.size() == 4 ? "" : line.substr(3);
  }
  return "";
}

// A limit binds all that is below it, so every folder up to the mount counts.
template <typename Read>
void ForEachLevel(const std::string& mount, std::string path, Read read) {
  for (;;) {
    read(mount + path);
    if (path.empty()) return;
    path.erase(path.find_last_of('/'));
  }
}

int64_t MachineMemory(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  std::string key;
  for (int64_t kilobytes = 0; file >> key >> kilobytes; file.ignore(64, '\n')) {
    if (key == "MemTotal:") return kilobytes * 1024;
  }
  return int64_t{1} << 30;
}

double CpuQuota(const std::string& folder) {
  if (const auto line = ReadLine(folder + "/cpu.max")) {
    std::istringstream in(*line);
    double quota = 0;
    double period = 0;
    if (in >> quota >> period && period > 0) return quota / period;
  }
  return std::numeric_limits<double>::infinity();
}

// "key value" lines, as of memory.stat.
int64_t ReadField(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string found;
  for (int64_t value = 0; file >> found >> value;) {
    if (found == key) return value;
  }
  return 0;
}

struct MemoryFiles {
  const char* limit;
  const char* used;
  const char* droppable;  // field of memory.stat
};
constexpr MemoryFiles kMemoryV1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                   "total_inactive_file"};
constexpr MemoryFiles kMemoryV2 = {"/memory.max", "/memory.current", "inactive_file"};

std::optional<MemoryUse> UseIn(const std::string& folder, const MemoryFiles& files) {
  const int64_t limit = ReadLimit(folder + files.limit);
  const int64_t used = ReadLimit(folder + files.used);
  if (limit == kNone || used == kNone) return std::nullopt;
  const int64_t droppable = ReadField(folder + "/memory.stat", files.droppable);
  return MemoryUse{std::max<int64_t>(0, used - droppable), limit};
}

double Share(const MemoryUse& use) {
  return static_cast<double>(use.used_bytes) / static_cast<double>(use.limit_bytes);
}

}  // namespace

HostLimits ReadHostLimits(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  int64_t memory = MachineMemory(root);
  memory = std::min(memory, ReadLimit(mount + "/memory/memory.limit_in_bytes"));  // v1
  double cpus = std::numeric_limits<double>::infinity();
  ForEachLevel(mount, CgroupV2Path(root), [&](const std::string& folder) {
    memory = std::min(memory, ReadLimit(folder + "/memory.max"));
    cpus = std::min(cpus, CpuQuota(folder));
  });
  const int64_t quota_us = ReadLimit(mount + "/cpu/cpu.cfs_quota_us");  // v1
  const int64_t period_us = ReadLimit(mount + "/cpu/cpu.cfs_period_us");
  if (quota_us != kNone && period_us != kNone) {
    cpus = std::min(cpus, static_cast<double>(quota_us) / static_cast<double>(period_us));
  }
  cpu_set_t affinity;
  const int allowed = sched_getaffinity(0, sizeof(affinity), &affinity) == 0
                          ? CPU_COUNT(&affinity)
                          : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  HostLimits limits;
  limits.memory_bytes = memory;
  limits.cpus = std::max(1, cpus < allowed ? static_cast<int>(cpus + 0.999) : allowed);
  return limits;
}

std::optional<MemoryUse> ReadMemoryUse(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::optional<MemoryUse> tightest = UseIn(mount + "/memory", kMemoryV1);
  ForEachLevel(mount, CgroupV2Path(root), [&](const std::string& folder) {
    const auto use = UseIn(folder, kMemoryV2);
    if (use && (!tightest || Share(*use) > Share(*tightest))) tightest = use;
  });
  return tightest;
}

}  // namespace adapterd
