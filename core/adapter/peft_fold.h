// From the tensors of a PEFT file to plain factors.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_

#include "core/adapter/adapter.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/weights_plan.h"

namespace adapterd {

// What `info` says, from what the file holds (adapter-specific formulas of PEFT):
//   AdaLoRA: A' = diag(E) A in F32.
//   VeRA: A' = diag(lambda_d) A[:, :in], B' = diag(lambda_b) B[:out] in F32, of the A [rank,
//   inputs] and B [outputs, rank] in `shared`, which are at least as large as any module.
//   Experts: A is expert-major, B has the experts fastest (PEFT's ParamWrapper); both come out one
//   expert after the other, with the roles exchanged when `swapped`.
// Everything else is moved as it is. REQUIRES: shapes as the plan has checked them.
ModuleTensors FoldTensors(PeftMethod method, const ModuleInfo& info, bool swapped,
                          StoredTensors stored, const StoredTensors& shared);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_
