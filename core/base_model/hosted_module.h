// One module of a base model in memory, and what adapters that are merged into it made of it.
#ifndef ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_
#define ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/adapter/base_model_shapes.h"
#include "core/registry/adapter_handle.h"
#include "core/registry/memory_budget.h"
#include "core/tensor/tensor.h"

namespace adapterd {

class Nf4Matrix;

// As the checkpoint has it; immutable once its base model is there. Owned by the HostedBase.
struct HostedModule {
  std::string path;    // "model.layers.0.self_attn.q_proj"; of a bare parameter its whole name
  std::string tensor;  // name of the weight in the checkpoint
  DType dtype = DType::kF32;  // of the weight in the checkpoint
  Shape shape;                // of the weight
  // The weight as a matrix, row-major: experts [e, out, in] are e x out rows of `in`, a convolution
  // [out, in, kernel...] has out rows, anything else one row for each first index.
  int64_t rows = 0;
  int64_t cols = 0;
  bool is_parameter = false;  // no <path>.weight but a tensor called like the path: experts
  // As far as the architecture and the name tell; else kOutIn. An adapter may know better
  // (LayoutOfWeight).
  BaseLayout layout = BaseLayout::kOutIn;
  // One of the two; shared by modules whose weights are tied.
  std::shared_ptr<const Tensor> weight;
  std::shared_ptr<const Nf4Matrix> nf4;
  Tensor bias;  // as in the checkpoint, [out_features]; empty: there is none
  double quantization_error = 0;  // Frobenius norm of what quantisation lost / that of the weight
  int64_t memory_bytes = 0;       // of weight and bias; a tied weight counts where it was read

  // REQUIRES: not quantised.
  MatrixView stored() const { return {weight->dtype(), rows, cols, weight->bytes().data()}; }
};

// One adapter in a module.
struct MergedAdapter {
  std::string name;
  std::string revision;
  float weight = 1;  // on its delta
  // Keeps the revision in memory for as long as it is merged.
  std::shared_ptr<const AdapterHandle> handle;
};

// What merging made of a module: everything that W + sum of deltas differs in. Immutable; replaced
// as a whole. Weights and reservation have one lifetime.
class MergedOverlay {
 public:
  MergedOverlay(std::vector<MergedAdapter> merged_adapters, Tensor merged_weight,
                Tensor merged_bias, Reservation reservation)
      : adapters(std::move(merged_adapters)),
        reservation_(std::move(reservation)),
        weight(std::move(merged_weight)),
        bias(std::move(merged_bias)) {}

  const std::vector<MergedAdapter> adapters;  // ascending by name; at least one

 private:
  const Reservation reservation_;  // before the tensors: they go first

 public:
  // In the module's dtype and layout, BF16 over a quantised one. Empty: the base's counts, because
  // the adapters change the bias alone.
  const Tensor weight;
  const Tensor bias;  // [out_features]; empty: the base's counts, if it has one

  int64_t memory_bytes() const { return reservation_.bytes(); }
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_
