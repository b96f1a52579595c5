#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/peft_config.h"
#include "core/adapter/peft_keys.h"
#include "core/adapter/peft_plan.h"
#include "core/base/checked_math.h"
#include "core/formats/safetensors.h"
#include "core/formats/safetensors_json.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kPlanned = "planned, every tensor in its place";

constexpr DeepCheck kDeepChecks[] = {
    {kPlanned, ""},
    {"module outside the targets", "which the config does not target"},
    {"factor without its partner", "is incomplete"},
    {"same tensor twice", "is the same tensor as"},
    {"rank that differs from the config's", "has another rank than the config says"},
    {"rank that differs between factors", "has another rank than its lora_A"},
    {"empty factor", "is empty"},
    {"factor that is not 2-D", "is not 2-D"},
    {"dtype that weights cannot have", "has a dtype that weights of an adapter cannot have"},
    {"tensor that no rule explains", "is not explained by any rule"},
    {"no pair at all", "holds no LoRA pair at all"},
    {"several adapter names", "under several adapter names"},
};

// The tensors that the header names, laid end to end whatever their offsets say: a mutation of a
// shape would hardly ever come with the offsets that go with it. Names and sizes that the reader
// refuses are left out.
absl::StatusOr<SafetensorsHeader> ParseHeader(std::string_view json) {
  auto table = ParseSafetensorsJson(json, "adapter_model.safetensors");
  if (!table.ok()) return table.status();
  SafetensorsHeader header;
  std::set<std::string> names;
  int64_t end = 8 + static_cast<int64_t>(json.size());
  for (SafetensorsEntry& tensor : table->tensors) {
    const auto bytes = ByteCount(tensor.dtype, tensor.shape);
    if (!bytes.ok() || !CheckedAdd(end, *bytes) || !names.insert(tensor.name).second) continue;
    tensor.offset = end;
    tensor.bytes = *bytes;
    end += *bytes;
    header.tensors.push_back(std::move(tensor));
  }
  return header;
}

void RequireModules(const PeftConfig& config, const AdapterManifest& manifest) {
  for (size_t i = 0; i < manifest.modules.size(); ++i) {
    const ModuleInfo& module = manifest.modules[i];
    if (i > 0) Require(manifest.modules[i - 1].path <= module.path, "modules are sorted");
    const bool behind_pair = i > 0 && manifest.modules[i - 1].path == module.path;
    if (behind_pair) {
      Require(manifest.modules[i - 1].pairs() > 0 && module.pairs() == 0,
              "only a pair and the weight that it is added to share a path");
    }
    const auto found = manifest.index.Find({module.path, "", std::nullopt});
    Require(found.ok() && *found == (behind_pair ? i - 1 : i), "a module is found by its path");
    if (module.pairs() == 0) continue;
    Require(module.rank > 0 && module.columns() > 0 && module.out_features > 0,
            "a pair is not empty");
    Require(std::isfinite(module.scale), "a scale is a number");
    if (config.method != PeftMethod::kLora) continue;
    const auto rank = static_cast<double>(module.rank);
    const double divisor = config.use_rslora ? std::sqrt(rank) : rank;
    Require(module.scale == module.alpha / divisor, "the scale follows from alpha and rank");
  }
}

// Buffers of training, copies of what is there anyway, and pairs that were pruned to rank 0.
bool MayBeLeftOut(const PeftConfig& config, const SafetensorsEntry& tensor) {
  const PeftKey key = ParsePeftKey(tensor.name);
  if (key.kind == PeftTensorKind::kIgnored || key.is_copy) return true;
  if (key.kind == PeftTensorKind::kKasa || config.method != PeftMethod::kAdaLora) return false;
  const auto& kept = *config.kept_ranks;
  return std::find(kept.begin(), kept.end(), std::pair(key.module, int64_t{0})) != kept.end();
}

// What is not planned would be left out in silence.
void RequireEveryTensor(const PeftConfig& config, const WeightsPlan& plan,
                        const SafetensorsHeader& header) {
  Require(plan.modules.size() == plan.manifest.modules.size(), "a module has its tensors");
  std::map<std::string, const PlannedTensor*> planned;
  const auto add = [&planned](const PlannedTensor& tensor) {
    Require(planned.emplace(tensor.name, &tensor).second, "no tensor is planned twice");
  };
  for (const PlannedModule& module : plan.modules) {
    Require(!module.tensors.empty(), "a module has tensors");
    for (const PlannedTensor& tensor : module.tensors) add(tensor);
  }
  for (const PlannedTensor& tensor : plan.shared) add(tensor);
  for (const SafetensorsEntry& entry : header.tensors) {
    const auto found = planned.find(entry.name);
    Require(found != planned.end() || MayBeLeftOut(config, entry), "every tensor is planned");
    if (found == planned.end()) continue;
    const PlannedTensor& tensor = *found->second;
    Require(tensor.offset == entry.offset && tensor.bytes == entry.bytes,
            "a tensor is planned where it lies");
    Require(tensor.dtype == entry.dtype && tensor.shape == entry.shape,
            "a tensor is planned as it is");
    planned.erase(found);
  }
  Require(planned.empty(), "nothing is planned that is not there");
}

void Run(std::string_view input) {
  const std::vector<std::string_view> parts = SplitAtNul(input, 2);
  if (parts.size() < 2) return;
  ProblemList problems;
  const auto config = ParsePeftConfig(parts[0], "adapter_config.json", problems);
  const auto header = ParseHeader(parts[1]);
  if (!header.ok()) problems.Add(header.status());
  if (config && header.ok()) {
    const auto plan =
        BuildPeftPlan(*config, *header, "adapter_model.safetensors", nullptr, problems);
    Require(plan || problems.has_errors(), "without a plan there is an error");
    if (plan && !problems.has_errors()) {
      RequireModules(*config, plan->manifest);
      RequireEveryTensor(*config, *plan, *header);
      Note(PeftOpenTarget(), kPlanned);
    }
  }
  RequireGoodProblems(
      PeftOpenTarget(), problems,
      {Reason::kMalformedConfig, Reason::kUnsupportedAdapter, Reason::kMalformedTensorFile,
       Reason::kUnsupportedDtype, Reason::kInvalidAdapter, Reason::kBaseRequired});
}

}  // namespace

const Target& PeftOpenTarget() {
  static constexpr Target kTarget = {"peft_open", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
