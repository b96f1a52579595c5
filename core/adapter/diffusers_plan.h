// An adapter that diffusers saved, on the way to one plan.
#ifndef ADAPTERD_CORE_ADAPTER_DIFFUSERS_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_DIFFUSERS_PLAN_H_

#include <optional>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_files.h"
#include "core/adapter/weights_plan.h"

namespace adapterd {

// Components whose config is in the metadata are PEFT adapters, spelled otherwise; in the others
// the factors and alphas decide, and an alpha that is missing everywhere is the rank. A file of one
// component has that component's own paths, one of several has their names before them.
//
// INVALID_ADAPTER for names with and without a component in one file, a config of a component that
// the file has nothing of, alphas for a part of the modules; MALFORMED_CONFIG for metadata that is
// no JSON object; and all that BuildPeftPlan, SortDiffusionTensors and PlanDiffusionPair find.
// nullopt when there is nothing to read.
std::optional<WeightsPlan> PlanDiffusers(const SourceFiles& files, const SourceSpec& spec,
                                         ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_DIFFUSERS_PLAN_H_
