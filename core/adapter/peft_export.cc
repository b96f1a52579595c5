#include "core/adapter/peft_export.h"

#include <cstring>
#include <utility>

#include "core/adapter/peft_export_config.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

constexpr char kCreatedKey[] = "adapterd_created";

// The shapes of one tensor in the file.
Shape FileShape(const ModuleInfo& info, TensorRole role) {
  switch (role) {
    case TensorRole::kLoraA:
      if (info.kind == ModuleKind::kConv) {
        Shape shape = {info.rank, info.in_features};
        shape.insert(shape.end(), info.kernel.begin(), info.kernel.end());
        return shape;
      }
      return {info.pairs() * info.rank, info.in_features};
    case TensorRole::kLoraB: {
      Shape shape = {info.out_features, info.pairs() * info.rank};
      if (info.kind == ModuleKind::kConv) shape.resize(2 + info.kernel.size(), 1);
      return shape;
    }
    case TensorRole::kMagnitude:
      return info.magnitude_shape;
    case TensorRole::kWeight:
      return info.weight_shape;
    default:
      return {info.out_features};
  }
}

DType FileType(const ModuleInfo& info, TensorRole role) {
  switch (role) {
    case TensorRole::kLoraA:
      return info.lora_a_dtype;
    case TensorRole::kLoraB:
      return info.lora_b_dtype;
    case TensorRole::kWeight:
      return info.weight_dtype;
    case TensorRole::kMagnitude:
      return info.magnitude_dtype;
    case TensorRole::kLoraBias:
      return info.lora_bias_dtype;
    default:
      return info.bias_dtype;
  }
}

std::vector<TensorRole> RolesOf(const ModuleInfo& info) {
  std::vector<TensorRole> roles;
  if (info.pairs() > 0) roles = {TensorRole::kLoraA, TensorRole::kLoraB};
  if (info.has_lora_bias) roles.push_back(TensorRole::kLoraBias);
  if (info.has_magnitude) roles.push_back(TensorRole::kMagnitude);
  if (!info.weight_shape.empty()) roles.push_back(TensorRole::kWeight);
  if (info.replaces_bias) roles.push_back(TensorRole::kBias);
  return roles;
}

// [out_features, rank x experts], the expert fastest, of experts one after the other.
Tensor JoinExperts(const Tensor& b, const ModuleInfo& info) {
  const int64_t bytes = FloatBytes(b.dtype());
  AlignedBuffer joined(b.bytes().size());
  const std::byte* from = b.bytes().data();
  for (int64_t e = 0; e < info.experts; ++e) {
    for (int64_t row = 0; row < info.out_features; ++row) {
      for (int64_t k = 0; k < info.rank; ++k, from += bytes) {
        const int64_t at = (row * info.rank + k) * info.experts + e;
        std::memcpy(joined.data() + at * bytes, from, bytes);
      }
    }
  }
  return Tensor(b.dtype(), {info.out_features, info.rank * info.experts}, std::move(joined));
}

}  // namespace

bool IsCreated(const SafetensorsHeader& header) { return header.metadata.count(kCreatedKey) > 0; }

absl::StatusOr<PeftExport> PeftExport::Create(const AdapterManifest& manifest,
                                              ExportOrigin origin) {
  PeftExport result(manifest);
  ASSIGN_OR_RETURN(result.config_, MakePeftConfig(manifest));
  std::vector<SafetensorsSpec> specs;
  for (size_t module = 0; module < manifest.modules.size(); ++module) {
    const ModuleInfo& info = manifest.modules[module];
    for (const TensorRole role : RolesOf(info)) {
      specs.push_back(
          {PeftTensorName(manifest, module, role), FileType(info, role), FileShape(info, role)});
      result.entries_.push_back({module, role});
    }
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (origin == ExportOrigin::kCreated) metadata[kCreatedKey] = "true";
  ASSIGN_OR_RETURN(result.layout_, LayOutSafetensors(specs, metadata));
  return result;
}

absl::Status PeftExport::WriteWeights(
    const TensorLookup& lookup,
    const std::function<absl::Status(std::span<const std::byte>)>& write) const {
  RETURN_IF_ERROR(write(std::as_bytes(std::span<const char>(layout_.start))));
  for (const size_t i : layout_.order) {
    const auto& [module, role] = entries_[i];
    const ModuleInfo& info = manifest_.modules[module];
    ASSIGN_OR_RETURN(Tensor tensor, lookup(module, role));
    if (role == TensorRole::kLoraB && info.experts > 0) tensor = JoinExperts(tensor, info);
    RETURN_IF_ERROR(write(tensor.bytes()));
  }
  return absl::OkStatus();
}

}  // namespace adapterd
