// What a GGUF adapter can say of an adapter, and what it cannot.
#include "core/adapter/gguf_export.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>

#include "core/adapter/gguf_heads.h"
#include "tests/core/adapter/adapter_folder.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::NotNull;

constexpr HeadCounts kHeads = {4, 2};

// An adapter that was read, with its bits.
struct Read {
  std::shared_ptr<const AdapterManifest> manifest;
  std::map<std::string, std::pair<std::string, std::string>> factors;  // by path
  ModuleCollector modules;
};

std::string BytesOf(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size()};
}

void ReadAdapter(const std::filesystem::path& root, const std::string& source,
                 std::optional<HeadCounts> heads, Read& read) {
  ProblemList problems;
  SourceSpec spec{source, ""};
  spec.head_counts = heads;
  const auto reader = OpenerAt(root)(spec, problems);
  ASSERT_FALSE(problems.has_errors()) << problems.ToStatus();
  ThreadPool pool("io", 1);
  ASSERT_THAT(reader->Read(pool, {}, &read.modules, problems), IsOk());
  read.manifest = reader->manifest();
  for (size_t i = 0; i < read.modules.size(); ++i) {
    const ModuleTensors& tensors = read.modules.at(i);
    read.factors[read.manifest->modules[i].path] = {BytesOf(tensors.lora_a),
                                                    BytesOf(tensors.lora_b)};
  }
}

absl::StatusOr<std::string> Export(const Read& read, std::string_view architecture) {
  auto file = GgufExport::Create(*read.manifest, architecture);
  if (!file.ok()) return file.status();
  std::string bytes;
  const auto lookup = [&](size_t module, TensorRole role) {
    const ModuleTensors& tensors = read.modules.at(module);
    const Tensor& tensor = role == TensorRole::kLoraA ? tensors.lora_a : tensors.lora_b;
    AlignedBuffer copy(tensor.bytes().size());
    std::memcpy(copy.data(), tensor.bytes().data(), copy.size());
    return Tensor(tensor.dtype(), tensor.shape(), std::move(copy));
  };
  EXPECT_THAT(file->Write(lookup,
                          [&](std::span<const std::byte> piece) {
                            bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
                            return absl::OkStatus();
                          }),
              IsOk());
  EXPECT_EQ(static_cast<int64_t>(bytes.size()), file->file_bytes());
  return bytes;
}

struct RoundTrip {
  const char* source;
  const char* architecture;
};

TEST(GgufExportTest, FactorsAndScalesComeBackBitByBit) {
  const RoundTrip cases[] = {
      {"other/gguf-llama-f32", "llama"},
      {"other/gguf-llama-f32/adapter.gguf", "llama"},
      {"other/gguf-llama-embed/adapter.gguf", "llama"},
      {"other/gguf-llama-bf16/adapter.gguf", "llama"},
      {"other/gguf-llama-f16/adapter.gguf", "mistral3"},
      {"other/gguf-llama-q8_0/adapter.gguf", "llama"},
      {"other/gguf-llama-noalpha/adapter.gguf", "llama"},
      {"other/gguf-qwen2-f32", "qwen2"},
      {"peft/cases/llama-qv", "llama"},
      {"peft/cases/llama-bf16", "llama"},
      {"peft/cases/llama-rslora", "llama"},
  };
  for (const RoundTrip& test : cases) {
    SCOPED_TRACE(test.source);
    Read first;
    ASSERT_NO_FATAL_FAILURE(ReadAdapter(ADAPTERD_FIXTURES, test.source, kHeads, first));
    ASSERT_OK_AND_ASSIGN(const std::string file, Export(first, test.architecture));
    TempDir dir;
    dir.Write("x.gguf", file);
    Read second;
    ASSERT_NO_FATAL_FAILURE(ReadAdapter(dir.path(), "x.gguf", kHeads, second));
    EXPECT_EQ(second.factors, first.factors);
    ASSERT_EQ(second.manifest->modules.size(), first.manifest->modules.size());
    for (size_t i = 0; i < first.manifest->modules.size(); ++i) {
      const ModuleInfo& before = first.manifest->modules[i];
      const ModuleInfo& after = second.manifest->modules[i];
      EXPECT_EQ(after.path, before.path);
      EXPECT_EQ(after.kind, before.kind);
      // llama.cpp holds it as F32.
      EXPECT_EQ(static_cast<float>(after.scale), static_cast<float>(before.scale));
      EXPECT_EQ(after.lora_a_dtype, before.lora_a_dtype);
      EXPECT_EQ(after.lora_b_dtype, before.lora_b_dtype);
    }
    ASSERT_OK_AND_ASSIGN(const std::string again, Export(second, test.architecture));
    EXPECT_TRUE(again == file);
  }
}

// PEFT saves the embedding itself beside its pair. The converter drops it without a word.
TEST(GgufExportTest, AnEmbeddingSavedBesideItsPairIsRefused) {
  Read peft;
  ASSERT_NO_FATAL_FAILURE(ReadAdapter(ADAPTERD_FIXTURES, "other/gguf-llama-embed", kHeads, peft));
  const auto exported = Export(peft, "llama");
  EXPECT_THAT(exported, HasReason(Reason::kUnsupportedAdapter));
  EXPECT_THAT(exported, HasErrorMetadata("module", "model.embed_tokens"));
}

// The converter's own file, tensor by tensor: the same names, order of rows and bytes.
TEST(GgufExportTest, AnExportHasTheTensorsOfTheRealConverter) {
  for (const auto& [folder, architecture] :
       {std::pair("gguf-llama-f32", "llama"), std::pair("gguf-qwen2-f32", "qwen2")}) {
    Read peft;
    ASSERT_NO_FATAL_FAILURE(
        ReadAdapter(ADAPTERD_FIXTURES, fmt::format("other/{}", folder), kHeads, peft));
    ASSERT_OK_AND_ASSIGN(const std::string ours, Export(peft, architecture));
    const std::string theirs =
        ReadFile(std::filesystem::path(ADAPTERD_FIXTURES) / "other" / folder / "adapter.gguf");
    const auto tensors_of = [](const std::string& file) {
      std::map<std::string, std::pair<std::string, std::string>> tensors;
      const auto header = ParseGguf(
          [&](int64_t offset, std::span<std::byte> out) {
            std::memcpy(out.data(), file.data() + offset, out.size());
            return absl::OkStatus();
          },
          static_cast<int64_t>(file.size()), "x.gguf");
      for (const GgufTensor& tensor : header.value().tensors) {
        tensors[tensor.name] = {ShapeString(tensor.shape),
                                file.substr(tensor.offset, tensor.bytes)};
      }
      return tensors;
    };
    EXPECT_EQ(tensors_of(ours), tensors_of(theirs)) << folder;
  }
}

// Manifests of one pair, spoiled one at a time.
struct Refusal {
  const char* name;
  std::function<void(AdapterManifest&)> spoil;
  Reason reason;
  const char* message;
  const char* architecture = "llama";
};

AdapterManifest TwoModules() {
  AdapterManifest manifest;
  for (const char* target : {"mlp.up_proj", "self_attn.q_proj"}) {
    ModuleInfo module;
    module.path = fmt::format("model.layers.0.{}", target);
    module.in_features = 8;
    module.out_features = 16;
    module.rank = 4;
    module.scale = 2;
    manifest.modules.push_back(module);
  }
  manifest.head_counts = kHeads;
  return manifest;
}

TEST(GgufExportTest, WhatTheFormatCannotSayIsRefusedByName) {
  constexpr Reason kUnsupported = Reason::kUnsupportedAdapter;
  using M = AdapterManifest;
  const Refusal cases[] = {
      {"architecture", [](M&) {}, Reason::kInvalidField, "mamba", "mamba"},
      {"no architecture", [](M&) {}, Reason::kInvalidField, "expected one of", ""},
      {"module", [](M& m) { m.modules[0].path = "model.layers.0.mlp.fc1"; }, kUnsupported,
       "mlp.fc1"},
      {"flat name", [](M& m) { m.modules[0].path = "lora_unet_x"; }, kUnsupported, "lora_unet_x"},
      {"magnitude", [](M& m) { m.modules[0].has_magnitude = true; }, kUnsupported, "magnitude"},
      {"bias of B", [](M& m) { m.modules[0].has_lora_bias = true; }, kUnsupported, "bias"},
      {"bias", [](M& m) { m.modules[0].replaces_bias = true; }, kUnsupported, "bias"},
      {"replacement", [](M& m) { m.modules[0].kind = ModuleKind::kReplacement; }, kUnsupported,
       "replaces"},
      {"convolution", [](M& m) { m.modules[0].kind = ModuleKind::kConv; }, kUnsupported, "kind"},
      {"embedding", [](M& m) { m.modules[0].kind = ModuleKind::kEmbedding; }, kUnsupported, "kind"},
      {"head as embedding", [](M& m) { m.modules[0].path = "model.embed_tokens"; }, kUnsupported,
       "kind"},
      {"two scales", [](M& m) { m.modules[1].scale = 4; }, kUnsupported, "scale is 4"},
      {"one scale, two ranks", [](M& m) { m.modules[1].rank = 8; }, kUnsupported, "rank 8"},
      {"scale 0",
       [](M& m) {
         for (ModuleInfo& module : m.modules) module.scale = 0;
       },
       kUnsupported, "scale is 0"},
      {"nothing",
       [](M& m) {
         for (ModuleInfo& module : m.modules) module.rank = 0;
       },
       kUnsupported, "no pair"},
      {"heads", [](M& m) { m.head_counts.reset(); }, Reason::kBaseRequired, "attention heads"},
      {"wrong heads",
       [](M& m) {
         m.head_counts = HeadCounts{3, 3};
       },
       Reason::kBaseModelMismatch, "3 heads"},
  };
  for (const Refusal& test : cases) {
    SCOPED_TRACE(test.name);
    AdapterManifest manifest = TwoModules();
    test.spoil(manifest);
    EXPECT_THAT(GgufExport::Create(manifest, test.architecture).status(),
                AllOf(HasReason(test.reason), HasMessage(HasSubstr(test.message))));
  }
}

TEST(GgufExportTest, AScaleOfOneNeedsNoCommonRank) {
  AdapterManifest manifest = TwoModules();
  manifest.modules[0].scale = manifest.modules[1].scale = 1;
  manifest.modules[1].rank = 8;
  EXPECT_THAT(GgufExport::Create(manifest, "llama").status(), IsOk());
  manifest.head_counts.reset();
  EXPECT_THAT(GgufExport::Create(manifest, "qwen2").status(), IsOk());  // keeps its rows
}

TEST(GgufExportTest, OrdersUndoEachOther) {
  std::vector<float> values(24 * 3);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t heads : {1, 2, 3, 4, 6, 12}) {
      const Tensor matrix = TensorOf(dtype, {24, 3}, values);
      const Tensor made = MakeRopeOrder(matrix, heads);
      EXPECT_EQ(FloatsOf(UndoRopeOrder(made, heads)), FloatsOf(matrix)) << heads;
      const bool moves = FloatsOf(made) != FloatsOf(matrix);
      EXPECT_EQ(moves, heads < 12) << heads;
    }
  }
}

}  // namespace
}  // namespace adapterd
