// One module of a base model in memory, and what adapters that are merged into it made of it.
#ifndef ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_
#define ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_model_shapes.h"
#include "core/compute/nf4.h"
#include "core/registry/adapter_handle.h"
#include "core/registry/memory_budget.h"
#include "core/tensor/tensor.h"

namespace adapterd {

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
  bool is_tied = false;       // its weight is another module's, which pays for it
  // As far as the architecture and the name tell; else kOutIn. An adapter may know better
  // (LayoutOfWeight).
  BaseLayout layout = BaseLayout::kOutIn;
  // One of the two; shared by modules whose weights are tied.
  std::shared_ptr<const Tensor> weight;
  std::shared_ptr<const Nf4Matrix> nf4;
  Tensor bias;                    // as in the checkpoint, [out_features]; empty: there is none
  double quantization_error = 0;  // Frobenius norm of what quantisation lost / that of the weight
  int64_t memory_bytes = 0;       // of weight and bias

  // REQUIRES: not quantised.
  MatrixView stored() const { return {weight->dtype(), rows, cols, weight->bytes().data()}; }
  // What merging into it gives.
  DType merged_dtype() const { return nf4 == nullptr ? dtype : DType::kBF16; }
};

// One adapter in a module.
struct MergedAdapter {
  std::string name;
  std::string revision;
  double weight = 1;  // on its delta
  // Keeps the revision in memory for as long as it is merged; shared with its other modules.
  std::shared_ptr<const AdapterHandle> handle;
  // Where the base's module lies in the adapter, and how the adapter says the weight lies.
  size_t adapter_module = 0;
  BaseLayout layout = BaseLayout::kOutIn;
};

// What merging made of a module. Immutable; replaced as a whole. Weights and reservation have one
// lifetime.
class MergedOverlay {
 public:
  // Ascending by name; at least one.
  const std::vector<MergedAdapter>& adapters() const { return adapters_; }
  // Of the module's merged_dtype(), shape and layout. Empty: the base's own counts, because the
  // adapters change the bias alone.
  const Tensor& weight() const { return weight_; }
  const Tensor& bias() const { return bias_; }  // [out_features]; empty: the base's, if it has one
  int64_t memory_bytes() const { return reservation_.bytes(); }

  MergedOverlay(std::vector<MergedAdapter> adapters, Tensor weight, Tensor bias,
                Reservation reservation)
      : reservation_(std::move(reservation)),
        adapters_(std::move(adapters)),
        weight_(std::move(weight)),
        bias_(std::move(bias)) {}

 private:
  const Reservation reservation_;  // first, so that it goes last
  const std::vector<MergedAdapter> adapters_;
  const Tensor weight_;
  const Tensor bias_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_HOSTED_MODULE_H_
