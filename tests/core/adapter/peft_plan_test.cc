// Config and tensors against each other, through the opener.
#include "core/adapter/peft_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/adapter/peft_keys.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::NotNull;
using ::testing::UnorderedElementsAre;

std::string A(const std::string& module) { return "base_model.model." + module + ".lora_A.weight"; }
std::string B(const std::string& module) { return "base_model.model." + module + ".lora_B.weight"; }

TEST(PeftPlanTest, ModulesAreSortedWithTheirNumbers) {
  AdapterFolder folder;
  folder.AddPair("m.10.v_proj", 2, 6, 5).AddPair("m.2.q_proj", 3, 4, 7);
  folder.Config({{"r", "2"},
                 {"lora_alpha", "5"},
                 {"rank_pattern", R"({"q_proj": 3})"},
                 {"alpha_pattern", R"({"m.2.q_proj": 1})"},
                 {"lora_dropout", "0.25"},
                 {"base_model_name_or_path", "\"base\""}});
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_THAT(folder.problems().items(), IsEmpty());
  const AdapterManifest& manifest = *reader->manifest();
  EXPECT_EQ(manifest.format, AdapterFormat::kPeft);
  EXPECT_EQ(manifest.method, "lora");
  EXPECT_EQ(manifest.base_model, "base");
  EXPECT_EQ(manifest.lora_dropout, 0.25);
  EXPECT_EQ(manifest.file_bytes,
            std::filesystem::file_size(folder.dir() / AdapterFolder::kWeights));
  ASSERT_EQ(manifest.modules.size(), 2u);
  const ModuleInfo& v = manifest.modules[0];
  EXPECT_EQ(v.path, "m.10.v_proj");
  EXPECT_EQ(v.rank, 2);
  EXPECT_EQ(v.in_features, 6);
  EXPECT_EQ(v.out_features, 5);
  EXPECT_EQ(v.alpha, 5);
  EXPECT_EQ(v.scale, 2.5);
  EXPECT_EQ(v.lora_a_tensor, A("m.10.v_proj"));
  EXPECT_EQ(v.lora_b_tensor, B("m.10.v_proj"));
  const ModuleInfo& q = manifest.modules[1];
  EXPECT_EQ(q.path, "m.2.q_proj");
  EXPECT_EQ(q.scale, 1.0 / 3);
  EXPECT_EQ(manifest.parameter_count(), 2 * (6 + 5) + 3 * (4 + 7));
  EXPECT_EQ(manifest.original_parameter_count(), 6 * 5 + 4 * 7);
  EXPECT_THAT(manifest.ranks(), ElementsAre(2, 3));
  EXPECT_THAT(manifest.target_modules(), ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(manifest.layer_count(), 2);
  EXPECT_EQ(manifest.index.Find({"m.2.q_proj", "", {}}).value(), 1u);
}

TEST(PeftPlanTest, RsLoraDividesByTheRoot) {
  AdapterFolder folder;
  folder.AddPair("q_proj", 2).Config({{"use_rslora", "true"}, {"lora_alpha", "3"}});
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull());
  EXPECT_EQ(reader->manifest()->method, "rslora");
  EXPECT_EQ(reader->manifest()->modules[0].scale, 3 / std::sqrt(2.0));
}

TEST(PeftPlanTest, FactorsMayDifferInDtype) {
  AdapterFolder folder;
  folder.Add(A("q_proj"), {2, 4}, DType::kBF16).Add(B("q_proj"), {3, 2}, DType::kF32);
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull());
  const ModuleInfo& module = reader->manifest()->modules[0];
  EXPECT_EQ(module.lora_a_dtype, DType::kBF16);
  EXPECT_EQ(module.lora_b_dtype, DType::kF32);
}

TEST(PeftPlanTest, BaseModelsMustAgreeWhenBothAreNamed) {
  AdapterFolder folder;
  folder.AddPair("q_proj").Config({{"base_model_name_or_path", "\"llama\""}}).Write();
  EXPECT_THAT(folder.Open("llama"), NotNull());
  EXPECT_EQ(folder.Open("qwen"), nullptr);
  ASSERT_THAT(folder.problems().items(),
              ElementsAre(IsError(Reason::kBaseModelMismatch, "base_model_name_or_path")));
  EXPECT_EQ(folder.problems().items()[0].expected, "qwen");
  EXPECT_EQ(folder.problems().items()[0].actual, "llama");
  folder.Config({{"base_model_name_or_path", "null"}}).Write();
  const auto reader = folder.Open("qwen");
  ASSERT_THAT(reader, NotNull());
  EXPECT_EQ(reader->manifest()->base_model, "qwen");
}

struct BadFile {
  std::string what;
  std::function<void(AdapterFolder&)> make;
  Reason reason;
  std::string about;  // field or tensor
};

TEST(PeftPlanTest, BrokenPairsAreNamed) {
  const std::string q = "m.0.q_proj";
  std::string deep_path;
  for (size_t i = 0; i < kMaxPathComponents; ++i) deep_path += "m.";
  const std::vector<BadFile> cases = {
      {"no tensors", [](AdapterFolder& f) {}, Reason::kInvalidAdapter, ""},
      {"A alone",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4});
       },
       Reason::kInvalidAdapter, A(q)},
      {"B alone",
       [&](AdapterFolder& f) {
         f.Add(B(q), {4, 2});
       },
       Reason::kInvalidAdapter, B(q)},
      {"ranks of A and B",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}).Add(B(q), {4, 3});
       },
       Reason::kInvalidAdapter, B(q)},
      {"rank of the config", [&](AdapterFolder& f) { f.AddPair(q, 3); }, Reason::kInvalidAdapter,
       A(q)},
      {"rank of the pattern",
       [&](AdapterFolder& f) {
         f.AddPair(q, 2).Config({{"rank_pattern", R"({"q_proj": 4})"}});
       },
       Reason::kInvalidAdapter, A(q)},
      {"1-D A",
       [&](AdapterFolder& f) {
         f.Add(A(q), {8}).Add(B(q), {4, 2});
       },
       Reason::kInvalidAdapter, A(q)},
      {"scalar B",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}).Add(B(q), {});
       },
       Reason::kInvalidAdapter, B(q)},
      {"3-D A",
       [&](AdapterFolder& f) {
         f.Add(A(q), {1, 2, 4}).Add(B(q), {4, 2});
       },
       Reason::kInvalidAdapter, A(q)},
      {"3-D B",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}).Add(B(q), {4, 2, 1});
       },
       Reason::kInvalidAdapter, B(q)},
      {"empty A",
       [&](AdapterFolder& f) {
         f.Add(A(q), {0}).Add(B(q), {4, 2});
       },
       Reason::kInvalidAdapter, A(q)},
      {"rank 0",
       [&](AdapterFolder& f) {
         f.Add(A(q), {0, 4}).Add(B(q), {4, 2});
       },
       Reason::kInvalidAdapter, A(q)},
      {"no columns in B",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}).Add(B(q), {4, 0});
       },
       Reason::kInvalidAdapter, B(q)},
      {"int8 A",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}, DType::kI8).Add(B(q), {4, 2});
       },
       Reason::kUnsupportedDtype, A(q)},
      {"f64 B",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}).Add(B(q), {4, 2}, DType::kF64);
       },
       Reason::kUnsupportedDtype, B(q)},
      {"fp8 A",
       [&](AdapterFolder& f) {
         f.Add(A(q), {2, 4}, DType::kF8E4M3).Add(B(q), {4, 2});
       },
       Reason::kUnsupportedDtype, A(q)},
      {"not targeted", [&](AdapterFolder& f) { f.AddPair("m.0.o_proj"); }, Reason::kInvalidAdapter,
       A("m.0.o_proj")},
      {"excluded",
       [&](AdapterFolder& f) {
         f.AddPair(q).Config({{"exclude_modules", R"(["q_proj"])"}});
       },
       Reason::kInvalidAdapter, A(q)},
      {"other layer",
       [&](AdapterFolder& f) {
         f.AddPair("m.l.0.q_proj").Config({{"layers_to_transform", "[1]"}});
       },
       Reason::kInvalidAdapter, A("m.l.0.q_proj")},
      {"unknown tensor", [&](AdapterFolder& f) { f.AddPair(q).Add("x.mystery", {3}); },
       Reason::kInvalidAdapter, "x.mystery"},
      {"same factor twice",
       [&](AdapterFolder& f) {
         f.AddPair(q).Add("zz._orig_mod.x", {1}).Add(q + ".lora_A.weight", {2, 4});
       },
       Reason::kInvalidAdapter, q + ".lora_A.weight"},
      {"two adapters",
       [&](AdapterFolder& f) {
         f.Add("a.q_proj.lora_A.x.weight", {2, 4}).Add("a.q_proj.lora_B.x.weight", {4, 2});
         f.Add("b.q_proj.lora_A.y.weight", {2, 4}).Add("b.q_proj.lora_B.y.weight", {4, 2});
       },
       Reason::kInvalidAdapter, ""},
      {"some with adapter name",
       [&](AdapterFolder& f) {
         f.AddPair(q);
         f.Add("b.q_proj.lora_A.y.weight", {2, 4}).Add("b.q_proj.lora_B.y.weight", {4, 2});
       },
       Reason::kInvalidAdapter, ""},
      {"deep path", [&](AdapterFolder& f) { f.AddPair(deep_path + "q_proj"); },
       Reason::kInvalidAdapter, ""},
      {"control character", [&](AdapterFolder& f) { f.AddPair("a\tb.q_proj"); },
       Reason::kInvalidAdapter, "base_model.model.a\\x09b.q_proj.lora_A.weight"},
  };
  for (const BadFile& bad : cases) {
    SCOPED_TRACE(bad.what);
    AdapterFolder folder;
    bad.make(folder);
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    ASSERT_TRUE(folder.problems().has_errors());
    EXPECT_THAT(folder.problems().items(), ::testing::Contains(IsError(bad.reason, bad.about)));
    EXPECT_THAT(folder.problems().ToStatus(), HasReason(bad.reason));
    for (const Problem& problem : folder.problems().items()) {
      if (problem.severity == Severity::kError && problem.field.empty()) {
        EXPECT_EQ(problem.file, AdapterFolder::kWeights);
      }
    }
  }
}

TEST(PeftPlanTest, AllPlantedProblemsAreFound) {
  AdapterFolder folder;
  folder.AddPair("m.0.q_proj");
  folder.Add(A("m.1.q_proj"), {2, 4});
  folder.Add(A("m.2.q_proj"), {2, 4}, DType::kI8).Add(B("m.2.q_proj"), {3, 2});
  folder.AddPair("m.3.q_proj", 5);
  folder.Add("base_model.model.m.4.mystery", {2});
  folder.Config({{"use_future_maths", "true"}});
  EXPECT_EQ(folder.WriteAndOpen(), nullptr);
  EXPECT_THAT(
      folder.problems().items(),
      UnorderedElementsAre(IsError(Reason::kUnsupportedAdapter, "use_future_maths"),
                           IsError(Reason::kInvalidAdapter, A("m.1.q_proj")),
                           IsError(Reason::kUnsupportedDtype, A("m.2.q_proj")),
                           IsError(Reason::kInvalidAdapter, A("m.3.q_proj")),
                           IsError(Reason::kInvalidAdapter, "base_model.model.m.4.mystery")));
  EXPECT_THAT(folder.problems().ToStatus(), AllOf(HasReason(Reason::kUnsupportedAdapter),
                                                  HasErrorMetadata("field", "use_future_maths"),
                                                  HasMessage(HasSubstr("and 4 more errors"))));
}

// A bad rank or alpha in the config must not look like a problem of the tensors.
TEST(PeftPlanTest, ConfigProblemsDoNotRepeatPerTensor) {
  for (const AdapterFolder::Keys& keys :
       std::vector<AdapterFolder::Keys>{{{"r", "0"}},
                                        {{"lora_alpha", "null"}},
                                        {{"target_modules", "[]"}},
                                        {{"rank_pattern", R"({"q_proj": 0})"}},
                                        {{"exclude_modules", "3"}},
                                        {{"target_modules", "\"(\""}},
                                        {{"alpha_pattern", R"({"(": 1})"}}}) {
    AdapterFolder folder;
    folder.AddPair("m.0.q_proj").AddPair("m.1.q_proj").Config(keys);
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    EXPECT_EQ(folder.problems().items().size(), 1u) << keys[0].first;
    EXPECT_THAT(folder.problems().ToStatus(), HasReason(Reason::kMalformedConfig));
  }
}

TEST(PeftPlanTest, TargetsWithoutTensorsAreWarnings) {
  AdapterFolder folder;
  folder.AddPair("m.0.q_proj").Config({{"target_modules", R"(["q_proj", "k_proj", "o_proj"])"}});
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull());
  EXPECT_THAT(folder.problems().warnings(),
              ElementsAre(HasSubstr("\"k_proj\""), HasSubstr("\"o_proj\"")));
}

// PEFT writes patterns sorted by name: "down" moved before "l.1..*" and changed what comes first.
TEST(PeftPlanTest, RanksOfALaterPatternAreTakenFromTheTensors) {
  AdapterFolder folder;
  folder.AddPair("l.0.down_proj", 6).AddPair("l.1.down_proj", 2).AddPair("l.1.up_proj", 2);
  folder.Config({{"target_modules", R"(["down_proj", "up_proj"])"},
                 {"rank_pattern", R"({"down_proj": 6, "l.1..*": 2})"}});
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_THAT(folder.problems().warnings(), ElementsAre(HasSubstr("\"l.1.down_proj\"")));
  EXPECT_EQ(reader->manifest()->modules[1].scale, 4.0 / 2);
  folder.AddPair("l.2.up_proj", 6);  // the default is 2, and no pattern says 6 there
  EXPECT_EQ(folder.WriteAndOpen(), nullptr);
  EXPECT_THAT(folder.problems().ToStatus(), HasReason(Reason::kInvalidAdapter));
}

TEST(PeftPlanTest, AlphasThatHangOnALostOrderAreRefused) {
  AdapterFolder folder;
  folder.AddPair("l.0.q_proj", 2).AddPair("l.1.q_proj", 2);
  folder.Config({{"target_modules", R"(["q_proj"])"}});
  folder.Config({{"alpha_pattern", R"({"l.1..*": 8, "q_proj": 16})"}});
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull());
  EXPECT_EQ(reader->manifest()->modules[1].alpha, 8);  // the first of the file, as PEFT
  EXPECT_THAT(folder.problems().warnings(), ElementsAre(HasSubstr("different alphas")));
  folder.Config({{"rank_pattern", R"({"l.1..*": 4, "q_proj": 2})"}});
  EXPECT_EQ(folder.WriteAndOpen(), nullptr);
  EXPECT_THAT(folder.problems().ToStatus(),
              AllOf(HasReason(Reason::kInvalidAdapter), HasErrorMetadata("module", "l.1.q_proj")));
}

TEST(PeftPlanTest, HostileNamesKeepMessagesShort) {
  AdapterFolder folder;
  const std::string path(3000, 'x');
  folder.AddPair(path + ".q_proj", 3).AddPair(path + ".o_proj").Add(path + ".\x7f", {1});
  EXPECT_EQ(folder.WriteAndOpen(), nullptr);
  EXPECT_GE(folder.problems().items().size(), 3u);
  for (const Problem& problem : folder.problems().items()) {
    EXPECT_LT(problem.message.size(), 700u);
    EXPECT_LT(problem.tensor.size(), 120u);
    EXPECT_LT(problem.module.size(), 120u);
  }
}

}  // namespace
}  // namespace adapterd
