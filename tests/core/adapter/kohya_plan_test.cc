// Files of sd-scripts, through the opener.
#include "core/adapter/kohya_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::NotNull;

constexpr char kMid[] = "lora_unet_mid_block_conv";
constexpr char kDown[] = "lora_unet_mid_block_conv.lora_down.weight";
constexpr char kUp[] = "lora_unet_mid_block_conv.lora_up.weight";
constexpr char kAlpha[] = "lora_unet_mid_block_conv.alpha";

// One module of sd-scripts, of rank 2.
class KohyaFile : public AdapterFolder {
 public:
  KohyaFile() { ConfigText(""); }

  KohyaFile& AddModule(const std::string& name = kMid, int64_t rank = 2) {
    Add(name + ".lora_down.weight", {rank, 6});
    Add(name + ".lora_up.weight", {4, rank});
    return *this;
  }
  KohyaFile& Alpha(float alpha) {
    AddBytes(kAlpha, {}, DType::kF32, NumberBytes(alpha));
    return *this;
  }
};

TEST(KohyaPlanTest, RanksAndAlphasBelongToTheModule) {
  KohyaFile file;
  file.AddModule().Alpha(8).AddModule("lora_te_fc1", 3);
  file.AddBytes("lora_te_fc1.alpha", {}, DType::kF32, NumberBytes(1.0f));
  const auto reader = file.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  const AdapterManifest& manifest = *reader->manifest();
  EXPECT_EQ(manifest.format, AdapterFormat::kKohya);
  EXPECT_EQ(manifest.method, "lora");
  ASSERT_EQ(manifest.modules.size(), 2u);
  EXPECT_EQ(manifest.modules[0].path, "lora_te_fc1");
  EXPECT_EQ(manifest.modules[0].scale, 1.0 / 3);
  EXPECT_EQ(manifest.modules[1].path, kMid);
  EXPECT_EQ(manifest.modules[1].scale, 4);
  EXPECT_EQ(manifest.modules[1].alpha, 8);
  EXPECT_THAT(file.problems().items(), ElementsAre(IsWarning("underscores for dots")));
}

TEST(KohyaPlanTest, AnAlphaMayBeOfAnyNumericType) {
  const std::vector<std::pair<DType, std::string>> alphas = {
      {DType::kF64, NumberBytes(6.0)},
      {DType::kF32, NumberBytes(6.0f)},
      {DType::kF16, NumberBytes<uint16_t>(0x4600)},
      {DType::kBF16, NumberBytes<uint16_t>(0x40c0)},
      {DType::kI64, NumberBytes<int64_t>(6)},
      {DType::kU64, NumberBytes<uint64_t>(6)},
      {DType::kI32, NumberBytes<int32_t>(6)},
      {DType::kU32, NumberBytes<uint32_t>(6)},
      {DType::kI16, NumberBytes<int16_t>(6)},
      {DType::kU16, NumberBytes<uint16_t>(6)},
      {DType::kI8, NumberBytes<int8_t>(6)},
      {DType::kU8, NumberBytes<uint8_t>(6)},
  };
  std::vector<std::string> revisions;
  for (const auto& [dtype, bytes] : alphas) {
    for (const Shape& shape : {Shape{}, Shape{1}}) {
      SCOPED_TRACE(DTypeName(dtype));
      KohyaFile file;
      file.AddModule().AddBytes(kAlpha, shape, dtype, bytes);
      const auto reader = file.WriteAndOpen();
      ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
      EXPECT_EQ(reader->manifest()->modules[0].scale, 3);
      revisions.push_back(file.Read(*reader).value());
    }
  }
  EXPECT_THAT(revisions, testing::Each(revisions[0]));
}

TEST(KohyaPlanTest, WithoutAlphaOrWithZeroItIsTheRank) {
  KohyaFile without;
  const auto reader = without.AddModule().WriteAndOpen();
  ASSERT_THAT(reader, NotNull());
  EXPECT_EQ(reader->manifest()->modules[0].scale, 1);
  EXPECT_EQ(reader->manifest()->modules[0].alpha, 2);
  EXPECT_THAT(without.problems().items(), Contains(IsWarning("1 of 1 modules have no alpha")));
  KohyaFile zero;
  const auto of_zero = zero.AddModule().Alpha(0).WriteAndOpen();
  ASSERT_THAT(of_zero, NotNull());
  EXPECT_EQ(of_zero->manifest()->modules[0].scale, 1);
  EXPECT_THAT(zero.problems().items(), Contains(IsWarning("an alpha of 0")));
}

TEST(KohyaPlanTest, ConvolutionsKeepTheirKernels) {
  KohyaFile file;
  file.Add(kDown, {2, 6, 3, 3}).Add(kUp, {4, 2, 1, 1});
  file.Alpha(2);
  const auto reader = file.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  const ModuleInfo& module = reader->manifest()->modules[0];
  EXPECT_EQ(module.kind, ModuleKind::kConv);
  EXPECT_THAT(module.kernel, ElementsAre(3, 3));
  EXPECT_EQ(module.in_features, 6);
}

TEST(KohyaPlanTest, DoraScalesOutputs) {
  for (const Shape& shape : {Shape{4}, Shape{4, 1}}) {
    KohyaFile file;
    file.AddModule().Alpha(2).Add(std::string(kMid) + ".dora_scale", shape);
    const auto reader = file.WriteAndOpen();
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    EXPECT_EQ(reader->manifest()->method, "dora");
    EXPECT_TRUE(reader->manifest()->modules[0].has_magnitude);
  }
}

struct BadFile {
  std::string what;
  std::function<void(KohyaFile&)> make;
  Reason reason;
  std::string tensor;
};

TEST(KohyaPlanTest, WhatIsWrongIsNamed) {
  const std::string mid = kMid;
  const std::vector<BadFile> cases = {
      {"down alone",
       [](KohyaFile& f) {
         f.Add(kDown, {2, 6});
       },
       Reason::kInvalidAdapter, kDown},
      {"up alone",
       [](KohyaFile& f) {
         f.Add(kUp, {4, 2});
       },
       Reason::kInvalidAdapter, kUp},
      {"alpha alone", [](KohyaFile& f) { f.AddModule("lora_unet_a").Alpha(1); },
       Reason::kInvalidAdapter, kAlpha},
      {"magnitude alone",
       [&](KohyaFile& f) {
         f.AddModule("lora_unet_a").Add(mid + ".dora_scale", {4, 1});
       },
       Reason::kInvalidAdapter, mid + ".dora_scale"},
      {"ranks that differ",
       [](KohyaFile& f) {
         f.Add(kDown, {2, 6}).Add(kUp, {4, 3});
       },
       Reason::kInvalidAdapter, kUp},
      {"rank 0",
       [](KohyaFile& f) {
         f.Add(kDown, {0, 6}).Add(kUp, {4, 0});
       },
       Reason::kInvalidAdapter, kDown},
      {"a kernel on one side alone",
       [](KohyaFile& f) {
         f.Add(kDown, {2, 6, 3, 3}).Add(kUp, {4, 2});
       },
       Reason::kInvalidAdapter, kDown},
      {"a kernel in up",
       [](KohyaFile& f) {
         f.Add(kDown, {2, 6, 3, 3}).Add(kUp, {4, 2, 3, 3});
       },
       Reason::kInvalidAdapter, kDown},
      {"factors of integers",
       [](KohyaFile& f) {
         f.Add(kDown, {2, 6}, DType::kI8).Add(kUp, {4, 2});
       },
       Reason::kUnsupportedDtype, kDown},
      {"two alphas",
       [](KohyaFile& f) { f.AddModule().AddBytes(kAlpha, {2}, DType::kF32, std::string(8, '\0')); },
       Reason::kInvalidAdapter, kAlpha},
      {"no alpha in it", [](KohyaFile& f) { f.AddModule().AddBytes(kAlpha, {0}, DType::kF32, ""); },
       Reason::kInvalidAdapter, kAlpha},
      {"an alpha of a type without numbers",
       [](KohyaFile& f) { f.AddModule().AddBytes(kAlpha, {}, DType::kBool, NumberBytes<char>(1)); },
       Reason::kUnsupportedDtype, kAlpha},
      {"alpha that is no number",
       [](KohyaFile& f) { f.AddModule().Alpha(std::numeric_limits<float>::quiet_NaN()); },
       Reason::kNonFiniteWeights, kAlpha},
      {"endless alpha",
       [](KohyaFile& f) { f.AddModule().Alpha(std::numeric_limits<float>::infinity()); },
       Reason::kNonFiniteWeights, kAlpha},
      {"huge alpha", [](KohyaFile& f) { f.AddModule().Alpha(1e30f); }, Reason::kInvalidAdapter,
       kAlpha},
      {"magnitudes of the inputs",
       [&](KohyaFile& f) {
         f.AddModule().Alpha(1).Add(mid + ".dora_scale", {1, 6});
       },
       Reason::kUnsupportedAdapter, mid + ".dora_scale"},
      {"magnitudes of another size",
       [&](KohyaFile& f) {
         f.AddModule().Alpha(1).Add(mid + ".dora_scale", {5, 1});
       },
       Reason::kInvalidAdapter, mid + ".dora_scale"},
      {"LoKr",
       [&](KohyaFile& f) {
         f.AddModule("lora_unet_a").Add(mid + ".lokr_w1", {2, 2});
       },
       Reason::kUnsupportedAdapter, mid + ".lokr_w1"},
      {"Tucker's form",
       [&](KohyaFile& f) {
         f.AddModule().Add(mid + ".lora_mid.weight", {2, 2, 3, 3});
       },
       Reason::kUnsupportedAdapter, mid + ".lora_mid.weight"},
      {"a part that nobody knows", [&](KohyaFile& f) { f.AddModule().Add(mid + ".more", {2}); },
       Reason::kInvalidAdapter, mid + ".more"},
      {"a name with a tab",
       [&](KohyaFile& f) {
         f.AddModule().Add("a\tb.lora_up.weight", {2, 2});
       },
       Reason::kInvalidAdapter, ""},
  };
  for (const BadFile& c : cases) {
    SCOPED_TRACE(c.what);
    KohyaFile file;
    c.make(file);
    EXPECT_EQ(file.WriteAndOpen(), nullptr);
    EXPECT_THAT(file.problems().items(), Contains(IsError(c.reason, c.tensor)));
  }
}

// A checkpoint "base" with these weights [4, 6].
void WriteBase(const AdapterFolder& folder, const std::vector<std::string>& paths,
               const Shape& shape = {4, 6}) {
  const std::vector<float> zeros(24);
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& path : paths) {
    tensors.push_back({path + ".weight", DType::kF32, shape, std::as_bytes(std::span(zeros))});
  }
  folder.dir().Write("base/model.safetensors", SerializeSafetensors(tensors, {}).value());
}

TEST(KohyaPlanTest, NamesAreResolvedAgainstTheBase) {
  for (const char* path : {"mid_block.conv", "unet.mid_block.conv", "model.unet.mid_block.conv"}) {
    KohyaFile file;
    file.AddModule().Alpha(2).Write();
    WriteBase(file, {path, "another"});
    const auto reader = file.Open("", "base");
    ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
    EXPECT_EQ(reader->manifest()->modules[0].path, path);
    EXPECT_EQ(reader->base()->bindings[0].weight->tensor, std::string(path) + ".weight");
    EXPECT_THAT(file.problems().items(), IsEmpty());
  }
}

TEST(KohyaPlanTest, TheRevisionIsOfTheNamesInTheFile) {
  KohyaFile file;
  file.AddModule().Alpha(2).Write();
  WriteBase(file, {"mid_block.conv"});
  const auto alone = file.Open();
  const auto bound = file.Open("", "base");
  ASSERT_THAT(bound, NotNull());
  EXPECT_EQ(file.Read(*alone).value(), file.Read(*bound).value());
}

TEST(KohyaPlanTest, AWholePathGoesBeforeTheEndOfOne) {
  KohyaFile file;
  file.AddModule().Alpha(2).Write();
  WriteBase(file, {"vae.mid_block.conv", "mid_block.conv"});
  const auto reader = file.Open("", "base");
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->modules[0].path, "mid_block.conv");
}

TEST(KohyaPlanTest, AnAmbiguousNameIsRefusedWithItsCandidates) {
  KohyaFile file;
  file.AddModule().Alpha(2).Write();
  WriteBase(file, {"mid_block.conv", "mid.block_conv"});
  EXPECT_EQ(file.Open("", "base"), nullptr);
  ASSERT_THAT(file.problems().items(), Contains(IsError(Reason::kBaseModelMismatch, kDown)));
  const std::string message(file.problems().ToStatus().message());
  EXPECT_THAT(message, HasSubstr("mid_block.conv"));
  EXPECT_THAT(message, HasSubstr("mid.block_conv"));
}

TEST(KohyaPlanTest, TwoComponentsThatMeanOneModuleCollide) {
  KohyaFile file;
  file.AddModule("lora_te1_mid_block_conv").AddModule("lora_te2_mid_block_conv").Write();
  WriteBase(file, {"mid_block.conv"});
  EXPECT_EQ(file.Open("", "base"), nullptr);
  EXPECT_THAT(
      file.problems().items(),
      Contains(IsError(Reason::kInvalidAdapter, "lora_te2_mid_block_conv.lora_down.weight")));
  EXPECT_THAT(file.Open(), NotNull());
}

TEST(KohyaPlanTest, AKernelOfOneElementMayBelongToAMatrix) {
  KohyaFile file;
  file.Add(kDown, {2, 6, 1, 1}).Add(kUp, {4, 2, 1, 1}).Write();
  EXPECT_EQ(file.Open()->manifest()->modules[0].kind, ModuleKind::kConv);
  WriteBase(file, {"mid_block.conv"});
  const auto reader = file.Open("", "base");
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->modules[0].kind, ModuleKind::kLinear);
  WriteBase(file, {"mid_block.conv"}, {4, 6, 1, 1});
  EXPECT_EQ(file.Open("", "base")->manifest()->modules[0].kind, ModuleKind::kConv);
}

}  // namespace
}  // namespace adapterd
