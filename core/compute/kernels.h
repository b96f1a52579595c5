// What the CPU can do, and the oneDNN primitives made for it so far.
#ifndef ADAPTERD_CORE_COMPUTE_KERNELS_H_
#define ADAPTERD_CORE_COMPUTE_KERNELS_H_

#include <memory>
#include <string>
#include <vector>

#include "core/tensor/dtype.h"

namespace adapterd {

// The type that a pair's two products multiply in; they always accumulate in F32.
enum class ComputeType { kF32, kBF16 };

// Products of few rows have loops of our own where those are faster; the other choice is to compare
// them with oneDNN's.
enum class KernelChoice { kFastest, kOneDnn };

// Owns the oneDNN engine and every primitive. One per process is enough; primitives belong to
// shapes, not to adapters, so ten thousand adapters of one shape share one set.
//
// Threads: all methods may be called from any thread. Primitives run with a scratchpad that the
// calling thread owns.
// Cost: the first use of a shape compiles a kernel (50-800 us); later uses are a map lookup.
class Kernels {
 public:
  explicit Kernels(KernelChoice choice = KernelChoice::kFastest);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  // The instruction set that oneDNN dispatches to ("AVX512_CORE_BF16") and its version ("2.6.3").
  std::string isa() const;
  static std::string OneDnnVersion();

  // kBF16 when the input and both factors are BF16 and the CPU multiplies BF16 at full rate; every
  // other mix computes in F32, which holds all three types exactly.
  ComputeType ComputeTypeFor(DType input, DType lora_a, DType lora_b) const;

  // Shapes in use for which oneDNN has only its reference loops, hundreds of times slower than the
  // rest. Empty on the CPUs that we know.
  std::vector<std::string> SlowMatmuls() const;

  class Impl;
  Impl& impl() const { return *impl_; }  // for this room only

 private:
  std::unique_ptr<Impl> impl_;
};

// Call once on every thread that runs kernels, before the first: oneDNN's own threads are switched
// off, because workers own whole blocks.
void PrepareComputeThread();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_KERNELS_H_
