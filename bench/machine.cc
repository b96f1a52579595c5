#include "bench/machine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
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

CoreWait::CoreWait() : file_(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)) {}

CoreWait::~CoreWait() {
  if (file_ >= 0) close(file_);
}

// "ran waited slices", the first two in nanoseconds.
double CoreWait::Seconds() const {
  char text[96];
  const ssize_t size = pread(file_, text, sizeof(text) - 1, 0);
  if (size <= 0) return 0;
  text[size] = '\0';
  char* rest = nullptr;
  std::strtoll(text, &rest, 10);
  return 1e-9 * static_cast<double>(std::strtoll(rest, nullptr, 10));
}

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

absl::StatusOr<int64_t> AnonymousBytes(const std::string& process) {
  constexpr std::string_view kKey = "RssAnon:";
  const std::string path = "/proc/" + process + "/status";
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(kKey)) continue;
    const size_t digit = line.find_first_of("0123456789");
    int64_t kibibytes = 0;
    if (digit == std::string::npos) break;
    std::from_chars(line.data() + digit, line.data() + line.size(), kibibytes);
    return kibibytes << 10;
  }
  return absl::UnavailableError(path + " has no RssAnon");
}

std::string DescribeMachine() {
  return fmt::format(
      "{}, {} cores, {}, oneDNN {}, adapterd {}, compiler {}, {}, load average {:.1f}", CpuModel(),
      UsableCores(), Kernels().isa(), Kernels::OneDnnVersion(), ADAPTERD_VERSION, __VERSION__,
      kBuild, LoadAverage());
}

}  // namespace adapterd::bench
