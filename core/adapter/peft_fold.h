// From the tensors of a PEFT file to plain factors.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_

#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/tensor_role.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// The tensors of one module as they are in the file, one for each of kTensorRoles.
using StoredTensors = std::vector<Tensor>;

// VeRA's projections A [rank, inputs] and B [outputs, rank], at least as large as any module.
struct VeraProjections {
  Tensor a;
  Tensor b;
};

// What `info` says, from what the file holds (adapter-specific formulas of PEFT):
//   AdaLoRA: A' = diag(E) A in F32.
//   VeRA: A' = diag(lambda_d) A[:, :in], B' = diag(lambda_b) B[:out] in F32.
//   Experts: A is expert-major, B has the experts fastest (PEFT's ParamWrapper); both come out one
//   expert after the other, with the roles exchanged when `swapped`.
// Everything else is moved as it is. REQUIRES: shapes as the plan has checked them.
ModuleTensors FoldTensors(PeftMethod method, const ModuleInfo& info, bool swapped,
                          StoredTensors stored, const VeraProjections& projections);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_FOLD_H_
