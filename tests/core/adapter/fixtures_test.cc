// Every fixture folder has a decided outcome, and what loads has the numbers of the tool that wrote
// it.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <span>

#include "absl/strings/ascii.h"
#include "tests/core/adapter/adapter_folder.h"
#include "tests/core/adapter/fixture_numbers.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

constexpr Reason kInvalid = Reason::kInvalidAdapter;
constexpr Reason kUnsupported = Reason::kUnsupportedAdapter;
constexpr Reason kMalformed = Reason::kMalformedConfig;

const char kLayer0Q[] = "base_model.model.model.layers.0.self_attn.q_proj.";

// First problem of a refused folder: `about` is the config key or the end of the tensor's name.
struct Refusal {
  Reason reason;
  std::string about;
};

struct Loaded {
  size_t modules;
  std::vector<int32_t> ranks;
  // alpha and scale, or per module when they differ (longest suffix that matches counts)
  std::map<std::string, std::pair<double, double>> scaling;
  std::string method = "lora";
  bool conv1d = false;  // base weights, and so the expected deltas, are [in, out]
};

struct Outcome {
  std::optional<Refusal> refusal;
  std::optional<Loaded> loaded;
};

Outcome Refuse(Reason reason, std::string about) { return {Refusal{reason, std::move(about)}, {}}; }
Outcome Load(size_t modules, std::vector<int32_t> ranks, double alpha, double scale,
             std::string method = "lora") {
  return {{}, Loaded{modules, std::move(ranks), {{"", {alpha, scale}}}, std::move(method)}};
}

const std::map<std::string, Outcome>& Table() {
  static const auto& table = *new std::map<std::string, Outcome>{
      {"golden-peft/lora_emb_conv1d", Load(2, {8}, 8, 1)},
      {"golden-peft/lora_mlp", Load(1, {8}, 8, 1)},
      {"golden-peft/lora_mlp_modules_to_save", Load(2, {8}, 8, 1)},

      {"peft/cases/adalora", Load(4, {8}, 16, 16 / (8 + 1e-5), "adalora")},
      {"peft/cases/bad-3d", Refuse(kInvalid, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-empty-tensor", Refuse(kInvalid, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-extra-tensor", Refuse(kInvalid, std::string(kLayer0Q) + "mystery")},
      {"peft/cases/bad-inf",
       Refuse(Reason::kNonFiniteWeights, std::string(kLayer0Q) + "lora_B.weight")},
      {"peft/cases/bad-inner-rank", Refuse(kInvalid, std::string(kLayer0Q) + "lora_B.weight")},
      {"peft/cases/bad-int8",
       Refuse(Reason::kUnsupportedDtype, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-missing-a", Refuse(kInvalid, std::string(kLayer0Q) + "lora_B.weight")},
      {"peft/cases/bad-missing-b", Refuse(kInvalid, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-nan",
       Refuse(Reason::kNonFiniteWeights, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-negative-alpha-string", Refuse(kMalformed, "lora_alpha")},
      {"peft/cases/bad-no-peft-type", Refuse(kMalformed, "peft_type")},
      {"peft/cases/bad-null-alpha", Refuse(kMalformed, "lora_alpha")},
      {"peft/cases/bad-rank-config", Refuse(kInvalid, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-target-mismatch", Refuse(kInvalid, std::string(kLayer0Q) + "lora_A.weight")},
      {"peft/cases/bad-unknown-true-key", Refuse(kUnsupported, "use_future_maths")},
      {"peft/cases/bad-zero-rank", Refuse(kMalformed, "r")},
      {"peft/cases/bert-seq-cls", Load(5, {4}, 8, 2)},
      {"peft/cases/conv2d", Load(3, {4}, 8, 2)},
      {"peft/cases/gpt2-conv1d", {{}, Loaded{6, {8}, {{"", {16, 2}}}, "lora", /*conv1d=*/true}}},
      {"peft/cases/ia3", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/llama-all-linear", Load(14, {4}, 8, 2)},
      {"peft/cases/llama-alora", Refuse(kUnsupported, "alora_invocation_tokens")},
      {"peft/cases/llama-bf16", Load(14, {8}, 16, 2)},
      {"peft/cases/llama-bf16-base-f32-adapter", Load(4, {8}, 16, 2)},
      {"peft/cases/llama-dora", Load(4, {8}, 16, 2, "dora")},
      {"peft/cases/llama-dora-bf16", Load(4, {8}, 16, 2, "dora")},
      {"peft/cases/llama-embedding-head", Load(4, {4}, 8, 2)},
      {"peft/cases/llama-embedding-saved", Load(4, {4}, 8, 2)},
      {"peft/cases/llama-exclude", Load(11, {4}, 4, 1)},
      {"peft/cases/llama-f16", Load(4, {8}, 16, 2)},
      {"peft/cases/llama-float-alpha", Load(2, {3}, 2.5, 2.5 / 3)},
      {"peft/cases/llama-layer-replication", Load(3, {4}, 8, 2)},
      {"peft/cases/llama-layers-to-transform", Load(4, {4}, 4, 1)},
      {"peft/cases/llama-modules-to-save", Load(8, {4}, 8, 2)},
      {"peft/cases/llama-olora-unconverted", Refuse(kUnsupported, "init_lora_weights")},
      {"peft/cases/llama-patterns",
       {{},
        Loaded{14,
               {2, 4, 6, 8},
               {{"model.layers.0.self_attn.q_proj", {16, 4}},
                {"model.layers.0.self_attn.k_proj", {32, 4}},
                {"model.layers.0.self_attn.v_proj", {16, 2}},
                {"model.layers.0.self_attn.o_proj", {1, 1. / 8}},
                {"model.layers.0.mlp.gate_proj", {5, 5. / 8}},
                {"model.layers.0.mlp.up_proj", {5, 5. / 8}},
                {"model.layers.0.mlp.down_proj", {5, 5. / 6}},
                {"model.layers.1.self_attn.q_proj", {16, 4}},
                {"model.layers.1.self_attn.k_proj", {16, 8}},
                {"model.layers.1.self_attn.v_proj", {16, 8}},
                {"model.layers.1.self_attn.o_proj", {1, 1. / 2}},
                {"model.layers.1.mlp.gate_proj", {5, 5. / 2}},
                {"model.layers.1.mlp.up_proj", {5, 5. / 2}},
                {"model.layers.1.mlp.down_proj", {5, 5. / 2}}}}}},
      {"peft/cases/llama-pissa-converted", Load(2, {8}, 16, 2)},
      {"peft/cases/llama-pissa-unconverted", Refuse(kUnsupported, "init_lora_weights")},
      {"peft/cases/llama-qv", Load(4, {8}, 16, 2)},
      {"peft/cases/llama-rank1", Load(4, {1}, 1, 1)},
      {"peft/cases/llama-regex-target", Load(4, {4}, 4, 1)},
      {"peft/cases/llama-rslora", Load(8, {8}, 16, 16 / std::sqrt(8.0), "rslora")},
      {"peft/cases/llama-rslora-patterns",
       {{},
        Loaded{8,
               {8, 16},
               {{"q_proj", {16, 16 / std::sqrt(8.0)}},
                {"k_proj", {4, 4 / std::sqrt(8.0)}},
                {"v_proj", {16, 16 / std::sqrt(16.0)}},
                {"o_proj", {16, 16 / std::sqrt(8.0)}}},
               "rslora"}}},
      {"peft/cases/llama-trainable-tokens", Load(3, {4}, 8, 2)},
      {"peft/cases/loha", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/lokr", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/mixtral-experts", Load(6, {4}, 8, 2)},
      {"peft/cases/ok-adapter-name-kept", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-compiled-prefix", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-minimal-config", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-no-prefix", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-null-patterns", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-unknown-false-key", Load(4, {8}, 16, 2)},
      {"peft/cases/qwen2-bias-all", Load(8, {4}, 8, 2)},
      {"peft/cases/qwen2-bias-lora-only", Load(2, {4}, 8, 2)},
      {"peft/cases/qwen2-dora-bias", Load(4, {8}, 16, 2, "dora")},
      {"peft/cases/qwen2-lora-bias", Load(4, {8}, 16, 2)},
      {"peft/cases/vera", Load(4, {16}, 16, 1, "vera")},

      {"real/convnext-vision", Load(36, {8}, 16, 2)},
      {"real/diffusers-sd-unet", Load(128, {4}, 4, 1)},
      {"real/mlx-qwen2.5-dpo", Load(4, {8}, 160, 20)},
      {"real/privacy-filter-token-cls", Load(33, {16}, 32, 2)},
      {"real/sam-flat-names", Refuse(Reason::kInvalidAdapter, "w_a_000")},

      {"refuse/dora-config-without-weights", Refuse(Reason::kSourceNotFound, "")},
      {"refuse/lfs-pointer", Refuse(Reason::kMalformedTensorFile, "")},
      {"refuse/pickle-adalora_mlp", Refuse(Reason::kUnsafeFormat, "")},
      {"refuse/pickle-ia3_mlp", Refuse(Reason::kUnsafeFormat, "")},
      {"refuse/pickle-lora_conv2d", Refuse(Reason::kUnsafeFormat, "")},
      {"refuse/pickle-lora_emb_conv1d", Refuse(Reason::kUnsafeFormat, "")},
      {"refuse/pickle-lora_mlp", Refuse(Reason::kUnsafeFormat, "")},
  };
  return table;
}

std::set<std::string> Folders() {
  std::set<std::string> found;
  for (const char* group : {"golden-peft", "peft/cases", "real", "refuse"}) {
    const auto path = std::filesystem::path(ADAPTERD_FIXTURES) / group;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      found.insert(fmt::format("{}/{}", group, entry.path().filename().string()));
    }
  }
  return found;
}

// What the file of expected numbers holds of one module, and how much of it was compared.
class NumbersCheck {
 public:
  NumbersCheck(const std::string& folder, bool conv1d)
      : expected_(ReadNumbers(folder + "/expected.safetensors")), conv1d_(conv1d) {}

  void Module(const ModuleInfo& module, const ModuleTensors& tensors) {
    SCOPED_TRACE(module.path);
    if (module.kind == ModuleKind::kReplacement) return Replacement(module, tensors);
    if (module.kind == ModuleKind::kExperts) return Experts(module, tensors);
    // Magnitudes rescale the base weight, which is not here.
    if (module.has_magnitude) return;
    const WidePair pair = PairOf(module, tensors, 0);
    if (const Doubles* delta = Take(module.path + "|delta_weight")) {
      ExpectDelta(pair, delta->values, delta->dtype,
                  conv1d_ || module.kind == ModuleKind::kEmbedding);
    }
    // A replaced bias takes the base's out of y; convolutions and ids are applied elsewhere.
    if (module.kind != ModuleKind::kLinear || module.replaces_bias) return;
    if (const Doubles* y = Take(module.path + "|y")) {
      ExpectOutput(pair, expected_.at(module.path + "|x"), expected_.at(module.path + "|y_base"),
                   *y);
    }
  }

  int checked() const { return static_cast<int>(taken_.size()); }

  // Every delta and every replaced tensor was somewhere in the adapter.
  void ExpectNothingLeft() const {
    for (const auto& [name, tensor] : expected_) {
      const bool wanted = name.find("|delta_weight") != std::string::npos ||
                          name.find("|replaced.") != std::string::npos;
      EXPECT_TRUE(!wanted || taken_.contains(name)) << name;
    }
  }

 private:
  const Doubles* Take(const std::string& name) {
    const auto found = expected_.find(name);
    if (found == expected_.end()) return nullptr;
    taken_.insert(name);
    return &found->second;
  }

  static void ExpectSame(const Tensor& tensor, const Doubles& expected) {
    const Doubles found = Widen(tensor.dtype(), tensor.shape(), tensor.bytes());
    EXPECT_EQ(found.shape, expected.shape);
    EXPECT_EQ(found.values, expected.values);
  }

  void Replacement(const ModuleInfo& module, const ModuleTensors& tensors) {
    if (!module.token_ids.empty()) return TokenRows(module, tensors);
    if (const Doubles* weight = Take(module.path + "|replaced.weight")) {
      ExpectSame(tensors.weight, *weight);
    }
    if (const Doubles* bias = Take(module.path + "|replaced.bias")) {
      ExpectSame(tensors.bias, *bias);
    }
  }

  void TokenRows(const ModuleInfo& module, const ModuleTensors& tensors) {
    const Doubles* merged = Take(module.path + "|merged");
    ASSERT_NE(merged, nullptr);
    const Doubles rows =
        Widen(tensors.weight.dtype(), tensors.weight.shape(), tensors.weight.bytes());
    for (size_t i = 0; i < module.token_ids.size(); ++i) {
      EXPECT_EQ(Rows(rows, static_cast<int64_t>(i), 1).values,
                Rows(*merged, module.token_ids[i], 1).values);
    }
  }

  // The tool names the wrapper that holds the pair: the parameters of one module lie in wrappers
  // around each other.
  void Experts(const ModuleInfo& module, const ModuleTensors& tensors) {
    const size_t dot = module.path.rfind('.');
    const std::string end = "|delta_weight." + module.path.substr(dot + 1);
    const std::string owner = module.path.substr(0, dot);
    const Doubles* delta = Take(owner + end);
    if (delta == nullptr) delta = Take(owner + ".base_layer" + end);
    ASSERT_NE(delta, nullptr);
    ASSERT_EQ(delta->shape, (Shape{module.experts, module.out_features, module.in_features}));
    const int64_t size = module.out_features * module.in_features;
    for (int64_t expert = 0; expert < module.experts; ++expert) {
      ExpectDelta(PairOf(module, tensors, expert),
                  std::span(delta->values).subspan(expert * size, size), delta->dtype,
                  /*transposed=*/false);
    }
  }

  const std::map<std::string, Doubles> expected_;
  const bool conv1d_;
  std::set<std::string> taken_;
};

void ExpectManifest(const AdapterManifest& manifest, const Loaded& expected) {
  EXPECT_EQ(manifest.method, expected.method);
  EXPECT_EQ(manifest.modules.size(), expected.modules);
  EXPECT_EQ(manifest.ranks(), expected.ranks);
  for (const ModuleInfo& module : manifest.modules) {
    if (module.kind == ModuleKind::kReplacement) continue;
    SCOPED_TRACE(module.path);
    bool known = false;
    for (const auto& [end, scaling] : expected.scaling) {
      if (!module.path.ends_with(end)) continue;
      known = true;
      EXPECT_EQ(module.alpha, scaling.first);
      EXPECT_EQ(module.scale, scaling.second);
    }
    EXPECT_TRUE(known);
  }
}

TEST(FixturesTest, EveryFolderHasAnExpectation) {
  std::set<std::string> expected;
  for (const auto& [folder, outcome] : Table()) expected.insert(folder);
  EXPECT_EQ(Folders(), expected);
}

class FixtureTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FixtureTest, HasTheExpectedOutcome) {
  const std::string& folder = GetParam();
  ASSERT_TRUE(Table().contains(folder)) << "decide what is to become of it";
  const Outcome& outcome = Table().at(folder);
  ProblemList problems;
  absl::StatusOr<std::string> revision = absl::UnknownError("not opened");
  ModuleCollector modules;
  ThreadPool pool("io", 2);
  const auto reader = OpenerAt(ADAPTERD_FIXTURES)({folder, ""}, problems);
  ASSERT_TRUE(reader != nullptr || problems.has_errors());
  if (!problems.has_errors()) revision = reader->Read(pool, {}, &modules, problems);
  if (outcome.refusal) {
    const absl::Status status = problems.ToStatus();
    EXPECT_THAT(status, HasReason(outcome.refusal->reason));
    EXPECT_FALSE(status.message().empty());
    const auto first =
        std::find_if(problems.items().begin(), problems.items().end(),
                     [](const Problem& p) { return p.severity == Severity::kError; });
    ASSERT_NE(first, problems.items().end());
    EXPECT_TRUE(first->field == outcome.refusal->about ||
                (first->field.empty() && first->tensor.ends_with(outcome.refusal->about)))
        << first->field << " " << first->tensor;
    EXPECT_FALSE(first->file.empty());
    std::cout << fmt::format("{}: refused, {} {}\n", folder, ReasonName(first->reason),
                             first->field + first->tensor);
    return;
  }
  ASSERT_THAT(revision, IsOk());
  ASSERT_EQ(modules.size(), outcome.loaded->modules);
  ExpectManifest(*reader->manifest(), *outcome.loaded);
  NumbersCheck numbers(folder, outcome.loaded->conv1d);
  for (size_t i = 0; i < modules.size(); ++i) {
    numbers.Module(reader->manifest()->modules[i], modules.at(i));
  }
  numbers.ExpectNothingLeft();
  EXPECT_EQ(reader->Read(pool, {}, nullptr, problems).value(), *revision);
  std::cout << fmt::format("{}: {} modules, ranks {}, {} against the tool's numbers\n", folder,
                           outcome.loaded->modules, fmt::join(outcome.loaded->ranks, " "),
                           numbers.checked());
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) c = absl::ascii_isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTest, ::testing::ValuesIn(Folders()), TestName);

}  // namespace
}  // namespace adapterd
