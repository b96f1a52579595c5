// What this process may use of the machine.
#ifndef ADAPTERD_SERVICE_HOST_LIMITS_H_
#define ADAPTERD_SERVICE_HOST_LIMITS_H_

#include <cstdint>
#include <string>

namespace adapterd {

struct HostLimits {
  int64_t memory_bytes = 0;  // the smaller of the cgroup's limit and the machine's memory
  int cpus = 1;              // by affinity and the cgroup's quota, rounded up
};

// Reads cgroup v2 or v1 and /proc. `root` stands for "/" so that tests can bring their own files.
HostLimits ReadHostLimits(const std::string& root = "");

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_HOST_LIMITS_H_
