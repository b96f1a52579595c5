// What PyTorch takes for the same projection, measured elsewhere.
#ifndef ADAPTERD_BENCH_PYTORCH_H_
#define ADAPTERD_BENCH_PYTORCH_H_

#include <optional>

#include "bench/projection_case.h"

namespace adapterd::bench {

// Medians in microseconds of `x @ A.T @ B.T * scale` in PyTorch 2.15 (MKL and oneDNN 3.13) on two
// quiet cores with AMX, Intel Xeon of the Granite Rapids generation. nullopt for shapes that were
// not measured.
std::optional<double> PyTorchUs(const ProjectionShape& shape);

// Whether this machine is of that kind: two cores, AMX, and oneDNN may use it.
bool IsPyTorchMachine(const Kernels& kernels);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_PYTORCH_H_
