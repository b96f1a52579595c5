#include "core/compute/merge.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/add_rounded.h"
#include "core/compute/packed_matrix.h"
#include "core/compute/parallel.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"
#include "fmt/format.h"

namespace adapterd {
namespace {

// Rows of the weight whose delta is made at once: it and the packed factor then stay in the cache.
constexpr int64_t kBlockRows = 32;

// The factors as the layout of the weight wants them: delta [rows, cols] = sum over terms of
// factor * thin wide, where `thin` has the weight's rows and `wide` its columns.
class DeltaFactors {
 public:
  static absl::StatusOr<DeltaFactors> Create(const Kernels::Impl& kernels,
                                             std::span<const MergeTerm> terms, WeightLayout_ layout,
                                             int64_t columns);
};

}  // namespace
}  // namespace adapterd
