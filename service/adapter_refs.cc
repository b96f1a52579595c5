#include "service/adapter_refs.h"

#include <fmt/format.h>

#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

// Experts need a number, and nothing else may have one.
absl::Status CheckExpert(const ModuleInfo& module, const ModuleSelector& selector) {
  if (module.kind != ModuleKind::kExperts) {
    if (!selector.expert) return absl::OkStatus();
    return Error(Reason::kInvalidField, fmt::format("module {} has no experts, found expert {}",
                                                    module.path, *selector.expert));
  }
  if (selector.expert && *selector.expert < module.experts) return absl::OkStatus();
  return Error(
      Reason::kInvalidField,
      fmt::format("module {} needs an expert from 0 to {}, found {}", module.path,
                  module.experts - 1, selector.expert ? std::to_string(*selector.expert) : "none"));
}

}  // namespace

absl::StatusOr<AdapterRefs::Use> AdapterRefs::Add(const v1::AdapterRef& ref,
                                                  const std::string& field) {
  ASSIGN_OR_RETURN(AdapterRef parsed, RefFromProto(ref, field));
  ASSIGN_OR_RETURN(const double weight, WeightFromProto(ref, field));
  // A handful of distinct adapters is usual, 16 x 1024 mentions possible: the last is tried first.
  for (size_t i = refs_.size(); i-- > 0;) {
    const AdapterRef& known = refs_[i];
    if (std::tie(known.name, known.revision, known.alias) ==
        std::tie(parsed.name, parsed.revision, parsed.alias)) {
      return Use{i, weight};
    }
  }
  refs_.push_back(std::move(parsed));
  return Use{refs_.size() - 1, weight};
}

absl::StatusOr<std::optional<ResolvedModule>> ResolveModule(const AdapterHandle& handle,
                                                            const AdapterRef& ref,
                                                            const ModuleSelector& selector,
                                                            const std::string& field,
                                                            bool skip_untargeted) {
  if (handle.empty()) return std::optional<ResolvedModule>();
  const AdapterManifest& manifest = handle.manifest();
  absl::StatusOr<size_t> found = manifest.index.Find(selector);
  if (found.ok()) {
    const ModuleInfo& info = manifest.modules[*found];
    const absl::Status expert = CheckExpert(info, selector);
    if (!expert.ok()) return Annotate(Annotate(expert, "adapter", ref.name), "field", field);
    return std::optional<ResolvedModule>({*found, &info, selector.expert.value_or(0)});
  }
  if (skip_untargeted && GetErrorDetails(found.status()).reason == Reason::kModuleNotTargeted) {
    return std::optional<ResolvedModule>();
  }
  return Annotate(Annotate(found.status(), "adapter", ref.name), "field", field);
}

void AddUses(const std::vector<AdapterRef>& refs, const std::vector<AdapterHandle>& handles,
             const std::vector<bool>& used,
             google::protobuf::RepeatedPtrField<v1::AdapterUse>& out) {
  // An alias and the revision that it points at are two references to one content.
  std::set<std::pair<std::string_view, std::string_view>> listed;
  for (size_t i = 0; i < refs.size(); ++i) {
    if (!used[i] || !listed.emplace(refs[i].name, handles[i]->revision()).second) continue;
    v1::AdapterUse* use = out.Add();
    use->set_name(refs[i].name);
    use->set_revision(handles[i]->revision());
  }
}

}  // namespace adapterd
