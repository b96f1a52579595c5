#include "core/adapter/plan_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {

void CheckBaseModel(const std::string& requested, const std::string& config_file,
                    std::string_view field, std::string& base_model, ProblemList& problems) {
  if (requested.empty()) return;
  if (base_model.empty()) base_model = requested;
  if (base_model == requested) return;
  problems.Add(Error(Reason::kBaseModelMismatch,
                     fmt::format("{} was trained for base model {}, not for {}",
                                 Printable(config_file), Quoted(base_model), Quoted(requested)))
                   .With("file", config_file)
                   .With("field", std::string(field))
                   .With("expected", Printable(requested))
                   .With("actual", Printable(base_model)));
}

bool IsConvolution(const SafetensorsEntry& a, const SafetensorsEntry& b) {
  const size_t dims = a.shape.size();
  return dims >= 3 && dims <= 5 && b.shape.size() == dims &&
         std::all_of(b.shape.begin() + 2, b.shape.end(), [](int64_t dim) { return dim == 1; });
}

PlannedPart StartPair(const std::string& path, ModuleKind kind, const SafetensorsEntry& a,
                      const SafetensorsEntry& b) {
  PlannedPart part;
  ModuleInfo& info = part.info;
  info.path = path;
  info.kind = kind;
  info.rank = a.shape[0];
  info.in_features = a.shape[1];
  info.out_features = b.shape[0];
  info.kernel.assign(a.shape.begin() + 2, a.shape.end());
  for (const int64_t places : info.kernel) info.kernel_elements *= places;
  info.lora_a_dtype = a.dtype;
  info.lora_b_dtype = b.dtype;
  info.lora_a_tensor = a.name;
  info.lora_b_tensor = b.name;
  part.Add(a, TensorRole::kLoraA);
  part.Add(b, TensorRole::kLoraB);
  return part;
}

void SortByOffset(std::vector<PlannedTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& x, const auto& y) { return x.offset < y.offset; });
}

std::string MethodOf(const std::vector<PlannedPart>& parts) {
  const bool dora = std::any_of(parts.begin(), parts.end(),
                                [](const PlannedPart& part) { return part.info.has_magnitude; });
  return dora ? "dora" : "lora";
}

void SetModules(std::vector<PlannedPart> parts, WeightsPlan& plan) {
  std::stable_sort(parts.begin(), parts.end(), [](const PlannedPart& x, const PlannedPart& y) {
    if (x.info.path != y.info.path) return x.info.path < y.info.path;
    return x.info.pairs() > y.info.pairs();
  });
  std::vector<std::string> paths;
  for (PlannedPart& part : parts) {
    SortByOffset(part.tensors.tensors);
    paths.push_back(part.info.path);
    plan.manifest.modules.push_back(std::move(part.info));
    plan.modules.push_back(std::move(part.tensors));
  }
  plan.manifest.index = ModuleIndex(paths);
}

}  // namespace adapterd
