// The projection as oneDNN does it at best: two matmuls, in every way that we know to ask for them.
#ifndef ADAPTERD_BENCH_ONEDNN_VARIANTS_H_
#define ADAPTERD_BENCH_ONEDNN_VARIANTS_H_

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/data.h"
#include "bench/onednn_step.h"
#include "core/base/thread_pool.h"

namespace adapterd::bench {

// How a block of rows is computed: source x A^T, scaled, then x B^T.
struct BlockVariant {
  DType compute = DType::kF32;  // what both multiply in; F32 converts BF16 on the way in and out
  int64_t rows = 0;
  int64_t padded_rank = 0;
  StepLayout shrink = StepLayout::kRows;
  StepLayout expand = StepLayout::kRows;
  bool converts_output = false;  // F32 sums, converted to BF16 block by block
  double us = 0;                 // of one block alone, as a rough guess
};

// How a whole input is: in blocks, of which each thread has a run.
struct Variant {
  // "32b+any r32 in 64s x2": layouts of A and B, padded rank, rows of a block, threads.
  std::string Describe() const;

  BlockVariant block;
  int threads = 1;
};

// A variant ready to run on one input and output. One caller at a time.
class VariantRun {
 public:
  // REQUIRES: variant.block.rows divides the rows; the views outlive the result.
  static absl::StatusOr<std::unique_ptr<VariantRun>> Create(ThreadPool& pool,
                                                            const Variant& variant,
                                                            const Factors& factors,
                                                            const MatrixView& input,
                                                            const MutableMatrixView& output);
  ~VariantRun();

  absl::Status Run();
  const Variant& variant() const { return variant_; }

 private:
  class Pipeline;
  VariantRun(ThreadPool& pool, const Variant& variant, const MatrixView& input,
             const MutableMatrixView& output);

  ThreadPool& pool_;
  const Variant variant_;
  const MatrixView input_;
  const MutableMatrixView output_;
  std::vector<std::unique_ptr<Pipeline>> pipelines_;  // one a thread
};

// Finds the fastest variants. Keeps what it learned about blocks, which inputs of different sizes
// share.
class VariantSearch {
 public:
  explicit VariantSearch(ThreadPool& pool) : pool_(pool) {}

  // The best few of all block sizes, layouts, paddings and numbers of threads, by short timings of
  // each: what to race against. Best first, at least one.
  absl::StatusOr<std::vector<std::unique_ptr<VariantRun>>> Find(const Factors& factors,
                                                                const MatrixView& input,
                                                                const MutableMatrixView& output);

 private:
  using BlockKey = std::tuple<DType, int64_t, int64_t>;  // dtype, rank, rows

  // The best one for each padding of the rank, best first.
  const std::vector<BlockVariant>& BlocksOf(const Factors& factors, int64_t rows);

  ThreadPool& pool_;
  std::map<BlockKey, std::vector<BlockVariant>> blocks_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ONEDNN_VARIANTS_H_
