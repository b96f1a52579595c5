#include "service/access/method_rules.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace adapterd {
namespace {

constexpr char kAdapters[] = "adapterd.v1.AdapterService";
constexpr char kProjections[] = "adapterd.v1.ProjectionService";
constexpr char kMerges[] = "adapterd.v1.MergeService";
constexpr char kBases[] = "adapterd.v1.BaseModelService";

// Viewers see what is there, but no weights; users read weights and compute with them; admins
// change what the server holds or writes, for everybody.
constexpr MethodRule kRules[] = {
    {kAdapters, "GetAdapter", Role::kViewer, false},
    {kAdapters, "ListAdapters", Role::kViewer, false},
    {kAdapters, "WatchAdapters", Role::kViewer, false},
    {kAdapters, "GetServerInfo", Role::kViewer, false},
    {kBases, "ListBaseModels", Role::kViewer, false},

    {kAdapters, "ValidateAdapter", Role::kUser, false},
    {kAdapters, "EstimateCapacity", Role::kUser, false},
    {kAdapters, "GetAdapterTensors", Role::kUser, false},
    {kAdapters, "ExportAdapter", Role::kUser, false},
    {kBases, "GetBaseWeight", Role::kUser, false},
    {kProjections, "ApplyProjection", Role::kUser, false},
    {kProjections, "StreamProjections", Role::kUser, false},
    {kProjections, "Forward", Role::kUser, false},
    {kMerges, "Merge", Role::kUser, false},
    {kMerges, "MergeStream", Role::kUser, false},

    {kAdapters, "LoadAdapter", Role::kAdmin, true},
    {kAdapters, "UploadAdapter", Role::kAdmin, true},
    {kAdapters, "CreateAdapter", Role::kAdmin, true},
    {kAdapters, "UpdateAdapterTensors", Role::kAdmin, true},
    {kAdapters, "ComposeAdapter", Role::kAdmin, true},
    {kAdapters, "UpdateAdapter", Role::kAdmin, true},
    {kAdapters, "UnloadAdapter", Role::kAdmin, true},
    {kAdapters, "RollbackAdapter", Role::kAdmin, true},
    {kAdapters, "SetAlias", Role::kAdmin, true},
    {kAdapters, "ReconcileAdapters", Role::kAdmin, true},
    {kMerges, "MergeCheckpoint", Role::kAdmin, true},
    {kBases, "LoadBaseModel", Role::kAdmin, true},
    {kBases, "UnloadBaseModel", Role::kAdmin, true},
    {kBases, "MergeAdapter", Role::kAdmin, true},
    {kBases, "UnmergeAdapter", Role::kAdmin, true},
};

using Key = std::pair<std::string_view, std::string_view>;

}  // namespace

std::span<const MethodRule> MethodRules() { return kRules; }

const MethodRule* FindMethodRule(std::string_view service, std::string_view method) {
  static const auto* const rules = [] {
    auto* map = new absl::flat_hash_map<Key, const MethodRule*>();
    for (const MethodRule& rule : kRules) (*map)[{rule.service, rule.method}] = &rule;
    return map;
  }();
  const auto it = rules->find(Key{service, method});
  return it == rules->end() ? nullptr : it->second;
}

}  // namespace adapterd
