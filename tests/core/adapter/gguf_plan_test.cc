// GGUF adapters as modules: names, scales, kinds, heads, and what is refused.
#include "core/adapter/gguf_plan.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/testing/gguf_builder.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::NotNull;

constexpr char kFile[] = "a/adapter.gguf";

// One file, opened as the server opens it.
class GgufFile {
 public:
  std::unique_ptr<AdapterReader> Open(const GgufBuilder& builder,
                                      std::optional<HeadCounts> heads = std::nullopt,
                                      const std::string& source = "a") {
    dir_.Write(kFile, builder.Build());
    problems_ = ProblemList();
    SourceSpec spec{source, ""};
    spec.head_counts = heads;
    auto reader = OpenerAt(dir_.path())(spec, problems_);
    return problems_.has_errors() ? nullptr : std::move(reader);
  }
  std::string Revision(const GgufBuilder& builder, std::optional<HeadCounts> heads = {}) {
    const auto reader = Open(builder, heads);
    EXPECT_THAT(reader, NotNull()) << problems_.ToStatus();
    ThreadPool pool("io", 2);
    return reader->Read(pool, {}, nullptr, problems_).value_or("");
  }
  ProblemList& problems() { return problems_; }

 private:
  TempDir dir_;
  ProblemList problems_;
};

GgufBuilder Of(std::string_view architecture) {
  return SmallGguf().Text("general.architecture", architecture);
}

TEST(GgufPlanTest, AFileAndItsFolderAreTheSameAdapter) {
  GgufFile file;
  for (const char* source : {"a", kFile}) {
    const auto reader = file.Open(SmallGguf(), {}, source);
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    const AdapterManifest& manifest = *reader->manifest();
    EXPECT_EQ(manifest.format, AdapterFormat::kGguf);
    EXPECT_EQ(manifest.method, "lora");
    EXPECT_EQ(manifest.file_bytes, static_cast<int64_t>(SmallGguf().Build().size()));
    ASSERT_EQ(manifest.modules.size(), 1u);
    const ModuleInfo& q = manifest.modules[0];
    EXPECT_EQ(q.path, "model.layers.0.self_attn.q_proj");
    EXPECT_EQ(q.kind, ModuleKind::kLinear);
    EXPECT_EQ(q.in_features, 8);
    EXPECT_EQ(q.out_features, 6);
    EXPECT_EQ(q.rank, 4);
    EXPECT_EQ(q.alpha, 16);
    EXPECT_EQ(q.scale, 4);
    EXPECT_EQ(q.lora_a_tensor, "blk.0.attn_q.weight.lora_a");
    EXPECT_EQ(q.lora_b_tensor, "blk.0.attn_q.weight.lora_b");
    EXPECT_EQ(reader->identity().files.size(), 1u);
  }
}

TEST(GgufPlanTest, ModulesAreFoundByBothNames) {
  GgufFile file;
  GgufBuilder builder = SmallGguf();
  builder.Pair("blk.1.attn_q.weight", 4, 8, 6).Pair("output.weight", 4, 8, 6);
  const auto reader = file.Open(builder);
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  const ModuleIndex& index = reader->manifest()->index;
  const auto path_of = [&](const ModuleSelector& selector) {
    const auto found = index.Find(selector);
    return found.ok() ? reader->manifest()->modules[*found].path : std::string();
  };
  EXPECT_EQ(path_of({"blk.1.attn_q", "", {}}), "model.layers.1.self_attn.q_proj");
  EXPECT_EQ(path_of({"blk.1.attn_q.weight", "", {}}), "model.layers.1.self_attn.q_proj");
  EXPECT_EQ(path_of({"", "attn_q", 0}), "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(path_of({"", "q_proj", 1}), "model.layers.1.self_attn.q_proj");
  EXPECT_EQ(path_of({"output", "", {}}), "lm_head");
  EXPECT_THAT(index.Find({"", "attn_q", {}}).status(), HasMessage(HasSubstr("self_attn.q_proj")));
  EXPECT_THAT(index.Find({"blk.2.attn_q", "", {}}), HasReason(Reason::kModuleNotTargeted));
}

TEST(GgufPlanTest, AlphaOfZeroAndNoAlphaMeanAScaleOfOne) {
  GgufFile file;
  for (GgufBuilder builder :
       {SmallGguf().Float("adapter.lora.alpha", 0), SmallGguf().Float("adapter.lora.alpha", -0.0f),
        SmallGguf().Without("adapter.lora.alpha")}) {
    builder.Pair("blk.1.attn_v.weight", 2, 8, 6);
    const auto reader = file.Open(builder);
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    for (const ModuleInfo& module : reader->manifest()->modules) EXPECT_EQ(module.scale, 1);
    EXPECT_THAT(file.problems().warnings(), Contains(HasSubstr("every scale is 1")));
  }
}

TEST(GgufPlanTest, TheScaleFollowsTheRankOfEachTensorAndIsTold) {
  GgufFile file;
  GgufBuilder builder = SmallGguf();
  builder.Pair("blk.1.attn_v.weight", 2, 8, 6);
  const auto reader = file.Open(builder);
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->modules[0].scale, 4);
  EXPECT_EQ(reader->manifest()->modules[1].scale, 8);
  EXPECT_THAT(file.problems().warnings(),
              Contains(AllOf(HasSubstr("16 / 4 = 4"), HasSubstr("rsLoRA"))));
}

TEST(GgufPlanTest, HeadsAreNeededWhereRowsAreReordered) {
  GgufFile file;
  for (const char* architecture : {"llama", "mistral3"}) {
    GgufBuilder builder = Of(architecture);
    builder.tensors.clear();
    builder.Pair("blk.0.attn_q.weight", 4, 8, 16).Pair("blk.0.attn_k.weight", 4, 8, 8);
    builder.Pair("blk.0.attn_v.weight", 4, 8, 8);
    EXPECT_EQ(file.Open(builder), nullptr);
    EXPECT_THAT(file.problems().items(),
                ElementsAre(IsError(Reason::kBaseRequired, "blk.0.attn_k.weight.lora_b"),
                            IsError(Reason::kBaseRequired, "blk.0.attn_q.weight.lora_b"),
                            IsWarning("rsLoRA")));
    const auto reader = file.Open(builder, HeadCounts{4, 2});
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    EXPECT_EQ(reader->manifest()->modules[0].rope_heads, 2);  // k_proj
    EXPECT_EQ(reader->manifest()->modules[1].rope_heads, 4);  // q_proj
    EXPECT_EQ(reader->manifest()->modules[2].rope_heads, 0);  // v_proj
    for (const HeadCounts wrong : {HeadCounts{3, 3}, HeadCounts{16, 8}}) {
      EXPECT_EQ(file.Open(builder, wrong), nullptr);
      EXPECT_THAT(file.problems().items(),
                  Contains(IsError(Reason::kBaseModelMismatch, "blk.0.attn_q.weight.lora_b")));
    }
    // Without q and k nothing is reordered.
    builder.tensors.erase(builder.tensors.begin(), builder.tensors.begin() + 4);
    EXPECT_THAT(file.Open(builder), NotNull()) << file.problems().ToStatus();
  }
}

// Heads of 8 and of 4 rows cannot be those of one model.
TEST(GgufPlanTest, HeadsOfTwoSizesAreNoHeads) {
  GgufFile file;
  GgufBuilder builder = Of("llama");
  builder.tensors.clear();
  builder.Pair("blk.0.attn_q.weight", 4, 8, 16).Pair("blk.0.attn_k.weight", 4, 8, 16);
  EXPECT_EQ(file.Open(builder, HeadCounts{4, 2}), nullptr);
  EXPECT_THAT(file.problems().ToStatus(),
              AllOf(HasReason(Reason::kBaseModelMismatch), HasMessage(HasSubstr("head_counts"))));
}

// Row h*d + s*d/2 + j of the base model is row h*d + 2*j + s of the file.
TEST(GgufPlanTest, RowsAreReorderedHeadByHead) {
  GgufFile file;
  GgufBuilder builder = Of("llama");
  builder.tensors.clear();
  std::vector<float> b;
  for (int row = 0; row < 12; ++row) b.push_back(static_cast<float>(row));
  builder.Tensor("blk.0.attn_q.weight.lora_a", {3, 1}, {1, 2, 3})
      .Tensor("blk.0.attn_q.weight.lora_b", {1, 12}, b);
  const auto reader = file.Open(builder, HeadCounts{2, 1});
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  ModuleCollector modules;
  ThreadPool pool("io", 1);
  ASSERT_THAT(reader->Read(pool, {}, &modules, file.problems()), IsOk());
  EXPECT_THAT(FloatsOf(modules.at(0).lora_b), ElementsAre(0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11));
  EXPECT_THAT(FloatsOf(modules.at(0).lora_a), ElementsAre(1, 2, 3));
}

// What the base tells is no part of the content; what the file tells is.
TEST(GgufPlanTest, RevisionsFollowTheFileAlone) {
  GgufFile file;
  GgufBuilder llama = Of("llama");
  llama.tensors.clear();
  llama.Pair("blk.0.attn_q.weight", 4, 8, 16);
  const std::string revision = file.Revision(llama, HeadCounts{4, 2});
  EXPECT_EQ(file.Revision(llama, HeadCounts{2, 2}), revision);
  GgufBuilder qwen = Of("qwen2");
  qwen.tensors = llama.tensors;
  EXPECT_NE(file.Revision(qwen), revision);  // the same bytes in another order
  EXPECT_NE(file.Revision(llama.Float("adapter.lora.alpha", 8), HeadCounts{4, 2}), revision);
  EXPECT_EQ(file.Revision(llama.Float("adapter.lora.alpha", 16).Text("general.name", "x"),
                          HeadCounts{4, 2}),
            revision);
}

TEST(GgufPlanTest, ExpertsAreStacked) {
  GgufFile file;
  GgufBuilder builder = Of("qwen3moe");
  builder.tensors.clear();
  builder.Tensor("blk.3.ffn_up_exps.weight.lora_a", {5, 2, 3}, GgufBuilder::Counted(30))
      .Tensor("blk.3.ffn_up_exps.weight.lora_b", {2, 4, 3}, GgufBuilder::Counted(24));
  const auto reader = file.Open(builder);
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  const ModuleInfo& module = reader->manifest()->modules[0];
  EXPECT_EQ(module.path, "model.layers.3.mlp.experts.up_proj");
  EXPECT_EQ(module.kind, ModuleKind::kExperts);
  EXPECT_EQ(module.experts, 3);
  EXPECT_EQ(module.in_features, 5);
  EXPECT_EQ(module.out_features, 4);
  EXPECT_EQ(module.scale, 8);
  ModuleCollector modules;
  ThreadPool pool("io", 1);
  ASSERT_THAT(reader->Read(pool, {}, &modules, file.problems()), IsOk());
  EXPECT_THAT(modules.at(0).lora_a.shape(), ElementsAre(6, 5));
  EXPECT_THAT(modules.at(0).lora_b.shape(), ElementsAre(12, 2));
  EXPECT_EQ(FloatsOf(modules.at(0).lora_a), GgufBuilder::Counted(30));
  EXPECT_EQ(FloatsOf(modules.at(0).lora_b), GgufBuilder::Counted(24));
}

TEST(GgufPlanTest, EmbeddingsComeTransposed) {
  GgufFile file;
  GgufBuilder builder = Of("gemma2");
  builder.tensors.clear();
  builder
      .Tensor("token_embd.weight.lora_a", {2, 3}, {1, 2, 3, 4, 5, 6})  // [vocabulary, rank]
      .Tensor("token_embd.weight.lora_b", {2, 4}, GgufBuilder::Counted(8));
  const auto reader = file.Open(builder);
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  const ModuleInfo& module = reader->manifest()->modules[0];
  EXPECT_EQ(module.path, "model.embed_tokens");
  EXPECT_EQ(module.kind, ModuleKind::kEmbedding);
  EXPECT_EQ(module.in_features, 3);
  EXPECT_EQ(module.out_features, 4);
  EXPECT_EQ(module.rank, 2);
  ModuleCollector modules;
  ThreadPool pool("io", 1);
  ASSERT_THAT(reader->Read(pool, {}, &modules, file.problems()), IsOk());
  EXPECT_THAT(modules.at(0).lora_a.shape(), ElementsAre(2, 3));
  EXPECT_THAT(FloatsOf(modules.at(0).lora_a), ElementsAre(1, 3, 5, 2, 4, 6));
}

TEST(GgufPlanTest, NormsAreLeftOutWithAWarning) {
  GgufFile file;
  GgufBuilder builder = SmallGguf();
  builder.Tensor("blk.0.attn_norm.weight", {8}, GgufBuilder::Counted(8));
  ASSERT_THAT(file.Open(builder), NotNull()) << file.problems().ToStatus();
  EXPECT_THAT(file.problems().warnings(), Contains(HasSubstr("1 norms are left out")));
}

struct Damage {
  const char* name;
  std::function<void(GgufBuilder&)> spoil;
  Reason reason;
  const char* about;  // key or tensor
};

TEST(GgufPlanTest, WhatIsNoAdapterIsNamed) {
  constexpr Reason kInvalid = Reason::kInvalidAdapter;
  constexpr Reason kMalformed = Reason::kMalformedConfig;
  constexpr Reason kUnsupported = Reason::kUnsupportedAdapter;
  constexpr const char* kA = "blk.0.attn_q.weight.lora_a";
  constexpr const char* kB = "blk.0.attn_q.weight.lora_b";
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  using B = GgufBuilder;
  const Damage cases[] = {
      {"a model", [](B& b) { b.Text("general.type", "model"); }, kInvalid, "general.type"},
      {"no type", [](B& b) { b.Without("general.type"); }, kMalformed, "general.type"},
      {"type as number", [](B& b) { b.Float("general.type", 1); }, kMalformed, "general.type"},
      {"a control vector", [](B& b) { b.Text("adapter.type", "control"); }, kUnsupported,
       "adapter.type"},
      {"no adapter type", [](B& b) { b.Without("adapter.type"); }, kMalformed, "adapter.type"},
      {"no architecture", [](B& b) { b.Without("general.architecture"); }, kMalformed,
       "general.architecture"},
      {"another architecture", [](B& b) { b.Text("general.architecture", "mamba"); }, kUnsupported,
       "general.architecture"},
      {"alpha as text", [](B& b) { b.Text("adapter.lora.alpha", "16"); }, kMalformed,
       "adapter.lora.alpha"},
      {"alpha NaN", [](B& b) { b.Float("adapter.lora.alpha", kNaN); }, kMalformed,
       "adapter.lora.alpha"},
      {"activated",
       [](B& b) {
         b.Raw("adapter.alora.invocation_tokens", kGgufArrayType,
               RawBytes(kGgufUint32) + RawBytes<uint64_t>(1) + RawBytes<uint32_t>(7));
       },
       kUnsupported, "adapter.alora.invocation_tokens"},
      {"no lora_a", [](B& b) { b.tensors.erase(b.tensors.begin()); }, kInvalid, kB},
      {"no lora_b", [](B& b) { b.tensors.pop_back(); }, kInvalid, kA},
      {"neither", [](B& b) { b.Tensor("blk.0.attn_q.bias", {6}, B::Counted(6)); }, kInvalid,
       "blk.0.attn_q.bias"},
      {"unknown module", [](B& b) { b.Pair("blk.0.attn_qkv.weight", 4, 8, 6); }, kInvalid,
       "blk.0.attn_qkv.weight.lora_a"},
      {"leading zero", [](B& b) { b.Pair("blk.00.attn_q.weight", 4, 8, 6); }, kInvalid,
       "blk.00.attn_q.weight.lora_a"},
      {"experts of no expert model", [](B& b) { b.Pair("blk.0.ffn_up_exps.weight", 4, 8, 6); },
       kInvalid, "blk.0.ffn_up_exps.weight.lora_a"},
      {"transposed factors",
       [](B& b) {
         for (auto& tensor : b.tensors) std::swap(tensor.dims[0], tensor.dims[1]);
       },
       kInvalid, kB},
      {"3-D",
       [](B& b) {
         b.tensors[0].dims = {8, 2, 2};
       },
       kInvalid, kA},
      {"1-D", [](B& b) { b.tensors[0].dims = {32}; }, kInvalid, kA},
      {"empty",
       [](B& b) {
         b.tensors[0].dims = {0, 4};
         b.tensors[0].data.clear();
       },
       kInvalid, kA},
      {"no pairs", [](B& b) { b.tensors.clear(); }, kInvalid, ""},
      {"NaN", [](B& b) { std::memcpy(b.tensors[0].data.data(), &kNaN, 4); },
       Reason::kNonFiniteWeights, kA},
  };
  for (const Damage& damage : cases) {
    SCOPED_TRACE(damage.name);
    GgufFile file;
    GgufBuilder builder = SmallGguf();
    damage.spoil(builder);
    if (const auto reader = file.Open(builder)) {
      ThreadPool pool("io", 1);
      EXPECT_THAT(reader->Read(pool, {}, nullptr, file.problems()), Not(IsOk()));
    }
    EXPECT_THAT(file.problems().items(), Contains(IsError(damage.reason, damage.about)));
  }
}

TEST(GgufPlanTest, AllProblemsComeTogether) {
  GgufFile file;
  GgufBuilder builder = SmallGguf().Text("general.type", "model").Text("adapter.lora.alpha", "x");
  builder.tensors.pop_back();
  builder.Tensor("mystery", {1}, {1});
  EXPECT_EQ(file.Open(builder), nullptr);
  EXPECT_THAT(file.problems().items(),
              ElementsAre(IsError(Reason::kInvalidAdapter, "general.type"),
                          IsError(Reason::kMalformedConfig, "adapter.lora.alpha"),
                          IsError(Reason::kInvalidAdapter, "mystery"),
                          IsError(Reason::kInvalidAdapter, "blk.0.attn_q.weight.lora_a")));
}

// A Q8_0 scale that is no number makes its elements none.
TEST(GgufPlanTest, BlocksAreJudgedByTheirScales) {
  for (const uint16_t scale : {0x3c00, 0x7c00}) {
    GgufFile file;
    GgufBuilder builder = SmallGguf();
    builder.tensors[0] = {"blk.0.attn_q.weight.lora_a", {32, 4}, kGgmlQ8, std::string(136, '\1')};
    for (int block = 0; block < 4; ++block) {
      std::memcpy(builder.tensors[0].data.data() + 34 * block, &scale, 2);
    }
    const auto reader = file.Open(builder);
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    EXPECT_EQ(reader->manifest()->modules[0].lora_a_dtype, DType::kF32);
    ModuleCollector modules;
    ThreadPool pool("io", 1);
    const auto revision = reader->Read(pool, {}, &modules, file.problems());
    if (scale == 0x3c00) {
      ASSERT_THAT(revision, IsOk());
      EXPECT_EQ(FloatsOf(modules.at(0).lora_a), std::vector<float>(128, 1));
    } else {
      EXPECT_THAT(revision, HasReason(Reason::kNonFiniteWeights));
    }
  }
}

}  // namespace
}  // namespace adapterd
