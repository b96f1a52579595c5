// Reads modules of a checkpoint into memory.
#ifndef ADAPTERD_CORE_BASE_MODEL_LOAD_BASE_H_
#define ADAPTERD_CORE_BASE_MODEL_LOAD_BASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/base_model.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/base_model/hosted_base.h"
#include "core/formats/source_roots.h"

namespace adapterd {

struct BaseLoadRequest {
  std::string name;
  std::string source;                     // below a model root
  std::vector<std::string> modules = {};  // patterns (module_patterns.h); empty: all
  std::optional<int64_t> nf4_block =
      {};  // elements a block, at least 1; unset: as in the checkpoint

  bool operator==(const BaseLoadRequest&) const = default;
};

// On the calling thread and idle ones of `pool`, which wait for the disk. A tensor `<path>.weight`
// is the module `path`, with `<path>.bias`; any other of a float type is a module of its own name;
// of I64 and BOOL are index buffers and masks, which are left alone. When the checkpoint ties its
// output head to its embedding and has no head of its own, `lm_head` is a module that shares the
// embedding's weight.
//
// Errors of BaseModel::Open. MODULE_NOT_TARGETED: a pattern that matches no module.
// UNSUPPORTED_DTYPE: a module of another type (fp8, packed integers), or in another of what is
// asked for. MEMORY_BUDGET_EXCEEDED, before anything is read. SOURCE_CHANGED, SOURCE_UNAVAILABLE,
// CANCELLED. NON_FINITE_WEIGHTS in a module to be quantised.
absl::StatusOr<std::shared_ptr<HostedBase>> LoadHostedBase(const BaseLoadRequest& request,
                                                           const SourceRoots& roots,
                                                           MemoryBudget& budget, ThreadPool& pool,
                                                           const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_LOAD_BASE_H_
