// Which tensors of a base model an adapter's modules act on.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_BINDING_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_BINDING_H_

#include <optional>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/base_model_names.h"
#include "core/adapter/base_model_shapes.h"
#include "core/adapter/base_tensors.h"
#include "core/adapter/problems.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"

namespace adapterd {

struct BaseWeight {
  std::string tensor;  // name in the checkpoint
  DType dtype = DType::kF32;
  Shape shape;
  BaseLayout layout = BaseLayout::kOutIn;
};

// One module's place in the base model.
struct BaseBinding {
  std::optional<BaseWeight> weight;  // nullopt: not found, or only a bias is replaced
  std::optional<BaseWeight> bias;    // [out_features]; nullopt: the module has none
  double embedding_scale = 1;        // kEmbedding: see EmbeddingScale
  bool ambiguous = false;            // not found because more than one tensor may be meant
};

// What the adapter's config says about its base.
struct BindOptions {
  bool fan_in_fan_out = false;
  std::vector<LayerRange> layer_replication;
};

// Finds the weight and bias of every module and checks their shapes against the module's. One entry
// a module, in order; complete when no error was added. Reads no weight. Pure.
//
// BASE_MODEL_MISMATCH: no module is found at all; a tensor of another shape; a replaced bias where
// the module has none; token ids beyond the embedding; a layer beyond the replicated stack, or a
// stack of layers that the base does not have. UNSUPPORTED_ADAPTER: an embedding whose scale is not
// known. Warnings, each about all modules of its kind: not found, ambiguous, more rows than the
// base's vocabulary, an embedding's scale taken for 1 without a config.json.
std::vector<BaseBinding> BindToBase(const std::vector<ModuleInfo>& modules, const BaseTensors& base,
                                    const BindOptions& options, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_BINDING_H_
