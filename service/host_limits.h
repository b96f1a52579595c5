// What this process may use of the machine.
#ifndef ADAPTERD_SERVICE_HOST_LIMITS_H_
#define ADAPTERD_SERVICE_HOST_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace adapterd {

struct HostLimits {
  int64_t memory_bytes = 0;  // the smaller of the cgroup's limit and the machine's memory
  int cpus = 1;              // by affinity and the cgroup's quota, rounded up
};

struct MemoryUse {
  int64_t used_bytes = 0;  // what counts against the limit, without files that the kernel may drop
  int64_t limit_bytes = 0;
};

// Reads cgroup v2 or v1 and /proc. `root` stands for "/" so that tests can bring their own files.
HostLimits ReadHostLimits(const std::string& root = "");

// Of the cgroup among those of this process that is nearest to its limit; none when none has one.
// `root` as above. Costs the reading of two small files for each.
std::optional<MemoryUse> ReadMemoryUse(const std::string& root = "");

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_HOST_LIMITS_H_
