// Where the numbers come from.
#ifndef ADAPTERD_BENCH_MACHINE_H_
#define ADAPTERD_BENCH_MACHINE_H_

#include <sched.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace adapterd::bench {

// Cores that this process may run on.
int UsableCores();

// Keeps the thread that made it, and those that it starts meanwhile, on one core until the end.
class PinnedThread {
 public:
  explicit PinnedThread(int core);
  ~PinnedThread();
  PinnedThread(const PinnedThread&) = delete;
  PinnedThread& operator=(const PinnedThread&) = delete;

 private:
  cpu_set_t before_;
};

// How long a thread was ready to run but had no core, because others had it. Of no use to another
// thread than the one that made it. Reading costs about a microsecond.
class CoreWait {
 public:
  CoreWait();
  ~CoreWait();
  CoreWait(const CoreWait&) = delete;
  CoreWait& operator=(const CoreWait&) = delete;

  double Seconds() const;  // so far; 0 on kernels that do not tell

 private:
  const int file_;
};

// Numbers of the cores that this thread may run on, ascending.
std::vector<int> CoreNumbers();

// Memory of a process, by its id, that no file backs.
absl::StatusOr<int64_t> AnonymousBytes(const std::string& process = "self");

// CPU model, cores, instruction set and version of oneDNN, compiler, and what else the machine is
// doing, in one line.
std::string DescribeMachine();

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MACHINE_H_
