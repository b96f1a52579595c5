// Files of diffusers, through the opener.
#include "core/adapter/diffusers_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/adapter/diffusers_keys.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::NotNull;

class DiffusersFile : public AdapterFolder {
 public:
  DiffusersFile() { ConfigText(""); }

  DiffusersFile& AddModule(const std::string& name, int64_t rank = 2) {
    Add(name + ".lora.down.weight", {rank, 6});
    Add(name + ".lora.up.weight", {4, rank});
    return *this;
  }
};

std::vector<std::string> PathsOf(const AdapterReader& reader) {
  std::vector<std::string> paths;
  for (const ModuleInfo& module : reader.manifest()->modules) paths.push_back(module.path);
  return paths;
}

TEST(DiffusersPlanTest, WithoutAlphaTheScaleIsOneAndTheFileIsWarnedOf) {
  DiffusersFile file;
  const auto reader = file.AddModule("unet.mid.to_q").AddModule("unet.mid.to_k", 3).WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->format, AdapterFormat::kDiffusers);
  EXPECT_THAT(PathsOf(*reader), ElementsAre("mid.to_k", "mid.to_q"));
  for (const ModuleInfo& module : reader->manifest()->modules) EXPECT_EQ(module.scale, 1);
  EXPECT_THAT(file.problems().items(),
              ElementsAre(IsWarning("holds no alpha"), IsWarning("ranks that differ")));
}

TEST(DiffusersPlanTest, TheMetadataIsAConfigOfPeft) {
  DiffusersFile file;
  file.AddModule("unet.mid.to_q").AddModule("unet.mid.to_k");
  file.Metadata(kDiffusersMetadata,
                R"({"unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": ["to_q", "to_k"],
                    "unet.use_rslora": false, "unet.alpha_pattern": {"mid.to_k": 1},
                    "unet.lora_dropout": 0.25})");
  const auto reader = file.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_THAT(file.problems().items(), IsEmpty());
  EXPECT_EQ(reader->manifest()->format, AdapterFormat::kDiffusers);
  EXPECT_EQ(reader->manifest()->lora_dropout, 0.25);
  EXPECT_EQ(reader->manifest()->modules[0].scale, 0.5);
  EXPECT_EQ(reader->manifest()->modules[1].scale, 4);
  EXPECT_EQ(reader->manifest()->modules[1].lora_a_tensor, "unet.mid.to_q.lora.down.weight");
}

TEST(DiffusersPlanTest, SeveralComponentsKeepTheirNames) {
  DiffusersFile file;
  file.AddModule("text_encoder.l.0.fc1").AddModule("text_encoder_2.l.0.fc1");
  file.AddModule("unet.mid.to_q").Metadata(kDiffusersMetadata, R"({"unet.r": 2,
      "unet.lora_alpha": 8, "unet.use_rslora": true, "unet.target_modules": ["to_q"]})");
  const auto reader = file.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_THAT(PathsOf(*reader),
              ElementsAre("text_encoder.l.0.fc1", "text_encoder_2.l.0.fc1", "unet.mid.to_q"));
  EXPECT_EQ(reader->manifest()->modules[0].scale, 1);
  EXPECT_DOUBLE_EQ(reader->manifest()->modules[2].scale, 8 / std::sqrt(2.0));
  EXPECT_EQ(reader->manifest()->index.Find({"unet.mid.to_q", "", {}}).value(), 2u);
}

TEST(DiffusersPlanTest, AlphasOfTheFileDivideByTheRank) {
  DiffusersFile file;
  file.AddModule("unet.mid.to_q")
      .AddBytes("unet.mid.to_q.alpha", {}, DType::kI64, NumberBytes<int64_t>(6));
  file.AddModule("unet.mid.to_k")
      .AddBytes("unet.mid.to_k.alpha", {}, DType::kF32, NumberBytes(0.0f));
  const auto reader = file.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << file.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->modules[0].scale, 0);
  EXPECT_EQ(reader->manifest()->modules[1].scale, 3);
}

struct BadDiffusersFile {
  std::string what;
  std::function<void(DiffusersFile&)> make;
  Reason reason;
  std::string about;
};

TEST(DiffusersPlanTest, WhatIsWrongIsNamed) {
  const std::string q = "unet.mid.to_q";
  const std::string config = R"({"unet.r": 2, "unet.target_modules": ["to_q"])";
  const auto with_metadata = [&](const std::string& json) {
    return [=](DiffusersFile& f) { f.AddModule(q).Metadata(kDiffusersMetadata, json); };
  };
  const std::vector<BadDiffusersFile> cases = {
      {"a half pair",
       [&](DiffusersFile& f) {
         f.Add(q + ".lora.down.weight", {2, 6});
       },
       Reason::kInvalidAdapter, q + ".lora.down.weight"},
      {"ranks that differ",
       [&](DiffusersFile& f) {
         f.Add(q + ".lora.down.weight", {2, 6}).Add(q + ".lora.up.weight", {4, 3});
       },
       Reason::kInvalidAdapter, q + ".lora.up.weight"},
      {"one factor in two spellings",
       [&](DiffusersFile& f) {
         f.AddModule(q).Add(q + ".lora_A.weight", {2, 6});
       },
       Reason::kInvalidAdapter, q + ".lora_A.weight"},
      {"names without component beside others",
       [&](DiffusersFile& f) { f.AddModule(q).AddModule("mid.to_q"); }, Reason::kInvalidAdapter,
       "mid.to_q.lora.down.weight"},
      {"an alpha for one of two",
       [&](DiffusersFile& f) {
         f.AddModule(q).AddModule("unet.mid.to_k");
         f.AddBytes(q + ".alpha", {}, DType::kF32, NumberBytes(1.0f));
       },
       Reason::kInvalidAdapter, "unet.mid.to_k.lora.down.weight"},
      {"weights of the base",
       [&](DiffusersFile& f) {
         f.AddModule(q).Add(q + ".weight", {4, 6});
       },
       Reason::kInvalidAdapter, q + ".weight"},
      {"metadata that is no JSON", with_metadata("{"), Reason::kMalformedConfig, ""},
      {"metadata that is a list", with_metadata("[]"), Reason::kMalformedConfig, ""},
      {"metadata without tensors", [](DiffusersFile& f) { f.Metadata(kDiffusersMetadata, "{}"); },
       Reason::kInvalidAdapter, ""},
      {"a config of another component", with_metadata(R"({"text_encoder.r": 2})"),
       Reason::kInvalidAdapter, ""},
      {"a config of no component", with_metadata(R"({"r": 2, "target_modules": ["to_q"]})"),
       Reason::kInvalidAdapter, ""},
      {"another rank", with_metadata(R"({"unet.r": 3, "unet.target_modules": ["to_q"]})"),
       Reason::kInvalidAdapter, q + ".lora.down.weight"},
      {"another target", with_metadata(R"({"unet.r": 2, "unet.target_modules": ["to_k"]})"),
       Reason::kInvalidAdapter, q + ".lora.down.weight"},
      {"a switch that is not read", with_metadata(config + R"(, "unet.use_qalora": true})"),
       Reason::kUnsupportedAdapter, "use_qalora"},
      {"an alpha beside the config",
       [&](DiffusersFile& f) {
         f.AddModule(q).AddBytes(q + ".alpha", {}, DType::kF32, NumberBytes(1.0f));
         f.Metadata(kDiffusersMetadata, config + "}");
       },
       Reason::kInvalidAdapter, q + ".alpha"},
      {"a language model without its config",
       [](DiffusersFile& f) {
         f.Add("transformer.h.0.attn.c_attn.lora_A.weight", {2, 6});
         f.Add("transformer.h.0.attn.c_attn.lora_B.weight", {4, 2});
       },
       Reason::kSourceNotFound, ""},
      {"names that no format has",
       [](DiffusersFile& f) {
         f.Add("w_a_000", {2, 6});
       },
       Reason::kInvalidAdapter, "w_a_000"},
  };
  for (const BadDiffusersFile& c : cases) {
    SCOPED_TRACE(c.what);
    DiffusersFile file;
    c.make(file);
    EXPECT_EQ(file.WriteAndOpen(), nullptr);
    EXPECT_THAT(file.problems().items(), Contains(IsError(c.reason, c.about)));
  }
}

}  // namespace
}  // namespace adapterd
