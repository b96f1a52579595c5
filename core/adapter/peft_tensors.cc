#include "core/adapter/peft_tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "core/adapter/peft_keys.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// The role in a pair of this method, or none.
std::optional<TensorRole> PairRole(PeftTensorKind kind, PeftMethod method) {
  switch (kind) {
    case PeftTensorKind::kLoraA:
    case PeftTensorKind::kEmbeddingA:
      return method == PeftMethod::kLora ? std::optional(TensorRole::kLoraA) : std::nullopt;
    case PeftTensorKind::kLoraB:
    case PeftTensorKind::kEmbeddingB:
      return method == PeftMethod::kLora ? std::optional(TensorRole::kLoraB) : std::nullopt;
    case PeftTensorKind::kLoraBias:
      return method == PeftMethod::kLora ? std::optional(TensorRole::kLoraBias) : std::nullopt;
    case PeftTensorKind::kMagnitude:
      return method == PeftMethod::kLora ? std::optional(TensorRole::kMagnitude) : std::nullopt;
    case PeftTensorKind::kBareLoraA:
      return method == PeftMethod::kAdaLora ? std::optional(TensorRole::kLoraA) : std::nullopt;
    case PeftTensorKind::kBareLoraB:
      return method == PeftMethod::kAdaLora ? std::optional(TensorRole::kLoraB) : std::nullopt;
    case PeftTensorKind::kLoraE:
      return method == PeftMethod::kAdaLora ? std::optional(TensorRole::kLoraE) : std::nullopt;
    case PeftTensorKind::kVeraLambdaB:
      return method == PeftMethod::kVera ? std::optional(TensorRole::kLambdaB) : std::nullopt;
    case PeftTensorKind::kVeraLambdaD:
      return method == PeftMethod::kVera ? std::optional(TensorRole::kLambdaD) : std::nullopt;
    default:
      return std::nullopt;
  }
}

// PEFT takes the modules whose path ends with the name, wherever the name begins.
bool IsSavedModule(std::string_view module, const std::vector<std::string>& names) {
  for (size_t end = 0; end != std::string_view::npos;) {
    end = module.find('.', end + 1);
    const std::string_view ancestor = module.substr(0, end);
    for (const std::string& name : names) {
      if (ancestor.ends_with(name)) return true;
    }
  }
  return false;
}

// Embeddings that PEFT saves beside an adapter when they are targeted or were resized
// (EMBEDDING_LAYER_NAMES in peft/utils/constants.py).
bool IsEmbeddingLayer(std::string_view module) {
  const std::string_view last = module.substr(module.rfind('.') + 1);
  return last == "embed_tokens" || last == "lm_head";
}

class Sorter {
 public:
  Sorter(const PeftConfig& config, std::string_view file, ProblemList& problems)
      : config_(config), file_(file), problems_(problems), saved_(config.modules_to_save) {
    if (config.task_type == "SEQ_CLS" || config.task_type == "TOKEN_CLS") {
      saved_.insert(saved_.end(), {"classifier", "score"});  // peft/peft_model.py
    }
  }

  PeftTensors Sort(const SafetensorsHeader& header) {
    for (const SafetensorsEntry& tensor : header.tensors) Place(tensor);
    for (const auto& [tensor, key] : biases_) PlaceBias(*tensor, key);
    CheckAdapterNames();
    return std::move(sorted_);
  }

 private:
  void Refuse(const SafetensorsEntry& tensor, std::string_view module, std::string what,
              Reason reason = Reason::kInvalidAdapter) {
    Report(file_, {reason, &tensor, module, std::move(what), "", ""}, problems_);
  }

  void Place(const SafetensorsEntry& tensor) {
    if (const std::string_view fault = NameFault(tensor.name); !fault.empty()) {
      return Refuse(tensor, "", std::string(fault));
    }
    PeftKey key = ParsePeftKey(tensor.name);
    if (const auto role = PairRole(key.kind, config_.method)) {
      return PlaceInPair(tensor, key, *role);
    }
    switch (key.kind) {
      case PeftTensorKind::kVeraA:
        return config_.method == PeftMethod::kVera ? Claim(tensor, "", sorted_.vera_a)
                                                   : RefuseUnexplained(tensor);
      case PeftTensorKind::kVeraB:
        return config_.method == PeftMethod::kVera ? Claim(tensor, "", sorted_.vera_b)
                                                   : RefuseUnexplained(tensor);
      case PeftTensorKind::kTokenRows:
        return PlaceTokenRows(tensor, key);
      case PeftTensorKind::kBias:
        return biases_.emplace_back(&tensor, std::move(key)), void();
      case PeftTensorKind::kWeight:
      case PeftTensorKind::kUnknown:
        return PlaceWeight(tensor, key);
      case PeftTensorKind::kIgnored:
        return;
      case PeftTensorKind::kAttention:
        return Refuse(tensor, key.module,
                      "is a factor of nn.MultiheadAttention, which is not supported",
                      Reason::kUnsupportedAdapter);
      case PeftTensorKind::kKasa:
        if (IsExplained("kasa_config")) return;
        return Refuse(tensor, key.module, "is a diagonal of KaSA, which is not supported",
                      Reason::kUnsupportedAdapter);
      default:
        return RefuseUnexplained(tensor);
    }
  }

  // A refused key is news enough: what comes with it is no further problem.
  bool IsExplained(std::string_view key) const { return config_.unsupported_keys.contains(key); }

  void RefuseUnexplained(const SafetensorsEntry& tensor) {
    Refuse(tensor, "",
           "is not explained by any rule of its method; ignoring it could change the result");
  }

  void Claim(const SafetensorsEntry& tensor, std::string_view module,
             const SafetensorsEntry*& place) {
    if (place != nullptr) {
      return Refuse(tensor, module, fmt::format("is the same tensor as {}", Quoted(place->name)));
    }
    place = &tensor;
  }

  void PlaceInPair(const SafetensorsEntry& tensor, const PeftKey& key, TensorRole role) {
    if (role == TensorRole::kLoraBias && !config_.lora_bias) return RefuseUnexplained(tensor);
    if (role == TensorRole::kMagnitude && !config_.use_dora) return RefuseUnexplained(tensor);
    ++adapter_names_[key.adapter_name];
    PeftPair& pair = sorted_.pairs[{key.module, key.base_layers}];
    pair.is_embedding |=
        key.kind == PeftTensorKind::kEmbeddingA || key.kind == PeftTensorKind::kEmbeddingB;
    Claim(tensor, key.module, pair.tensors[static_cast<size_t>(role)]);
  }

  void PlaceTokenRows(const SafetensorsEntry& tensor, const PeftKey& key) {
    if (config_.trained_tokens.layers.empty()) return RefuseUnexplained(tensor);
    Claim(tensor, key.module, sorted_.replacements[key.module].token_rows);
  }

  void PlaceWeight(const SafetensorsEntry& tensor, const PeftKey& key) {
    const bool named = IsSavedModule(key.module, saved_);
    const bool embedding = key.kind == PeftTensorKind::kWeight && IsEmbeddingLayer(key.module);
    if (!named && !embedding) return RefuseUnexplained(tensor);
    PlaceReplacement(tensor, key, sorted_.replacements[key.module].weight);
  }

  // Once all pairs are known: "lora_only" is about the biases of their modules.
  void PlaceBias(const SafetensorsEntry& tensor, const PeftKey& key) {
    const bool of_adapter = key.module.find("lora_") != std::string::npos;
    const bool of_pair = sorted_.pairs.contains({key.module, 0});
    const bool by_bias =
        config_.bias == PeftBias::kAll || (config_.bias == PeftBias::kLoraOnly && of_pair);
    if (!IsSavedModule(key.module, saved_) && (of_adapter || !by_bias)) {
      return RefuseUnexplained(tensor);
    }
    PlaceReplacement(tensor, key, sorted_.replacements[key.module].bias);
  }

  // A module that is saved whole may be there twice, as itself and as PEFT's copy: the same values.
  void PlaceReplacement(const SafetensorsEntry& tensor, const PeftKey& key,
                        const SafetensorsEntry*& place) {
    if (place != nullptr && key.is_copy) return;
    if (place != nullptr && ParsePeftKey(place->name).is_copy) place = nullptr;
    Claim(tensor, key.module, place);
  }

  void CheckAdapterNames() {
    if (adapter_names_.size() < 2) return;
    std::vector<std::string> names;
    for (const auto& [name, count] : adapter_names_) {
      names.push_back(name.empty() ? "none" : Quoted(name));
      if (names.size() == 4) break;
    }
    Report(file_,
           {Reason::kInvalidAdapter, nullptr, "",
            fmt::format("holds factors under several adapter names ({}): one file, one adapter",
                        fmt::join(names, ", ")),
            "", ""},
           problems_);
  }

  const PeftConfig& config_;
  const std::string_view file_;
  ProblemList& problems_;
  std::vector<std::string> saved_;  // modules_to_save, with what the task adds
  PeftTensors sorted_;
  std::vector<std::pair<const SafetensorsEntry*, PeftKey>> biases_;
  std::map<std::string, int64_t> adapter_names_;
};

}  // namespace

std::string_view NameFault(std::string_view name) {
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    // The lines that the revision digests end with a line feed and are divided by tabs.
    if (byte < 0x20 || byte == 0x7f) return "has a control character in its name";
  }
  const auto dots = static_cast<size_t>(std::count(name.begin(), name.end(), '.'));
  return dots >= kMaxPathComponents ? "has too many components in its name" : "";
}

const SafetensorsEntry* PeftPair::Any() const {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [](auto* t) { return t; });
  return found == tensors.end() ? nullptr : *found;
}

void Report(std::string_view file, TensorProblem source, ProblemList& problems) {
  Problem problem;
  problem.reason = source.reason;
  problem.file = file;
  problem.module = Printable(source.module);
  if (source.tensor == nullptr) {
    problem.message = fmt::format("{} {}", Printable(file), source.what);
  } else {
    problem.tensor = Printable(source.tensor->name);
    problem.message = fmt::format("tensor {} in {} {}", Quoted(source.tensor->name),
                                  Printable(file), source.what);
  }
  if (!source.expected.empty()) {
    problem.message += fmt::format(": expected {}, found {}", source.expected, source.actual);
  }
  problem.expected = std::move(source.expected);
  problem.actual = std::move(source.actual);
  problems.Add(std::move(problem));
}

PeftTensors SortPeftTensors(const PeftConfig& config, const SafetensorsHeader& header,
                            std::string_view file, ProblemList& problems) {
  return Sorter(config, file, problems).Sort(header);
}

}  // namespace adapterd
