// One matmul of oneDNN, asked for in a certain way. The only file of this room that knows oneDNN.
#ifndef ADAPTERD_BENCH_ONEDNN_STEP_H_
#define ADAPTERD_BENCH_ONEDNN_STEP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "core/tensor/tensor.h"

namespace adapterd::bench {

// How the weights [k, n] lie in memory.
enum class StepLayout {
  kRows,      // row-major
  kColumns,   // column-major, as the factors of an adapter are stored
  kAny,       // as oneDNN likes
  kPanels16,  // panels of so many columns, zeros at the ends; oneDNN calls it BA16a16b
  kPanels32,
  kPanels48,
  kPanels64,
  kSgemm,            // row-major, through dnnl_sgemm; F32 only
  kSgemmTransposed,  // column-major, through dnnl_sgemm; F32 only
};
std::span<const StepLayout> AllStepLayouts();
const char* StepLayoutName(StepLayout layout);

// destination [rows, n] = scale * source [rows, k] x weights [k, n].
struct StepShape {
  DType type = DType::kF32;  // of source and weights: F32 or BF16
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  StepLayout layout = StepLayout::kRows;
  DType output = DType::kF32;  // F32 or BF16
  float scale = 1;
};

// Compiled for one thread. One thread at a time; its clones may run beside it.
class OneDnnStep {
 public:
  // weights [j, i] = `transposed` [i, j], with zeros where it has nothing. UNIMPLEMENTED when
  // oneDNN does not do this, or only with its reference loops, which nobody would choose.
  static absl::StatusOr<std::unique_ptr<OneDnnStep>> Create(const StepShape& shape,
                                                            const MatrixView& transposed);
  ~OneDnnStep();

  // Shares code and weights.
  std::unique_ptr<OneDnnStep> Clone() const;

  void Run(const std::byte* source, std::byte* destination);

 private:
  struct Compiled;
  struct Bound;
  explicit OneDnnStep(std::shared_ptr<const Compiled> compiled);

  const std::shared_ptr<const Compiled> compiled_;
  const std::unique_ptr<Bound> bound_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ONEDNN_STEP_H_
