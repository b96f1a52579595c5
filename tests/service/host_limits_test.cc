// Limits read from made-up cgroup trees.
#include "service/host_limits.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>

#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

int CpusByAffinity() {
  cpu_set_t affinity;
  return sched_getaffinity(0, sizeof(affinity), &affinity) == 0 ? CPU_COUNT(&affinity) : 1;
}

class HostLimitsTest : public ::testing::Test {
 protected:
  HostLimitsTest() {
    root_.Write("proc/meminfo",
                "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable: 1 kB\n");
  }

  HostLimits Read() const { return ReadHostLimits(root_.path()); }
  // An expected number of CPUs, as far as this machine has them.
  static int AtMost(int cpus) { return std::min(cpus, CpusByAffinity()); }

  TempDir root_;
};

TEST_F(HostLimitsTest, WithoutCgroupsTheMachineIsTheLimit) {
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
  EXPECT_EQ(Read().cpus, CpusByAffinity());
}

TEST_F(HostLimitsTest, TheCgroupsOwnLimitCounts) {
  root_.Write("proc/self/cgroup", "0::/pod/container\n");
  root_.Write("sys/fs/cgroup/pod/container/memory.max", "2147483648\n");
  root_.Write("sys/fs/cgroup/pod/container/cpu.max", "100000 100000\n");
  EXPECT_EQ(Read().memory_bytes, 2 * kGiB);
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostLimitsTest, ALimitFurtherUpCountsToo) {
  root_.Write("proc/self/cgroup", "0::/pod/container\n");
  root_.Write("sys/fs/cgroup/pod/container/memory.max", "4294967296\n");
  root_.Write("sys/fs/cgroup/pod/memory.max", "1073741824\n");
  root_.Write("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  root_.Write("sys/fs/cgroup/pod/cpu.max", "50000 100000\n");
  EXPECT_EQ(Read().memory_bytes, kGiB);
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostLimitsTest, InAContainerTheMountIsTheOwnGroup) {
  root_.Write("proc/self/cgroup", "0::/\n");
  root_.Write("sys/fs/cgroup/memory.max", "3221225472\n");
  root_.Write("sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(Read().memory_bytes, 3 * kGiB);
  EXPECT_EQ(Read().cpus, AtMost(2));
}

TEST_F(HostLimitsTest, MaxMeansNoLimit) {
  root_.Write("proc/self/cgroup", "0::/\n");
  root_.Write("sys/fs/cgroup/memory.max", "max\n");
  root_.Write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
  EXPECT_EQ(Read().cpus, CpusByAffinity());
}

TEST_F(HostLimitsTest, ALimitAboveTheMachineIsNone) {
  root_.Write("sys/fs/cgroup/memory.max", "1099511627776\n");
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
}

TEST_F(HostLimitsTest, QuotasAreRoundedUp) {
  root_.Write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  EXPECT_EQ(Read().cpus, AtMost(2));
  root_.Write("sys/fs/cgroup/cpu.max", "1000 100000\n");
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostLimitsTest, VersionOneIsReadAsWell) {
  root_.Write("proc/self/cgroup", "4:memory:/pod\n3:cpu,cpuacct:/pod\n");
  root_.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
  root_.Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  root_.Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Read().memory_bytes, kGiB);
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostLimitsTest, VersionOneWithoutLimitsIsNoLimit) {
  root_.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root_.Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  root_.Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
  EXPECT_EQ(Read().cpus, CpusByAffinity());
}

TEST_F(HostLimitsTest, NonsenseIsNoLimit) {
  root_.Write("proc/self/cgroup", "garbage\n0::nonsense\n");
  root_.Write("sys/fs/cgroup/memory.max", "a lot\n");
  root_.Write("sys/fs/cgroup/cpu.max", "\n");
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
  EXPECT_EQ(Read().cpus, CpusByAffinity());
  root_.Write("sys/fs/cgroup/cpu.max", "100000 0\n");
  root_.Write("sys/fs/cgroup/memory.max", "0\n");
  EXPECT_EQ(Read().memory_bytes, 16 * kGiB);
  EXPECT_EQ(Read().cpus, CpusByAffinity());
}

TEST_F(HostLimitsTest, TheRealMachineHasMemoryAndACpu) {
  EXPECT_GT(ReadHostLimits().memory_bytes, 16 << 20);
  EXPECT_GE(ReadHostLimits().cpus, 1);
}

TEST_F(HostLimitsTest, UseIsThatOfTheGroupNearestToItsLimitWithoutDroppableFiles) {
  root_.Write("proc/self/cgroup", "0::/pod/container\n");
  root_.Write("sys/fs/cgroup/pod/memory.max", "4000\n");
  root_.Write("sys/fs/cgroup/pod/memory.current", "3900\n");
  root_.Write("sys/fs/cgroup/pod/memory.stat", "anon 100\ninactive_file 3000\nactive_file 800\n");
  root_.Write("sys/fs/cgroup/pod/container/memory.max", "2000\n");
  root_.Write("sys/fs/cgroup/pod/container/memory.current", "1900\n");
  root_.Write("sys/fs/cgroup/pod/container/memory.stat", "anon 1600\ninactive_file 100\n");
  const auto use = ReadMemoryUse(root_.path());
  ASSERT_TRUE(use.has_value());
  EXPECT_EQ(use->used_bytes, 1800);
  EXPECT_EQ(use->limit_bytes, 2000);
}

TEST_F(HostLimitsTest, UseIsReadFromV1Too) {
  root_.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n");
  root_.Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1500\n");
  root_.Write("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
  const auto use = ReadMemoryUse(root_.path());
  ASSERT_TRUE(use.has_value());
  EXPECT_EQ(use->used_bytes, 1000);
  EXPECT_EQ(use->limit_bytes, 2000);
}

TEST_F(HostLimitsTest, WithoutALimitThereIsNoUseOfIt) {
  root_.Write("sys/fs/cgroup/memory.max", "max\n");
  root_.Write("sys/fs/cgroup/memory.current", "1500\n");
  EXPECT_FALSE(ReadMemoryUse(root_.path()).has_value());
}

}  // namespace
}  // namespace adapterd
