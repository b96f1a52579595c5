// New adapters: with fresh factors for a model, or with factors that somebody gives.
#ifndef ADAPTERD_CORE_ADAPTER_NEW_ADAPTER_H_
#define ADAPTERD_CORE_ADAPTER_NEW_ADAPTER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/made_adapter.h"
#include "core/adapter/model_shapes.h"

namespace adapterd {

// Fresh factors for a model.
struct FreshAdapter {
  ModelGeometry geometry;
  std::vector<std::string> target_modules = {"q_proj", "v_proj"};
  int64_t rank = 8;
  double alpha = 16;
  bool use_rslora = false;
  uint64_t seed = 0;
  DType dtype = DType::kF32;
};

// Costs nothing yet: tensors are drawn when they are asked for. INVALID_FIELD: errors of ModulesOf,
// a rank below 1 or above the smaller side of a module, an alpha that is not above 0 and finite.
absl::StatusOr<MadeAdapter> MakeFresh(const FreshAdapter& adapter);

// A tensor in the memory of somebody else.
struct GivenTensor {
  DType dtype = DType::kF32;  // F32, F16 or BF16
  Shape shape;
  std::span<const std::byte> bytes;  // shape x dtype
};

struct GivenPair {
  std::string path;
  std::optional<double> alpha;        // unset: the rank, which is scale 1
  std::optional<GivenTensor> lora_a;  // [rank, in_features]
  std::optional<GivenTensor> lora_b;  // [out_features, rank]
};

inline constexpr std::string_view kGivenPairsField = "tensors.modules";

// The result reads the tensors' memory. Errors name kGivenPairsField: INVALID_FIELD (no pair, too
// many, a path that CheckModulePath refuses or that is there twice, an alpha that is not above 0
// and finite), INVALID_ADAPTER (one factor without the other, not two dimensions, none of an
// element, ranks that differ), NON_FINITE_WEIGHTS.
absl::StatusOr<MadeAdapter> MakeFromPairs(std::vector<GivenPair> pairs);

// NON_FINITE_WEIGHTS when an element is NaN or infinite; `field` is what the message calls the
// tensor.
absl::Status CheckFinite(const GivenTensor& tensor, const std::string& field,
                         const std::string& module);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_NEW_ADAPTER_H_
