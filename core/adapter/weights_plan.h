// What is to be read from where: what a format makes of config and header, before any weight is
// read.
#ifndef ADAPTERD_CORE_ADAPTER_WEIGHTS_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_WEIGHTS_PLAN_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/base_model_binding.h"
#include "core/adapter/tensor_role.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// How the elements lie in the file.
enum class Encoding {
  kPlain,
  kQ8_0,  // blocks of ggml, which are decoded to F32
};

// One tensor in the weights file.
struct PlannedTensor {
  TensorRole role = TensorRole::kLoraA;
  DType dtype = DType::kF32;  // once it is decoded
  Shape shape;
  int64_t offset = 0;
  int64_t bytes = 0;  // in the file
  std::string name;
  // As the revision calls its role; empty: RoleName(role). What changes the meaning of the bytes (a
  // transposed factor, rows in another order) has to show in it.
  std::string revision_role = {};
  Encoding encoding = Encoding::kPlain;
};

// The tensors of one module as they are in the file, one for each of kTensorRoles.
using StoredTensors = std::vector<Tensor>;

// Makes of them what `info` says; `shared` are those that all modules use. Called from several
// threads at once.
using Fold = std::function<ModuleTensors(const ModuleInfo& info, StoredTensors stored,
                                         const StoredTensors& shared)>;

struct PlannedModule {
  std::vector<PlannedTensor> tensors;  // by offset, at least one
  Fold fold = nullptr;                 // null: FoldNothing
  // As the revision calls the module; empty: its path. What a base model tells is no part of it.
  std::string revision_path = {};
};

struct WeightsPlan {
  AdapterManifest manifest;
  std::vector<PlannedModule> modules;  // one for each of the manifest's
  std::vector<PlannedTensor> shared;   // of distinct roles, read before all modules
  BindOptions bind;                    // how the modules are found in a base model
};

// Everything is moved as it is.
ModuleTensors FoldNothing(StoredTensors stored);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_WEIGHTS_PLAN_H_
