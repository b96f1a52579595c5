// What one load takes of a process that has loaded nothing before.
#ifndef ADAPTERD_BENCH_LOAD_MEMORY_H_
#define ADAPTERD_BENCH_LOAD_MEMORY_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "bench/peft_folder.h"

namespace adapterd::bench {

// Hidden argument that makes the binary load one adapter and tell what that took: followed by the
// root and the adapter's folder below it.
inline constexpr char kLoadMemoryFlag[] = "--load-memory";
int RunLoadMemory(const std::string& root, const std::string& adapter);

struct LoadMemory {
  int64_t reserved_bytes = 0;   // in the budget
  int64_t anonymous_bytes = 0;  // that the process gained
};

// Runs this binary for it: a process that has loaded before keeps memory that another load would
// take unseen. Both after every module was made ready for bf16 inputs once.
absl::StatusOr<LoadMemory> MeasureLoadMemory(const PeftFolder& folder);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_LOAD_MEMORY_H_
