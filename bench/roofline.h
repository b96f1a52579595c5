// The shortest time that this machine could need, from what it was measured to do at most.
#ifndef ADAPTERD_BENCH_ROOFLINE_H_
#define ADAPTERD_BENCH_ROOFLINE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "bench/report.h"
#include "core/base/thread_pool.h"
#include "core/tensor/dtype.h"

namespace adapterd::bench {

// Where a working set lies.
enum class MemoryLevel {
  kL2,      // most of a core's share of it fits into its L2: at most 1.25 times as much
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

// Bytes a second, read and written ones alike.
struct MemoryRates {
  double read = 0;
  double copy = 0;         // memcpy
  double stream_copy = 0;  // with stores that go past the caches

  double best() const { return std::max({read, copy, stream_copy}); }
};

// Peaks of this machine, best of several short measurements of each.
class MachinePeaks {
 public:
  // Of oneDNN's large matmuls and of memory, on one thread and on all of the pool. Takes about two
  // seconds.
  static absl::StatusOr<MachinePeaks> Measure(ThreadPool& pool);

  // A second, on so many threads: 1 or all of the pool's.
  double Flops(DType dtype, int threads) const { return flops_.at({dtype, threads}); }
  const MemoryRates& Memory(MemoryLevel level, int threads) const {
    return memory_.at({level, threads});
  }

  // The larger of its arithmetic at the peak of so many threads, and its bytes at the best rate of
  // the memory that holds them.
  Roofline For(const Work& work, int threads) const;
  // A figure for each of them.
  void AddTo(Report& report) const;

 private:
  MachinePeaks() = default;
  absl::Status MeasureOn(ThreadPool& pool, int threads);
  MemoryLevel LevelOf(const Work& work, int threads) const;

  std::map<std::pair<DType, int>, double> flops_;
  std::map<std::pair<MemoryLevel, int>, MemoryRates> memory_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ROOFLINE_H_
