#include "core/adapter/new_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "core/adapter/fresh_factors.h"
#include "core/adapter/peft_config.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

Error Invalid(Reason reason, const std::string& field, const std::string& what) {
  return Error(reason, field + ": " + what).With("field", field);
}

absl::Status CheckAlpha(double alpha, const std::string& field) {
  if (alpha > 0 && alpha <= kMaxAlpha) return absl::OkStatus();  // not NaN
  return Invalid(Reason::kInvalidField, field,
                 fmt::format("expected above 0 and at most {:g}, found {}", kMaxAlpha, alpha));
}

absl::Status CheckRank(int64_t rank, const ModuleInfo& module) {
  const int64_t most = std::min(module.in_features, module.out_features);
  if (rank >= 1 && rank <= most) return absl::OkStatus();
  return Invalid(Reason::kInvalidField, "rank",
                 fmt::format("expected 1 to {}, the smaller side of {}, found {}", most,
                             Quoted(module.path), rank));
}

absl::Status CheckFactor(const std::optional<GivenTensor>& tensor, const std::string& field,
                         const std::string& module) {
  if (!tensor) {
    return Invalid(Reason::kInvalidAdapter, field,
                   "expected both factors of the module, found none")
        .With("module", Printable(module));
  }
  const bool is_matrix = tensor->shape.size() == 2 && tensor->shape[0] > 0 && tensor->shape[1] > 0;
  if (!is_matrix) {
    return Invalid(
               Reason::kInvalidAdapter, field,
               fmt::format("expected two dimensions above 0, found {}", ShapeString(tensor->shape)))
        .With("module", Printable(module));
  }
  return CheckFinite(*tensor, field, module);
}

absl::StatusOr<ModuleInfo> InfoOf(const GivenPair& pair, const std::string& field) {
  RETURN_IF_ERROR(CheckModulePath(pair.path, field + ".path"));
  RETURN_IF_ERROR(CheckFactor(pair.lora_a, field + ".lora_a", pair.path));
  RETURN_IF_ERROR(CheckFactor(pair.lora_b, field + ".lora_b", pair.path));
  const int64_t rank = pair.lora_a->shape[0];
  if (pair.lora_b->shape[1] != rank) {
    return Invalid(
               Reason::kInvalidAdapter, field,
               fmt::format("expected lora_b [out_features, {}] beside lora_a {}, found {}", rank,
                           ShapeString(pair.lora_a->shape), ShapeString(pair.lora_b->shape)))
        .With("module", Printable(pair.path));
  }
  ModuleInfo info;
  info.path = pair.path;
  info.in_features = pair.lora_a->shape[1];
  info.out_features = pair.lora_b->shape[0];
  info.rank = rank;
  info.alpha = pair.alpha.value_or(static_cast<double>(rank));
  info.lora_a_dtype = pair.lora_a->dtype;
  info.lora_b_dtype = pair.lora_b->dtype;
  RETURN_IF_ERROR(CheckAlpha(info.alpha, field + ".alpha"));
  return info;
}

Tensor CopyOf(const GivenTensor& tensor) {
  AlignedBuffer bytes(tensor.bytes.size());
  std::memcpy(bytes.data(), tensor.bytes.data(), bytes.size());
  return Tensor(tensor.dtype, tensor.shape, std::move(bytes));
}

}  // namespace

absl::Status CheckFinite(const GivenTensor& tensor, const std::string& field,
                         const std::string& module) {
  const auto count = static_cast<int64_t>(tensor.bytes.size()) / FloatBytes(tensor.dtype);
  if (std::isfinite(MaxMagnitude(tensor.dtype, tensor.bytes.data(), count))) {
    return absl::OkStatus();
  }
  return Invalid(Reason::kNonFiniteWeights, field,
                 fmt::format("expected finite elements, found NaN or infinite ones in module {}",
                             Quoted(module)))
      .With("module", Printable(module));
}

absl::StatusOr<MadeAdapter> MakeFresh(const FreshAdapter& adapter) {
  RETURN_IF_ERROR(CheckAlpha(adapter.alpha, "alpha"));
  ASSIGN_OR_RETURN(std::vector<ModuleInfo> modules,
                   ModulesOf(adapter.geometry, adapter.target_modules));
  for (ModuleInfo& module : modules) {
    RETURN_IF_ERROR(CheckRank(adapter.rank, module));
    module.rank = adapter.rank;
    module.alpha = adapter.alpha;
    module.lora_a_dtype = module.lora_b_dtype = adapter.dtype;
  }
  auto manifest = std::make_shared<const AdapterManifest>(
      ManifestOfPairs(std::move(modules), adapter.use_rslora));
  return MadeAdapter{manifest, [manifest, seed = adapter.seed](size_t module, TensorRole role) {
                       return FreshFactor(manifest->modules[module], role, seed);
                     }};
}

absl::StatusOr<MadeAdapter> MakeFromPairs(std::vector<GivenPair> pairs) {
  if (pairs.empty() || pairs.size() > kMaxMadeModules) {
    return Invalid(Reason::kInvalidField, std::string(kGivenPairsField),
                   fmt::format("expected 1 to {}, found {}", kMaxMadeModules, pairs.size()));
  }
  std::vector<ModuleInfo> infos;
  for (size_t i = 0; i < pairs.size(); ++i) {
    ASSIGN_OR_RETURN(infos.emplace_back(),
                     InfoOf(pairs[i], fmt::format("{}[{}]", kGivenPairsField, i)));
  }
  std::sort(pairs.begin(), pairs.end(),  // as the manifest
            [](const GivenPair& x, const GivenPair& y) { return x.path < y.path; });
  const auto twice =
      std::adjacent_find(pairs.begin(), pairs.end(),
                         [](const GivenPair& x, const GivenPair& y) { return x.path == y.path; });
  if (twice != pairs.end()) {
    return Invalid(Reason::kInvalidField, std::string(kGivenPairsField),
                   fmt::format("expected each path once, found {} twice", Quoted(twice->path)));
  }
  auto manifest = std::make_shared<const AdapterManifest>(
      ManifestOfPairs(std::move(infos), /*use_rslora=*/false));
  return MadeAdapter{manifest,
                     [manifest, pairs = std::move(pairs)](size_t module, TensorRole role) {
                       const GivenPair& pair = pairs[module];
                       return CopyOf(role == TensorRole::kLoraA ? *pair.lora_a : *pair.lora_b);
                     }};
}

}  // namespace adapterd
