// The files that llama.cpp wrote, against the deltas that llama.cpp and PEFT compute from them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/core/adapter/fixture_numbers.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

using ::testing::NotNull;

constexpr HeadCounts kHeads = {4, 2};  // of the tiny models that the fixtures were made for

struct Case {
  const char* folder;
  size_t modules;
  double scale;
  // What separates the file's dtype from PEFT's F32 factors, by the folder's README; negative: the
  // two tools disagree by design.
  double peft_tolerance;
};

constexpr Case kCases[] = {
    {"gguf-llama-alpha0", 3, 1, -1},  {"gguf-llama-bf16", 9, 2, 3e-4},
    {"gguf-llama-embed", 2, 2, 1e-7}, {"gguf-llama-f16", 9, 2, 4e-5},
    {"gguf-llama-f32", 9, 2, 1e-7},   {"gguf-llama-noalpha", 3, 1, 1e-7},
    {"gguf-llama-q8_0", 9, 1, 6e-4},  {"gguf-llama-q8_0-fallback", 3, 2, 5e-4},
    {"gguf-qwen2-f32", 9, 2, 1e-7},
};

// `delta` in the row order of the file.
std::vector<double> InFileOrder(const std::vector<double>& delta, int64_t columns, int64_t heads) {
  if (heads == 0) return delta;
  const auto rows = static_cast<int64_t>(delta.size()) / columns;
  const int64_t half = rows / heads / 2;
  std::vector<double> ordered(delta.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % (2 * half);
    const int64_t target = row - in_head + in_head % half * 2 + in_head / half;
    std::copy_n(delta.begin() + row * columns, columns, ordered.begin() + target * columns);
  }
  return ordered;
}

// scale * B A in double precision, [out, in]; of an embedding [in, out].
std::vector<double> DeltaOf(const ModuleInfo& module, const ModuleTensors& tensors) {
  const WidePair pair = PairOf(module, tensors, 0);
  const bool transposed = module.kind == ModuleKind::kEmbedding;
  const int64_t rows = transposed ? module.in_features : module.out_features;
  const int64_t columns = transposed ? module.out_features : module.in_features;
  std::vector<double> delta(rows * columns);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (int64_t k = 0; k < module.rank; ++k) {
        sum += transposed ? pair.b.at(column, k) * pair.a.at(k, row)
                          : pair.b.at(row, k) * pair.a.at(k, column);
      }
      delta[row * columns + column] = pair.scale * sum;
    }
  }
  return delta;
}

// `relative`: to the size of `expected`.
void ExpectNear(const std::vector<double>& found, const std::vector<double>& expected,
                double absolute, double relative) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], absolute + relative * std::abs(expected[i])) << i;
  }
}

std::string GgufNameOf(const ModuleInfo& module) {
  return module.lora_a_tensor.substr(0, module.lora_a_tensor.size() - std::strlen(".lora_a"));
}

class GgufFixturesTest : public ::testing::TestWithParam<Case> {};

// llama.cpp's deltas are products in F64 of the dequantised factors, rounded once to F32.
TEST_P(GgufFixturesTest, DeltasAreThoseOfBothTools) {
  const Case& test = GetParam();
  const std::string folder = fmt::format("other/{}", test.folder);
  const auto expected = ReadNumbers(folder + "/expected.safetensors");
  ProblemList problems;
  SourceSpec spec{folder + "/adapter.gguf", ""};
  spec.head_counts = kHeads;
  const auto reader = OpenerAt(ADAPTERD_FIXTURES)(spec, problems);
  ASSERT_FALSE(problems.has_errors()) << problems.ToStatus();
  ASSERT_THAT(reader, NotNull());
  const auto& modules = reader->manifest()->modules;
  ASSERT_EQ(modules.size(), test.modules);
  EXPECT_EQ(expected.size(), 2 * test.modules);
  ModuleCollector collected;
  ThreadPool pool("io", 2);
  ASSERT_THAT(reader->Read(pool, {}, &collected, problems), IsOk());
  for (size_t i = 0; i < modules.size(); ++i) {
    const ModuleInfo& module = modules[i];
    SCOPED_TRACE(module.path);
    EXPECT_EQ(module.scale, test.scale);
    const std::vector<double> delta = DeltaOf(module, collected.at(i));
    const auto& gguf = expected.at(GgufNameOf(module) + ".delta");
    ExpectNear(InFileOrder(delta, gguf.shape[1], module.rope_heads), gguf.values, 0, 0x1p-23);
    const auto peft = expected.at(fmt::format("peft.{}.delta", module.path)).values;
    if (test.peft_tolerance < 0) {
      EXPECT_EQ(peft, std::vector<double>(peft.size()));
    } else {
      ExpectNear(delta, peft, test.peft_tolerance, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, GgufFixturesTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) {
                           std::string name = info.param.folder;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(GgufFixturesTest, EveryFolderIsInATable) {
  std::set<std::string> found;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(ADAPTERD_FIXTURES) / "other")) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("gguf-")) found.insert(name);
  }
  // The first by GgufTest, the second by the tests of the real binary.
  std::set<std::string> known = {"gguf-broken", "gguf-llama-merged"};
  for (const Case& test : kCases) known.insert(test.folder);
  EXPECT_EQ(found, known);
}

// The same content with other rows: the PEFT adapter beside each file has the factors as they were.
TEST(GgufFixturesTest, UndoingTheOrderGivesPeftsBits) {
  for (const char* folder : {"gguf-llama-f32", "gguf-qwen2-f32", "gguf-llama-embed"}) {
    std::map<std::string, std::pair<std::vector<float>, std::vector<float>>> factors[2];
    int which = 0;
    for (const char* file : {"", "/adapter.gguf"}) {
      ProblemList problems;
      SourceSpec spec{fmt::format("other/{}{}", folder, file), ""};
      spec.head_counts = kHeads;
      const auto reader = OpenerAt(ADAPTERD_FIXTURES)(spec, problems);
      ASSERT_THAT(reader, NotNull()) << problems.ToStatus();
      EXPECT_EQ(reader->manifest()->format,
                which == 0 ? AdapterFormat::kPeft : AdapterFormat::kGguf);
      ModuleCollector collected;
      ThreadPool pool("io", 1);
      ASSERT_THAT(reader->Read(pool, {}, &collected, problems), IsOk());
      for (size_t i = 0; i < collected.size(); ++i) {
        // The embedding that PEFT saves beside its pair is no part of any GGUF.
        if (reader->manifest()->modules[i].kind == ModuleKind::kReplacement) continue;
        factors[which][reader->manifest()->modules[i].path] = {FloatsOf(collected.at(i).lora_a),
                                                               FloatsOf(collected.at(i).lora_b)};
      }
      ++which;
    }
    EXPECT_EQ(factors[0], factors[1]) << folder;
  }
}

}  // namespace
}  // namespace adapterd
