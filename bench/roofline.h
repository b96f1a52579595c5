// The shortest time that this machine could need, from what it was measured to do at most.
#ifndef ADAPTERD_BENCH_ROOFLINE_H_
#define ADAPTERD_BENCH_ROOFLINE_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "core/base/thread_pool.h"
#include "core/tensor/dtype.h"

namespace adapterd::bench {

// Where a working set lies.
enum class MemoryLevel {
  kL2,      // a core's own share of it fits into its L2
  kL3,      // it does not; measured on 16 MB
  kBeyond,  // measured on 256 MB: DRAM, unless the L3 is larger
};
const char* MemoryLevelName(MemoryLevel level);

inline constexpr int64_t kBeyondBytes = 256 << 20;

// Of one computation: what nobody can leave out.
struct Work {
  DType dtype = DType::kF32;
  double flops = 0;         // of the true shape: no padding
  int64_t read_bytes = 0;   // by every thread: the factors
  int64_t split_bytes = 0;  // shared among the threads: input and output
  bool is_cold = false;     // the factors lie in kBeyondBytes of others
};

struct Roofline {
  double us = 0;
  std::string bound;  // "bf16 FLOPs" or "L2 bytes"
};

// Peaks of this machine, best of several short measurements of each.
class MachinePeaks {
 public:
  // FLOP/s of oneDNN's large matmuls; bandwidth of reading, memcpy and streaming stores, whichever
  // moves the most bytes. On one thread and on all of the pool. Takes about two seconds.
  static absl::StatusOr<MachinePeaks> Measure(ThreadPool& pool);

  // A second, on so many threads: 1 or all of the pool's.
  double Flops(DType dtype, int threads) const { return flops_.at({dtype, threads}); }
  double Bytes(MemoryLevel level, int threads) const { return bytes_.at({level, threads}); }

  Roofline For(const Work& work, int threads) const;
  std::string Describe() const;

 private:
  MachinePeaks() = default;
  absl::Status MeasureOn(ThreadPool& pool, int threads);
  MemoryLevel LevelOf(const Work& work, int threads) const;

  std::map<std::pair<DType, int>, double> flops_;
  std::map<std::pair<MemoryLevel, int>, double> bytes_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ROOFLINE_H_
