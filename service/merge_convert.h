// What merges of every kind tell about their rounding.
#ifndef ADAPTERD_SERVICE_MERGE_CONVERT_H_
#define ADAPTERD_SERVICE_MERGE_CONVERT_H_

#include "adapterd/v1/merge_service.pb.h"
#include "core/compute/merge.h"

namespace adapterd {

inline void FillStats(const MergeStats& stats, v1::MergeStats& out) {
  out.set_max_abs_delta(stats.max_abs_delta);
  out.set_max_abs_rounding_error(stats.max_abs_rounding_error);
  out.set_relative_rounding_error(stats.relative_rounding_error);
  out.set_zeroed_elements(stats.zeroed_elements);
  out.set_non_finite_elements(stats.non_finite_elements);
}

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_CONVERT_H_
