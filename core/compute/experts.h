// The factors of many experts that one tensor holds, taken apart.
#ifndef ADAPTERD_CORE_COMPUTE_EXPERTS_H_
#define ADAPTERD_CORE_COMPUTE_EXPERTS_H_

#include <cstdint>

#include "core/tensor/tensor.h"

namespace adapterd {

// PEFT stores the B of all experts of a parameter as [out_features, rank x experts], the expert
// fastest: column k * experts + e is column k of expert e (ParamWrapper of
// peft/tuners/lora/layer.py). Returns [experts, out_features, rank], in which every expert is a
// matrix of its own: all of them at once, because reading one alone touches every cache line of the
// tensor. A needs nothing of the kind: its rows [e * rank, (e + 1) * rank) are expert e's.
//
// REQUIRES: experts > 0 and divides b.cols. Pure.
Tensor SplitExpertsB(const MatrixView& b, int64_t experts);

// Undoes SplitExpertsB. REQUIRES: three dimensions of a float type.
Tensor JoinExpertsB(const Tensor& split);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_EXPERTS_H_
