// BD-LoRA, beside its definition: block i of the inputs times block i of the weight.
#include "core/adapter/peft_block_diagonal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::NotNull;

constexpr char kBlocks[] = R"({"target_modules_bd_a": ["down"], "target_modules_bd_b": ["up"],
                              "nblocks": 2})";

std::string A(const std::string& module) { return "base_model.model." + module + ".lora_A.weight"; }
std::string B(const std::string& module) { return "base_model.model." + module + ".lora_B.weight"; }

class BlocksFolder : public AdapterFolder {
 public:
  explicit BlocksFolder(const std::string& blocks = kBlocks) {
    Config({{"use_bdlora", blocks},
            {"r", "4"},
            {"target_modules", R"(["down_proj", "up_proj", "gate"])"}});
  }
};

std::vector<float> Floats(const Tensor& tensor) {
  std::vector<float> values(tensor.bytes().size() / FloatBytes(tensor.dtype()));
  ConvertToF32(tensor.dtype(), tensor.bytes().data(), values.data(),
               static_cast<int64_t>(values.size()));
  return values;
}

// y = W x of BlockDiagonalLinear (peft/tuners/lora/variants.py): x is cut into as many blocks as W
// [out, in / blocks] is by its rows, and each multiplied by its own. W holds (i % 256 + 1) / 64.
std::vector<float> ByDefinition(int64_t out, int64_t cols, int64_t blocks,
                                const std::vector<float>& x) {
  std::vector<float> y(out);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t n = 0; n < out / blocks; ++n) {
      const int64_t row = block * (out / blocks) + n;
      for (int64_t m = 0; m < cols; ++m) {
        const auto weight = static_cast<float>((row * cols + m) % 256 + 1) / 64;
        y[row] += weight * x[block * cols + m];
      }
    }
  }
  return y;
}

// The same by the whole matrix.
std::vector<float> ByMatrix(const Tensor& matrix, const std::vector<float>& x) {
  const std::vector<float> values = Floats(matrix);
  const auto cols = static_cast<int64_t>(x.size());
  EXPECT_EQ(matrix.shape()[1], cols);
  std::vector<float> y(matrix.shape()[0]);
  for (int64_t row = 0; row < matrix.shape()[0]; ++row) {
    for (int64_t col = 0; col < cols; ++col) y[row] += values[row * cols + col] * x[col];
  }
  return y;
}

TEST(PeftBlockDiagonalTest, EitherFactorIsMadeWhole) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    BlocksFolder folder;
    folder.Add(A("m.0.down_proj"), {4, 3}, dtype).Add(B("m.0.down_proj"), {5, 4}, dtype);
    folder.Add(A("m.0.up_proj"), {4, 5}, dtype).Add(B("m.0.up_proj"), {6, 2}, dtype);
    const auto reader = folder.WriteAndOpen();
    ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
    const std::vector<ModuleInfo>& modules = reader->manifest()->modules;
    EXPECT_EQ(modules[0].in_features, 6);
    EXPECT_EQ(modules[0].rank, 4);
    EXPECT_EQ(modules[0].out_features, 5);
    EXPECT_EQ(modules[1].in_features, 5);
    EXPECT_EQ(modules[1].rank, 4);
    EXPECT_EQ(modules[1].out_features, 6);
    EXPECT_EQ(modules[1].scale, 1);
    ModuleCollector read;
    ASSERT_THAT(folder.Read(*reader, &read), IsOk());
    const std::vector<float> x = {1, -2, 4, 8, -16, 32};
    EXPECT_EQ(ByMatrix(read.at(0).lora_a, x), ByDefinition(4, 3, 2, x));
    const std::vector<float> h = {1, -2, 4, 8};
    EXPECT_EQ(ByMatrix(read.at(1).lora_b, h), ByDefinition(6, 2, 2, h));
    EXPECT_THAT(read.at(0).lora_b.shape(), testing::ElementsAre(5, 4));
  }
}

TEST(PeftBlockDiagonalTest, TheRevisionTellsBlocksFromAPlainFactor) {
  BlocksFolder blocks;
  blocks.Add(A("m.0.down_proj"), {4, 3}).Add(B("m.0.down_proj"), {5, 4});
  BlocksFolder plain("null");
  plain.Add(A("m.0.down_proj"), {4, 3}).Add(B("m.0.down_proj"), {5, 4});
  const auto one = blocks.WriteAndOpen();
  const auto other = plain.WriteAndOpen();
  EXPECT_NE(blocks.Read(*one).value(), plain.Read(*other).value());
}

struct BadFolder {
  std::string what;
  std::string blocks;
  std::function<void(AdapterFolder&)> make;
  Reason reason;
  std::string about;
};

TEST(PeftBlockDiagonalTest, WhatIsWrongIsNamed) {
  const auto down = [](const Shape& a, const Shape& b) {
    return [=](AdapterFolder& f) { f.Add(A("m.0.down_proj"), a).Add(B("m.0.down_proj"), b); };
  };
  const auto good = down({4, 3}, {5, 4});
  const std::vector<BadFolder> cases = {
      {"neither factor", kBlocks, [](AdapterFolder& f) { f.AddPair("m.0.gate", 4); },
       Reason::kInvalidAdapter, A("m.0.gate")},
      {"both factors", R"({"target_modules_bd_a": ["down"], "target_modules_bd_b": ["proj"]})",
       good, Reason::kInvalidAdapter, A("m.0.down_proj")},
      {"a part of the path", R"({"target_modules_bd_a": ["0.down"]})", good,
       Reason::kUnsupportedAdapter, A("m.0.down_proj")},
      {"rows that the blocks do not divide", R"({"target_modules_bd_a": ["down"], "nblocks": 3})",
       good, Reason::kInvalidAdapter, A("m.0.down_proj")},
      {"ranks that differ", kBlocks,
       [](AdapterFolder& f) {
         f.Add(A("m.0.up_proj"), {4, 3}).Add(B("m.0.up_proj"), {6, 4});
       },
       Reason::kInvalidAdapter, B("m.0.up_proj")},
      {"no blocks", R"({"target_modules_bd_a": ["down"], "nblocks": 0})", good,
       Reason::kMalformedConfig, "use_bdlora.nblocks"},
      {"blocks in words", R"({"target_modules_bd_a": ["down"], "nblocks": "2"})", good,
       Reason::kMalformedConfig, "use_bdlora.nblocks"},
      {"a number", "2", good, Reason::kMalformedConfig, "use_bdlora"},
      {"an unknown key", R"({"target_modules_bd_a": ["down"], "more": 1})", good,
       Reason::kUnsupportedAdapter, "use_bdlora.more"},
  };
  for (const BadFolder& c : cases) {
    SCOPED_TRACE(c.what);
    BlocksFolder folder(c.blocks);
    c.make(folder);
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    EXPECT_THAT(folder.problems().items(), Contains(IsError(c.reason, c.about)));
  }
  for (const char* key : {"use_dora", "lora_bias"}) {
    BlocksFolder folder;
    good(folder);
    folder.Config({{key, "true"}});
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    EXPECT_THAT(folder.problems().items(),
                Contains(IsError(Reason::kUnsupportedAdapter, "use_bdlora")));
  }
}

TEST(PeftBlockDiagonalTest, WithoutMatchStrictTheOthersArePlain) {
  BlocksFolder folder(R"({"target_modules_bd_a": ["down"], "match_strict": false})");
  folder.AddPair("m.0.gate", 4);
  EXPECT_THAT(folder.WriteAndOpen(), NotNull()) << folder.problems().ToStatus();
}

}  // namespace
}  // namespace adapterd
