// The delta of one pair, a few rows at a time.
#ifndef ADAPTERD_CORE_COMPUTE_DELTA_ROWS_H_
#define ADAPTERD_CORE_COMPUTE_DELTA_ROWS_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/compute/kernels.h"
#include "core/compute/merge.h"

namespace adapterd {

class DeltaProduct;

// factor * B A [out_features, columns] in F32, never as a whole. Equal rows asked for in equal
// blocks have equal bits. Immutable; any thread. The factors and `kernels` must outlive it.
class DeltaRows {
 public:
  // Rows that are best made at once, and the most that can be.
  static constexpr int64_t kBlockRows = 32;

  static absl::StatusOr<DeltaRows> Create(const Kernels& kernels, const MergeTerm& term);
  DeltaRows(DeltaRows&&) noexcept;
  DeltaRows& operator=(DeltaRows&&) noexcept;
  ~DeltaRows();

  // Rows [first, first + count) to `rows`. REQUIRES: count <= kBlockRows.
  absl::Status Read(int64_t first, int64_t count, float* rows) const;

 private:
  DeltaRows(std::unique_ptr<const DeltaProduct> product, int64_t columns);

  std::unique_ptr<const DeltaProduct> product_;
  int64_t columns_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_DELTA_ROWS_H_
