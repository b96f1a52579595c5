#include "core/adapter/peft_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// In the order in which the expert modules of transformers register them.
constexpr std::array<std::string_view, 4> kRegistered = {"gate_up_proj", "gate_up_proj_bias",
                                                         "down_proj", "down_proj_bias"};

ptrdiff_t RegisteredAt(std::string_view parameter) {
  return std::find(kRegistered.begin(), kRegistered.end(), parameter) - kRegistered.begin();
}

// "0.19.1.dev0@..." as {0, 19, 1}; nullopt: no version.
std::optional<std::array<int, 3>> ParseVersion(std::string_view text) {
  std::array<int, 3> version{};
  for (int& part : version) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), part);
    if (error != std::errc()) return std::nullopt;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (text.starts_with('.')) text.remove_prefix(1);
  }
  return version;
}

enum class Writer {
  kInputsFirst,  // lora_A has the parameter's second dimension: 0.17.0 to 0.18.1, or no version
  kSwapped,      // always the other side: 0.19.0
  kDirect,       // lora_A works on the inputs: since 0.19.1
};

Writer WriterOf(const std::optional<std::array<int, 3>>& version) {
  if (!version || *version < std::array<int, 3>{0, 19, 0}) return Writer::kInputsFirst;
  return *version < std::array<int, 3>{0, 19, 1} ? Writer::kSwapped : Writer::kDirect;
}

absl::Status BaseRequired(const ExpertFactors& factors) {
  return Error(Reason::kBaseRequired,
               fmt::format("the factors of {} were written by a PEFT before 0.19.0, and only the "
                           "base model tells which side is the input: give base_checkpoint",
                           Quoted(factors.path)))
      .With("module", Printable(factors.path));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> TargetedParameters(
    std::string_view module, const std::vector<std::string>& target_parameters) {
  std::vector<std::string> parameters;
  for (const std::string& target : target_parameters) {
    const size_t dot = target.rfind('.');
    if (dot == std::string::npos) continue;
    std::string_view owner = target;
    owner = owner.substr(0, dot);
    const bool is_owner = module == owner || (module.ends_with(owner) &&
                                              module[module.size() - owner.size() - 1] == '.');
    if (!is_owner) continue;
    std::string parameter = target.substr(dot + 1);
    if (std::find(parameters.begin(), parameters.end(), parameter) == parameters.end()) {
      parameters.push_back(std::move(parameter));
    }
  }
  if (parameters.size() < 2) return parameters;
  for (const std::string& parameter : parameters) {
    if (RegisteredAt(parameter) < static_cast<ptrdiff_t>(kRegistered.size())) continue;
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("several parameters of {} are targeted, and which tensor belongs to "
                             "{} is not known",
                             Quoted(module), Quoted(parameter)))
        .With("field", "target_parameters")
        .With("module", Printable(module));
  }
  std::sort(parameters.begin(), parameters.end(), IsRegisteredBefore);
  return parameters;
}

bool IsRegisteredBefore(std::string_view left, std::string_view right) {
  return RegisteredAt(left) < RegisteredAt(right);
}

absl::StatusOr<bool> ExpertsAreSwapped(const ExpertFactors& factors, std::string_view peft_version,
                                       const BaseFacts* base) {
  const auto version = ParseVersion(peft_version);
  const Writer writer = WriterOf(version);
  std::optional<Shape> shape;
  if (base != nullptr) shape = base->shape_of(factors.path);
  if (!shape) {
    if (writer == Writer::kInputsFirst) return BaseRequired(factors);
    return writer == Writer::kSwapped;
  }
  const Shape a_first = {factors.a_columns, factors.b_rows};
  const Shape b_first = {factors.b_rows, factors.a_columns};
  const std::span<const int64_t> sides(shape->data() + (shape->empty() ? 0 : 1),
                                       shape->empty() ? 0 : shape->size() - 1);
  const bool fits_a_first = std::equal(sides.begin(), sides.end(), a_first.begin(), a_first.end());
  const bool fits_b_first = std::equal(sides.begin(), sides.end(), b_first.begin(), b_first.end());
  if (!fits_a_first && !fits_b_first) {
    return Error(Reason::kBaseModelMismatch,
                 fmt::format("the base model's {} has shape {}, the factors fit [experts, {}, {}]",
                             Quoted(factors.path), ShapeString(*shape), factors.b_rows,
                             factors.a_columns))
        .With("module", Printable(factors.path))
        .With("expected", ShapeString(b_first))
        .With("actual", ShapeString(*shape));
  }
  if (fits_a_first && fits_b_first) {
    if (!version) {
      return Error(Reason::kInvalidAdapter,
                   fmt::format("both sides of {} are {} long, and PEFT's versions differ in which "
                               "is which: set peft_version in the config to the version that "
                               "wrote the file",
                               Quoted(factors.path), factors.a_columns))
          .With("module", Printable(factors.path))
          .With("field", "peft_version");
    }
    if (writer != Writer::kInputsFirst) return writer == Writer::kSwapped;
    return !base->experts_are_in_out;
  }
  // lora_A works on the parameter's first side, or on its second: which of them is the input?
  return fits_a_first != base->experts_are_in_out;
}

}  // namespace adapterd
