#include "core/adapter/suspicions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/quote.h"

namespace adapterd {
namespace {

Problem Warning(std::string_view file, std::string message) {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = file;
  problem.message = std::move(message);
  return problem;
}

}  // namespace

void WarnOfSuspicions(const AdapterManifest& manifest,
                      const std::vector<ModuleMagnitudes>& magnitudes, std::string_view file,
                      ProblemList& problems) {
  const auto warn_where = [&](std::string_view what, auto applies) {
    const ModuleInfo* first = nullptr;
    size_t count = 0;
    for (size_t i = 0; i < manifest.modules.size(); ++i) {
      if (!applies(manifest.modules[i], magnitudes[i])) continue;
      if (first == nullptr) first = &manifest.modules[i];
      ++count;
    }
    if (first == nullptr) return;
    Problem problem =
        Warning(file, fmt::format("{} of {} modules {} (the first: {})", count,
                                  manifest.modules.size(), what, Quoted(first->path)));
    problem.module = Printable(first->path);
    problems.Add(std::move(problem));
  };
  using Info = const ModuleInfo&;
  using Magnitudes = const ModuleMagnitudes&;
  warn_where("have a lora_B of zeros alone: they change nothing",
             [](Info info, Magnitudes max) { return info.pairs() > 0 && max.lora_b == 0; });
  warn_where(fmt::format("have a scale above {}", kSuspiciousScale), [](Info info, Magnitudes) {
    return info.pairs() > 0 && std::abs(info.scale) > kSuspiciousScale;
  });
  warn_where("have a rank above the smaller side of their weight", [](Info info, Magnitudes) {
    return info.pairs() > 0 && info.rank > std::min(info.columns(), info.out_features);
  });
  warn_where("hold values near the largest that F16 can hold",
             [](Info, Magnitudes max) { return max.any > kSuspiciousMagnitude; });
  if (manifest.base_model.empty()) {
    problems.Add(Warning(file,
                         "the base model is not known: neither the config nor the request "
                         "names it"));
  }
}

}  // namespace adapterd
