#include "bench/roofline.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "bench/copy.h"
#include "bench/data.h"
#include "bench/onednn_step.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kRuns = 15;
constexpr int64_t kL3Bytes = 16 << 20;
constexpr int64_t kBytesOfARun = 64 << 20;  // long enough for a second thread to take part
constexpr int kMatmulsOfARun = 8;

int64_t L2Bytes() {
  constexpr int64_t kUnknown = 1 << 20;
  const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : kUnknown;
}

double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

// The most that so many threads did at once, a second: `amount` is what one of them does in `body`.
// In their CPU time, because what others do on this machine must not lower its peak.
template <typename Body>
double PeakRate(ThreadPool& pool, int threads, double amount, Body body) {
  double peak = 0;
  for (int run = 0; run < kRuns; ++run) {
    std::vector<double> rates(threads);
    (void)ParallelFor(pool, threads, Cancellation(), [&](int64_t thread) {
      const double start = CpuSeconds();
      body(thread);
      rates[thread] = amount / (CpuSeconds() - start);
      return absl::OkStatus();
    });
    peak = std::max(peak, std::accumulate(rates.begin(), rates.end(), 0.0));
  }
  return peak;
}

// 0 when oneDNN has no kernel for this type.
double MatmulFlops(ThreadPool& pool, int threads, DType dtype, int64_t rows, int64_t size) {
  const Tensor weights = RandomMatrix(dtype, size, size, 1, 1);
  const Tensor source = RandomMatrix(dtype, rows, size, 1, 2);
  const auto step = OneDnnStep::Create({dtype, rows, size, size, StepLayout::kAny, DType::kF32, 1},
                                       AsMatrix(weights));
  if (!step.ok()) return 0;
  std::vector<std::unique_ptr<OneDnnStep>> steps;
  std::vector<std::unique_ptr<OutputMatrix>> outputs;
  steps.reserve(threads);
  outputs.reserve(threads);
  for (int i = 0; i < threads; ++i) {
    steps.push_back((*step)->Clone());
    outputs.push_back(std::make_unique<OutputMatrix>(DType::kF32, rows, size));
  }
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(size * size);
  return PeakRate(pool, threads, flops * kMatmulsOfARun, [&](int64_t thread) {
    for (int i = 0; i < kMatmulsOfARun; ++i) {
      steps[thread]->Run(source.bytes().data(), outputs[thread]->view().data);
    }
  });
}

double PeakFlops(ThreadPool& pool, int threads, DType dtype) {
  double best = 0;
  for (const int64_t rows : {256, 1024}) {
    for (const int64_t size : {512, 1024}) {
      best = std::max(best, MatmulFlops(pool, threads, dtype, rows, size));
    }
  }
  return best;
}

// Over `footprint` bytes of memory for each thread.
MemoryRates PeakMemory(ThreadPool& pool, int threads, int64_t footprint) {
  std::vector<std::unique_ptr<OutputMatrix>> buffers;
  buffers.reserve(threads);
  for (int i = 0; i < threads; ++i) {
    buffers.push_back(std::make_unique<OutputMatrix>(DType::kBF16, 1, footprint / 2));
  }
  const int64_t passes = std::max<int64_t>(1, kBytesOfARun / footprint);
  const int64_t half = footprint / 2;
  const auto rate = [&](auto move) {
    return PeakRate(pool, threads, static_cast<double>(footprint * passes), [&](int64_t thread) {
      std::byte* data = buffers[thread]->view().data;
      for (int64_t i = 0; i < passes; ++i) move(data);
    });
  };
  return {rate([&](std::byte* data) { ReadOnly(data, footprint); }),
          rate([&](std::byte* data) { PlainCopy(data, data + half, half); }),
          rate([&](std::byte* data) { StreamingCopy(data, data + half, half); })};
}

}  // namespace

const char* MemoryLevelName(MemoryLevel level) {
  static constexpr const char* kNames[] = {"L2", "L3", "256 MB"};
  return kNames[static_cast<int>(level)];
}

absl::StatusOr<MachinePeaks> MachinePeaks::Measure(ThreadPool& pool) {
  MachinePeaks peaks;
  RETURN_IF_ERROR(peaks.MeasureOn(pool, 1));
  if (pool.threads() > 1) RETURN_IF_ERROR(peaks.MeasureOn(pool, pool.threads()));
  return peaks;
}

absl::Status MachinePeaks::MeasureOn(ThreadPool& pool, int threads) {
  const double f32 = PeakFlops(pool, threads, DType::kF32);
  if (f32 == 0) return absl::InternalError("oneDNN has no matmul of F32");
  flops_[{DType::kF32, threads}] = f32;
  // Nobody has to multiply BF16 as BF16 where F32 is faster.
  flops_[{DType::kBF16, threads}] = std::max(f32, PeakFlops(pool, threads, DType::kBF16));
  memory_[{MemoryLevel::kL2, threads}] = PeakMemory(pool, threads, L2Bytes() / 2);
  memory_[{MemoryLevel::kL3, threads}] = PeakMemory(pool, threads, kL3Bytes / threads);
  memory_[{MemoryLevel::kBeyond, threads}] = PeakMemory(pool, threads, kBeyondBytes / threads);
  return absl::OkStatus();
}

MemoryLevel MachinePeaks::LevelOf(const Work& work, int threads) const {
  if (work.is_cold) return MemoryLevel::kBeyond;
  const int64_t of_a_core = work.read_bytes + work.split_bytes / threads;
  return of_a_core <= L2Bytes() * 5 / 4 ? MemoryLevel::kL2 : MemoryLevel::kL3;
}

Roofline MachinePeaks::For(const Work& work, int threads) const {
  const MemoryLevel level = LevelOf(work, threads);
  const double arithmetic = work.flops / Flops(work.dtype, threads);
  const double memory =
      static_cast<double>(work.read_bytes + work.split_bytes) / Memory(level, threads).best();
  if (arithmetic > memory) return {1e6 * arithmetic, LowerName(work.dtype) + " FLOPs"};
  return {1e6 * memory, fmt::format("{} bytes", MemoryLevelName(level))};
}

void MachinePeaks::AddTo(Report& report) const {
  const auto add = [&](std::string name, std::string shape, int threads, double value,
                       std::string unit) {
    shape += fmt::format(" x{}", threads);
    report.Add(
        Figure{"peaks", std::move(name), std::move(shape), value / 1e9, std::move(unit), {}, {}});
  };
  for (const auto& [key, flops] : flops_) {
    add("dense matmul of oneDNN", LowerName(key.first), key.second, flops, "GFLOP/s");
  }
  for (const auto& [key, rates] : memory_) {
    const char* level = MemoryLevelName(key.first);
    add("read", level, key.second, rates.read, "GB/s");
    add("memcpy, bytes read and written", level, key.second, rates.copy, "GB/s");
    add("stream copy, bytes read and written", level, key.second, rates.stream_copy, "GB/s");
  }
}

}  // namespace adapterd::bench
