// Where the numbers come from.
#ifndef ADAPTERD_BENCH_MACHINE_H_
#define ADAPTERD_BENCH_MACHINE_H_

#include <sched.h>

#include <string>
#include <vector>

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

// Numbers of the cores that this thread may run on, ascending.
std::vector<int> CoreNumbers();

// CPU model, cores, instruction set and version of oneDNN, compiler, and what else the machine is
// doing, in one line.
std::string DescribeMachine();

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MACHINE_H_
