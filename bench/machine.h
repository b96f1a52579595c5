// Where the numbers come from.
#ifndef ADAPTERD_BENCH_MACHINE_H_
#define ADAPTERD_BENCH_MACHINE_H_

#include <string>

namespace adapterd::bench {

// Cores that this process may run on.
int UsableCores();

// CPU model, cores, instruction set and version of oneDNN, compiler, and what else the machine is
// doing, in one line.
std::string DescribeMachine();

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MACHINE_H_
