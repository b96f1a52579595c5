#include "core/adapter/gguf_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/adapter/gguf_heads.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/tensor/transpose.h"

namespace adapterd {
namespace {

Error Inexpressible(const ModuleInfo& info, std::string_view why) {
  return Error(Reason::kUnsupportedAdapter,
               fmt::format("module {} cannot be written to a GGUF adapter: {}", Quoted(info.path),
                           why))
      .With("module", Printable(info.path));
}

// Whether llama.cpp, which computes alpha / rank in F32, gets the module's scale.
bool Gives(float alpha, const ModuleInfo& info) {
  const double scale = static_cast<double>(alpha) / static_cast<double>(info.rank);
  return static_cast<float>(scale) == static_cast<float>(info.scale);
}

bool HasPair(const ModuleInfo& info) { return info.pairs() > 0; }

// The one alpha of the file; 0 stands for a scale of 1 whatever the rank.
absl::StatusOr<float> FindAlpha(const std::vector<ModuleInfo>& modules) {
  const auto first = std::find_if(modules.begin(), modules.end(), HasPair);
  if (first == modules.end()) {
    return Error(Reason::kUnsupportedAdapter, "the adapter has no pair to write to a GGUF adapter");
  }
  const auto alpha = static_cast<float>(first->scale * static_cast<double>(first->rank));
  const auto differs = [alpha](const ModuleInfo& info) {
    return HasPair(info) && (alpha == 0 || !Gives(alpha, info));
  };
  const auto other = std::find_if(modules.begin(), modules.end(), differs);
  if (other == modules.end()) return alpha;
  const bool all_one = std::all_of(modules.begin(), modules.end(), [](const ModuleInfo& info) {
    return !HasPair(info) || info.scale == 1;
  });
  if (all_one) return 0.0f;
  return Inexpressible(
      *other,
      alpha == 0
          ? std::string("its scale is 0, and an alpha of 0 means a scale of 1")
          : fmt::format("its scale is {} at rank {}, module {} has {} at rank {}, and a "
                        "file has one alpha for all",
                        other->scale, other->rank, Quoted(first->path), first->scale, first->rank));
}

absl::Status CheckKind(const ModuleInfo& info, const GgufModule& module) {
  const bool fits = module.is_embedding ? info.kind == ModuleKind::kEmbedding
                    : module.is_experts ? info.kind == ModuleKind::kExperts
                                        : info.kind == ModuleKind::kLinear;
  if (!fits) return Inexpressible(info, "it is of another kind than its name there stands for");
  if (info.has_magnitude) return Inexpressible(info, "it has DoRA's magnitude");
  if (info.has_lora_bias) return Inexpressible(info, "its lora_B has a bias");
  if (info.replaces_bias) return Inexpressible(info, "it replaces a bias of the base model");
  return absl::OkStatus();
}

Shape FileShape(const ModuleInfo& info, TensorRole role) {
  const bool is_a = role == TensorRole::kLoraA;
  Shape shape = is_a ? Shape{info.rank, info.in_features} : Shape{info.out_features, info.rank};
  if (is_a && info.kind == ModuleKind::kEmbedding) std::swap(shape[0], shape[1]);
  if (info.kind == ModuleKind::kExperts) shape.insert(shape.begin(), info.experts);
  return shape;
}

}  // namespace

absl::Status GgufExport::AddModule(const GgufArchitecture& architecture, size_t index,
                                   std::vector<GgufSpec>& specs) {
  const ModuleInfo& info = manifest_.modules[index];
  if (info.kind == ModuleKind::kReplacement) {
    return Inexpressible(info, "it replaces a weight of the base model");
  }
  if (!HasPair(info) && !info.replaces_bias) return absl::OkStatus();  // of rank 0: no delta
  const auto tensor = GgufTensorOf(architecture, info.path);
  const auto module = tensor ? ModuleOfGgufTensor(architecture, *tensor) : std::nullopt;
  if (!module) {
    return Inexpressible(info,
                         fmt::format("architecture {} has no name for it", architecture.name));
  }
  RETURN_IF_ERROR(CheckKind(info, *module));
  int64_t heads = 0;
  if (module->rope != RopeHeads::kNone) {
    const GgufHeads known = {manifest_.head_counts, std::nullopt};
    const auto found = HeadsOfRows(known, module->rope, info.out_features);
    if (!found.ok()) return Annotate(found.status(), "module", Printable(info.path));
    heads = *found;
  }
  specs.push_back(
      {*tensor + ".lora_a", GgufTypeOf(info.lora_a_dtype), FileShape(info, TensorRole::kLoraA)});
  specs.push_back(
      {*tensor + ".lora_b", GgufTypeOf(info.lora_b_dtype), FileShape(info, TensorRole::kLoraB)});
  entries_.push_back({index, TensorRole::kLoraA, 0});
  entries_.push_back({index, TensorRole::kLoraB, heads});
  return absl::OkStatus();
}

absl::StatusOr<GgufExport> GgufExport::Create(const AdapterManifest& manifest,
                                              std::string_view architecture) {
  const GgufArchitecture* known = FindGgufArchitecture(architecture);
  if (known == nullptr) {
    return Error(Reason::kInvalidField, fmt::format("architecture: expected one of {}, found {}",
                                                    KnownGgufArchitectures(), Quoted(architecture)))
        .With("field", "architecture")
        .With("expected", KnownGgufArchitectures())
        .With("actual", Printable(architecture));
  }
  GgufExport result(manifest);
  std::vector<GgufSpec> specs;
  for (size_t i = 0; i < manifest.modules.size(); ++i) {
    RETURN_IF_ERROR(result.AddModule(*known, i, specs));
  }
  ASSIGN_OR_RETURN(const float alpha, FindAlpha(manifest.modules));
  ASSIGN_OR_RETURN(result.layout_,
                   LayOutGguf(specs, {{"general.architecture", std::string(known->name)},
                                      {"general.type", std::string("adapter")},
                                      {"adapter.type", std::string("lora")},
                                      {"adapter.lora.alpha", alpha}}));
  return result;
}

absl::Status GgufExport::Write(
    const TensorLookup& lookup,
    const std::function<absl::Status(std::span<const std::byte>)>& write) const {
  RETURN_IF_ERROR(write(std::as_bytes(std::span<const char>(layout_.start))));
  constexpr std::byte kZeros[kDefaultGgufAlignment] = {};
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    ASSIGN_OR_RETURN(Tensor tensor, lookup(entry.module, entry.role));
    const bool is_embedding = manifest_.modules[entry.module].kind == ModuleKind::kEmbedding;
    if (is_embedding && entry.role == TensorRole::kLoraA) tensor = TransposedMatrix(tensor);
    if (entry.rope_heads > 0) tensor = MakeRopeOrder(tensor, entry.rope_heads);
    RETURN_IF_ERROR(write(tensor.bytes()));
    RETURN_IF_ERROR(write(std::span(kZeros).first(layout_.padding[i])));
  }
  return absl::OkStatus();
}

}  // namespace adapterd
