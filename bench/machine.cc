#include "bench/machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string_view>
#include <thread>

#include "core/compute/kernels.h"

namespace adapterd::bench {
namespace {

#ifdef __OPTIMIZE__
constexpr char kBuild[] = "optimised";
#else
constexpr char kBuild[] = "NOT OPTIMISED: THESE NUMBERS MEAN NOTHING";
#endif

std::string CpuModel() {
  static constexpr std::string_view kKeys[] = {"model name", "CPU part"};  // x86, Arm
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    const bool known = std::any_of(std::begin(kKeys), std::end(kKeys),
                                   [&](std::string_view key) { return line.starts_with(key); });
    if (known && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

double LoadAverage() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

}  // namespace

int UsableCores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

PinnedThread::PinnedThread(int core) {
  sched_getaffinity(0, sizeof(before_), &before_);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  sched_setaffinity(0, sizeof(one), &one);
}

PinnedThread::~PinnedThread() { sched_setaffinity(0, sizeof(before_), &before_); }

std::vector<int> CoreNumbers() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof(set), &set);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

std::string DescribeMachine() {
  return fmt::format(
      "{}, {} cores, {}, oneDNN {}, adapterd {}, compiler {}, {}, load average {:.1f}", CpuModel(),
      UsableCores(), Kernels().isa(), Kernels::OneDnnVersion(), ADAPTERD_VERSION, __VERSION__,
      kBuild, LoadAverage());
}

}  // namespace adapterd::bench
