#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/peft_config.h"
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
    {"same factor twice", "is the same factor of module"},
    {"rank that differs from the config's", "has another rank than the config says"},
    {"rank that differs between factors", "has another rank than its lora_A"},
    {"empty factor", "is empty"},
    {"factor that is not 2-D", "is not 2-D"},
    {"dtype that factors cannot have", "has a dtype that factors cannot have"},
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
  Require(!manifest.modules.empty(), "a plan has modules");
  for (size_t i = 0; i < manifest.modules.size(); ++i) {
    const ModuleInfo& module = manifest.modules[i];
    if (i > 0) Require(manifest.modules[i - 1].path < module.path, "modules are sorted and differ");
    const auto found = manifest.index.Find({module.path, "", std::nullopt});
    Require(found.ok() && *found == i, "a module is found by its path");
    if (module.pairs() == 0) continue;
    Require(module.rank > 0 && module.in_features > 0 && module.out_features > 0,
            "a pair is not empty");
    const auto rank = static_cast<double>(module.rank);
    const double divisor = config.use_rslora ? std::sqrt(rank) : rank;
    Require(module.scale == module.alpha / divisor, "the scale follows from alpha and rank");
  }
}

// What is not planned would be left out in silence.
void RequireEveryTensor(const PeftPlan& plan, const SafetensorsHeader& header) {
  Require(plan.tensors.size() == header.tensors.size(), "every tensor is planned");
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const PlannedTensor& planned = plan.tensors[i];
    const SafetensorsEntry& entry = header.tensors[i];
    Require(planned.offset == entry.offset && planned.bytes == entry.bytes,
            "a tensor is planned where it lies");
    Require(planned.dtype == entry.dtype && planned.shape == entry.shape,
            "a tensor is planned as it is");
    Require(planned.module < plan.manifest.modules.size(), "a tensor belongs to a module");
  }
}

void Run(std::string_view input) {
  const std::vector<std::string_view> parts = SplitAtNul(input, 2);
  if (parts.size() < 2) return;
  ProblemList problems;
  const auto config = ParsePeftConfig(parts[0], "adapter_config.json", problems);
  const auto header = ParseHeader(parts[1]);
  if (!header.ok()) problems.Add(header.status());
  if (config && header.ok()) {
    const bool was_wrong = problems.has_errors();
    const auto plan = BuildPeftPlan(*config, *header, "adapter_model.safetensors", problems);
    Require(plan.has_value() == !problems.has_errors(), "a plan is there exactly without errors");
    if (was_wrong) Require(!plan, "no plan follows a wrong config");
    if (plan) {
      RequireModules(*config, plan->manifest);
      RequireEveryTensor(*plan, *header);
      Note(PeftOpenTarget(), kPlanned);
    }
  }
  RequireGoodProblems(
      PeftOpenTarget(), problems,
      {Reason::kMalformedConfig, Reason::kUnsupportedAdapter, Reason::kMalformedTensorFile,
       Reason::kUnsupportedDtype, Reason::kInvalidAdapter});
}

}  // namespace

const Target& PeftOpenTarget() {
  static constexpr Target kTarget = {"peft_open", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
