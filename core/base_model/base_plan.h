// Which tensors of a checkpoint a load takes, before any of them is read.
#ifndef ADAPTERD_CORE_BASE_MODEL_BASE_PLAN_H_
#define ADAPTERD_CORE_BASE_MODEL_BASE_PLAN_H_

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/base_model.h"
#include "core/base_model/load_base.h"

namespace adapterd {

// A module without its numbers, and where they are. Views the checkpoint.
struct BaseModulePlan {
  HostedModule module;
  const CheckpointTensor* weight = nullptr;
  const CheckpointTensor* bias = nullptr;  // null: there is none
  std::optional<size_t> tied_to;           // the module of the plan whose weight it shares
  std::optional<int64_t> nf4_block;        // of a module that is to be quantised
};

struct BasePlan {
  std::vector<BaseModulePlan> modules;  // by path, bytewise
  int64_t bytes = 0;                    // that they will hold
};

// MODULE_NOT_TARGETED, UNSUPPORTED_DTYPE, MALFORMED_TENSOR_FILE and INVALID_FIELD of
// LoadHostedBase.
absl::StatusOr<BasePlan> PlanBase(const BaseModel& base, const BaseLoadRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_BASE_PLAN_H_
