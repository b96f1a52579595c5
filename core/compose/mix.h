// The weighted mixture of several matrices of one shape, element by element.
#ifndef ADAPTERD_CORE_COMPOSE_MIX_H_
#define ADAPTERD_CORE_COMPOSE_MIX_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/base/cancellation.h"
#include "core/base/random_stream.h"
#include "core/base/thread_pool.h"
#include "core/compose/compose_spec.h"
#include "core/compute/delta_rows.h"

namespace adapterd {

// A matrix of which rows are read more than once, so that it need not exist as a whole. Any thread.
class RowSource {
 public:
  virtual ~RowSource() = default;

  // Rows [first, first + count) in F32. Finite; equal blocks have equal bits each time.
  // REQUIRES: count <= kMixRows.
  virtual absl::Status Read(int64_t first, int64_t count, float* rows) const = 0;
};

// Rows that are worked on at once.
inline constexpr int64_t kMixRows = DeltaRows::kBlockRows;

struct MixInput {
  std::unique_ptr<const RowSource> rows;
  double weight = 1;
  // Random pruning draws the number of element i, counted along the rows, as the i-th of this.
  RandomStream random{0};
};

struct MixRule {
  Pruning pruning = Pruning::kNone;
  double density = 1;  // part that pruning keeps, in (0, 1]; 1: all, as they are
  SignElection election = SignElection::kNone;
};

// Of elements x_i of inputs with weights w_i, each first pruned to p_i:
//
//     magnitude   the int(density * elements) largest |x_i| of the matrix are kept, of equal ones
//                 the first along the rows; the others are 0
//     random      x_i is kept with the probability density and divided by it; otherwise 0
//
//     no election  sum of w_i p_i
//     election     s = the sign of the sum of p_i (kTotal) or of their signs (kFrequency), + for 0:
//                  sum of w_i p_i over the n inputs whose p_i has the sign s, / max(1, n)
//
// To `mixed` [rows, cols], each rounded once from F64. Shares its work with idle threads; the
// result does not depend on their number. CANCELLED, and errors of sources. Cost: magnitude pruning
// reads each source kCutPasses times more; holds kMixRows rows of each source a thread.
absl::Status Mix(ThreadPool& pool, std::span<const MixInput> inputs, const MixRule& rule,
                 int64_t rows, int64_t cols, float* mixed, const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPOSE_MIX_H_
