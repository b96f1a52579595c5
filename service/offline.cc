#include "service/offline.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"

namespace adapterd {
namespace {

constexpr char kName[] = "adapter";  // that nothing else has
constexpr size_t kLabelWidth = 12;

// The whole file system, because the caller names paths of their own machine.
absl::StatusOr<std::shared_ptr<const SourceRoots>> WholeFileSystem() {
  ASSIGN_OR_RETURN(SourceRoots roots, SourceRoots::Open({{"", "/"}}));
  return std::make_shared<const SourceRoots>(std::move(roots));
}

// Below "/". The "./" keeps a colon in it from being taken for a root's name.
std::string BelowRoot(const std::string& path) {
  if (path.empty()) return "";
  return "./" + std::filesystem::absolute(path).lexically_normal().relative_path().string();
}

std::string Size(int64_t bytes) {
  if (bytes < 100'000) return fmt::format("{} bytes", bytes);
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

void AddLine(std::string_view label, std::string_view text, std::string& out) {
  out += fmt::format("{:{}}{}\n", label, kLabelWidth, text);
}

std::string_view KindName(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kLinear:
      return "linear";
    case ModuleKind::kEmbedding:
      return "embedding";
    case ModuleKind::kConv:
      return "convolution";
    case ModuleKind::kExperts:
      return "experts";
    default:
      return "replacement";
  }
}

std::string KindCounts(const AdapterManifest& manifest) {
  std::map<std::string_view, size_t> counts;
  for (const ModuleInfo& module : manifest.modules) ++counts[KindName(module.kind)];
  std::vector<std::string> parts;
  for (const auto& [kind, count] : counts) parts.push_back(fmt::format("{} {}", count, kind));
  return fmt::format("{}", fmt::join(parts, ", "));
}

void Describe(const AdapterSnapshot& adapter, const ValidationResult& result, int64_t budget,
              std::string& out) {
  const AdapterManifest& manifest = *adapter.manifest;
  AddLine("format", fmt::format("PEFT, {}", manifest.method), out);
  AddLine("base model", manifest.base_model.empty() ? "not known" : manifest.base_model, out);
  AddLine("modules",
          fmt::format("{} ({}) in {} layers", manifest.modules.size(), KindCounts(manifest),
                      manifest.layer_count()),
          out);
  AddLine("targets", fmt::format("{}", fmt::join(manifest.target_modules(), ", ")), out);
  AddLine("ranks", fmt::format("{}", fmt::join(manifest.ranks(), ", ")), out);
  AddLine("parameters", fmt::format("{}", manifest.parameter_count()), out);
  AddLine("revision", adapter.digest.revision, out);
  AddLine("weights",
          fmt::format("{}, SHA-256 {}", Size(manifest.file_bytes), adapter.digest.weights_sha256),
          out);
  AddLine("memory",
          fmt::format("{}, {} the budget of {}", Size(result.memory_bytes),
                      result.fits ? "within" : "more than", Size(budget)),
          out);
}

// Where a problem is, by the most exact name there is.
std::string PlaceOf(const Problem& problem) {
  for (const std::string* place : {&problem.tensor, &problem.field, &problem.module}) {
    if (!place->empty()) return *place;
  }
  return problem.file;
}

void AddProblems(const std::vector<Problem>& problems, std::string& out) {
  if (problems.empty()) return;
  size_t width = 0;
  for (const Problem& problem : problems) {
    width = std::max(width, ReasonName(problem.reason).size());
  }
  out += "\n";
  for (const Problem& problem : problems) {
    out += fmt::format("{:8} {:{}}  {}\n{:9}{}\n",
                       problem.severity == Severity::kError ? "ERROR" : "warning",
                       ReasonName(problem.reason), width, PlaceOf(problem), "", problem.message);
  }
}

}  // namespace

absl::StatusOr<std::string> DigestOf(const std::string& path, int threads) {
  ASSIGN_OR_RETURN(const auto roots, WholeFileSystem());
  ProblemList problems;
  const auto reader = OpenFromRoots(roots, roots)({BelowRoot(path), "", ""}, problems);
  RETURN_IF_ERROR(problems.ToStatus());
  ThreadPool pool("read", threads);
  return reader->Read(pool, Cancellation(), nullptr, problems);
}

absl::StatusOr<ValidationReport> ValidateFolder(const Command& command) {
  ASSIGN_OR_RETURN(const auto roots, WholeFileSystem());
  const Kernels kernels;
  ThreadPool pool("read", command.options.threads);
  const int64_t budget = command.options.memory_budget_bytes;
  const AdapterRegistry registry({}, kernels, OpenFromRoots(roots, roots),
                                 MemoryBudget::Create(budget), pool);
  LoadRequest request;
  request.name = kName;
  request.source = {BelowRoot(command.text), "", BelowRoot(command.base_checkpoint)};
  const ValidationResult result = registry.Validate(request, Cancellation());
  const std::vector<Problem>& problems = result.problems.items();
  const auto errors = std::count_if(problems.begin(), problems.end(), [](const Problem& problem) {
    return problem.severity == Severity::kError;
  });
  ValidationReport report;
  report.valid = errors == 0;
  AddLine("adapter", command.text, report.text);
  AddLine("verdict",
          fmt::format("{}; errors: {}, warnings: {}", report.valid ? "valid" : "not valid", errors,
                      static_cast<int64_t>(problems.size()) - errors),
          report.text);
  if (result.adapter) Describe(*result.adapter, result, budget, report.text);
  AddProblems(problems, report.text);
  return report;
}

}  // namespace adapterd
