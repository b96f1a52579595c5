// Every fixture folder has a decided outcome, and what loads has the numbers of the tool that wrote
// it.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "tests/core/adapter/adapter_folder.h"

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
      {"golden-peft/lora_emb_conv1d", Refuse(kUnsupported, "emb.lora_embedding_A")},
      {"golden-peft/lora_mlp", Load(1, {8}, 8, 1)},
      {"golden-peft/lora_mlp_modules_to_save", Refuse(kUnsupported, "modules_to_save")},

      {"peft/cases/adalora", Refuse(kUnsupported, "peft_type")},
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
      {"peft/cases/bert-seq-cls", Refuse(kUnsupported, "modules_to_save")},
      {"peft/cases/conv2d", Refuse(kUnsupported, "base_model.model.conv.lora_A.weight")},
      {"peft/cases/gpt2-conv1d", {{}, Loaded{6, {8}, {{"", {16, 2}}}, "lora", /*conv1d=*/true}}},
      {"peft/cases/ia3", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/llama-all-linear", Load(14, {4}, 8, 2)},
      {"peft/cases/llama-alora", Refuse(kUnsupported, "alora_invocation_tokens")},
      {"peft/cases/llama-bf16", Load(14, {8}, 16, 2)},
      {"peft/cases/llama-bf16-base-f32-adapter", Load(4, {8}, 16, 2)},
      {"peft/cases/llama-dora", Refuse(kUnsupported, "use_dora")},
      {"peft/cases/llama-dora-bf16", Refuse(kUnsupported, "use_dora")},
      {"peft/cases/llama-embedding-head", Refuse(kUnsupported, "embed_tokens.lora_embedding_A")},
      {"peft/cases/llama-embedding-saved", Refuse(kUnsupported, "embed_tokens.base_layer.weight")},
      {"peft/cases/llama-exclude", Load(11, {4}, 4, 1)},
      {"peft/cases/llama-f16", Load(4, {8}, 16, 2)},
      {"peft/cases/llama-float-alpha", Load(2, {3}, 2.5, 2.5 / 3)},
      {"peft/cases/llama-layer-replication", Load(3, {4}, 8, 2)},
      {"peft/cases/llama-layers-to-transform", Load(4, {4}, 4, 1)},
      {"peft/cases/llama-modules-to-save", Refuse(kUnsupported, "modules_to_save")},
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
      {"peft/cases/llama-trainable-tokens", Refuse(kUnsupported, "trainable_token_indices")},
      {"peft/cases/loha", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/lokr", Refuse(kUnsupported, "peft_type")},
      {"peft/cases/mixtral-experts", Refuse(kUnsupported, "target_parameters")},
      {"peft/cases/ok-adapter-name-kept", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-compiled-prefix", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-minimal-config", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-no-prefix", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-null-patterns", Load(4, {8}, 16, 2)},
      {"peft/cases/ok-unknown-false-key", Load(4, {8}, 16, 2)},
      {"peft/cases/qwen2-bias-all", Refuse(kUnsupported, "bias")},
      {"peft/cases/qwen2-bias-lora-only", Refuse(kUnsupported, "bias")},
      {"peft/cases/qwen2-dora-bias", Refuse(kUnsupported, "use_dora")},
      {"peft/cases/qwen2-lora-bias", Refuse(kUnsupported, "lora_bias")},
      {"peft/cases/vera", Refuse(kUnsupported, "peft_type")},

      {"real/convnext-vision", Load(36, {8}, 16, 2)},
      {"real/diffusers-sd-unet", Refuse(Reason::kSourceNotFound, "")},
      {"real/mlx-qwen2.5-dpo", Refuse(kMalformed, "peft_type")},
      {"real/privacy-filter-token-cls", Refuse(kUnsupported, "modules_to_save")},
      {"real/sam-flat-names", Refuse(Reason::kSourceNotFound, "")},

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

// A tensor of a safetensors file, as doubles.
struct Doubles {
  DType dtype = DType::kF32;
  Shape shape;
  std::vector<double> values;

  double at(int64_t row, int64_t col) const { return values[row * shape[1] + col]; }
};

Doubles Widen(DType dtype, const Shape& shape, std::span<const std::byte> bytes) {
  const auto count = static_cast<int64_t>(bytes.size()) / FloatBytes(dtype);
  std::vector<float> floats(count);
  ConvertToF32(dtype, bytes.data(), floats.data(), count);
  return {dtype, shape, {floats.begin(), floats.end()}};
}

// The tensors of expected.safetensors; none when the folder has no such file.
std::map<std::string, Doubles> ReadExpected(const std::string& folder) {
  std::map<std::string, Doubles> tensors;
  const auto path = std::filesystem::path(ADAPTERD_FIXTURES) / folder / "expected.safetensors";
  if (!std::filesystem::exists(path)) return tensors;
  const std::string file = ReadFile(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  const auto header =
      ParseSafetensorsHeader(std::string_view(file).substr(8, header_bytes),
                             static_cast<int64_t>(file.size()), "expected.safetensors");
  for (const SafetensorsEntry& tensor : header.value().tensors) {
    if (!IsComputeFloat(tensor.dtype)) continue;
    const auto bytes = std::as_bytes(std::span(file)).subspan(tensor.offset, tensor.bytes);
    tensors[tensor.name] = Widen(tensor.dtype, tensor.shape, bytes);
  }
  return tensors;
}

// What rounding to `dtype` may change, relatively.
double Epsilon(DType dtype) {
  if (dtype == DType::kF32) return 0x1p-24;
  return dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// PEFT computes scale * (B A) in F32 and rounds it to the dtype of the factors: a sum of `rank`
// products and two roundings more, each of at most half a unit.
void ExpectDelta(const Doubles& a, const Doubles& b, double scale, const Doubles& delta,
                 bool transposed) {
  const int64_t rank = a.shape[0];
  for (int64_t out = 0; out < b.shape[0]; ++out) {
    for (int64_t in = 0; in < a.shape[1]; ++in) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < rank; ++k) {
        const double product = b.at(out, k) * a.at(k, in);
        sum += product;
        magnitude += std::abs(product);
      }
      const double tolerance =
          std::abs(scale) * (static_cast<double>(rank + 2) * 0x1p-24 * magnitude +
                             2 * Epsilon(delta.dtype) * std::abs(sum)) +
          0x1p-24;  // subnormals of F16
      const double found = transposed ? delta.at(in, out) : delta.at(out, in);
      ASSERT_NEAR(found, scale * sum, tolerance) << "at " << out << ", " << in;
    }
  }
}

// The same for outputs: y - y_base = scale * (x A^T) B^T. Sums over `in` in F32; the low-rank rows,
// the delta, the base output and the result are each rounded to the dtype of the layer.
void ExpectOutput(const Doubles& a, const Doubles& b, double scale, const Doubles& x,
                  const Doubles& y_base, const Doubles& y) {
  const int64_t in = a.shape[1];
  const int64_t out = b.shape[0];
  const double epsilon = static_cast<double>(in) * 0x1p-24 + 4 * Epsilon(y.dtype);
  for (int64_t row = 0; row < static_cast<int64_t>(x.values.size()) / in; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < a.shape[0]; ++k) {
        for (int64_t i = 0; i < in; ++i) {
          const double product = b.at(o, k) * a.at(k, i) * x.values[row * in + i];
          sum += product;
          magnitude += std::abs(product);
        }
      }
      const double base = y_base.values[row * out + o];
      const double with = y.values[row * out + o];
      const double tolerance =
          epsilon * (std::abs(scale) * magnitude + std::abs(base) + std::abs(with));
      ASSERT_NEAR(with - base, scale * sum, tolerance) << "at " << row << ", " << o;
    }
  }
}

// The number of modules that were compared: all of which expected.safetensors holds the output.
int CheckNumbers(const std::string& folder, const Adapter& adapter, bool conv1d) {
  const auto expected = ReadExpected(folder);
  int checked = 0;
  for (size_t i = 0; i < adapter.manifest().modules.size(); ++i) {
    const ModuleInfo& module = adapter.manifest().modules[i];
    const auto y = expected.find(module.path + "|y");
    if (y == expected.end()) continue;
    SCOPED_TRACE(module.path);
    const Tensor& lora_a = adapter.factors(i).lora_a;
    const Tensor& lora_b = adapter.factors(i).lora_b;
    const Doubles a = Widen(lora_a.dtype(), lora_a.shape(), lora_a.bytes());
    const Doubles b = Widen(lora_b.dtype(), lora_b.shape(), lora_b.bytes());
    ExpectOutput(a, b, module.scale, expected.at(module.path + "|x"),
                 expected.at(module.path + "|y_base"), y->second);
    const auto delta = expected.find(module.path + "|delta_weight");
    if (delta != expected.end()) ExpectDelta(a, b, module.scale, delta->second, conv1d);
    ++checked;
  }
  int wanted = 0;
  for (const auto& [name, tensor] : expected) wanted += name.ends_with("|y") ? 1 : 0;
  EXPECT_EQ(checked, wanted);
  return checked;
}

void ExpectManifest(const AdapterManifest& manifest, const Loaded& expected) {
  EXPECT_EQ(manifest.method, expected.method);
  EXPECT_EQ(manifest.modules.size(), expected.modules);
  EXPECT_EQ(manifest.ranks(), expected.ranks);
  for (const ModuleInfo& module : manifest.modules) {
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
  absl::StatusOr<std::shared_ptr<const Adapter>> adapter = absl::UnknownError("not opened");
  const auto reader = OpenerAt(ADAPTERD_FIXTURES)({folder, ""}, problems);
  ASSERT_EQ(reader != nullptr, !problems.has_errors());
  if (reader != nullptr) adapter = reader->Read({}, problems);
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
  ASSERT_THAT(adapter, IsOk());
  ExpectManifest((*adapter)->manifest(), *outcome.loaded);
  const int checked = CheckNumbers(folder, **adapter, outcome.loaded->conv1d);
  ASSERT_OK_AND_ASSIGN(const ContentDigest digest, reader->Digest({}, problems));
  EXPECT_EQ(digest, (*adapter)->digest());
  std::cout << fmt::format("{}: {} modules, ranks {}, {} against the tool's numbers\n", folder,
                           outcome.loaded->modules, fmt::join(outcome.loaded->ranks, " "), checked);
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) c = absl::ascii_isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTest, ::testing::ValuesIn(Folders()), TestName);

}  // namespace
}  // namespace adapterd
