#include "core/adapter/peft_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kPath[] = "m.experts.down_proj";

TEST(PeftExpertsTest, ParametersComeInTheOrderOfTheirModule) {
  const std::vector<std::string> targets = {"mlp.experts.down_proj", "gate.weight",
                                            "experts.gate_up_proj_bias", "experts.gate_up_proj",
                                            "down_proj"};
  EXPECT_THAT(TargetedParameters("m.0.mlp.experts", targets).value(),
              ElementsAre("gate_up_proj", "gate_up_proj_bias", "down_proj"));
  EXPECT_THAT(TargetedParameters("experts", targets).value(),
              ElementsAre("gate_up_proj", "gate_up_proj_bias"));
  EXPECT_THAT(TargetedParameters("m.gate", targets).value(), ElementsAre("weight"));
  EXPECT_THAT(TargetedParameters("m.big_gate", targets).value(), IsEmpty());
  EXPECT_THAT(TargetedParameters("m.0.mlp", targets).value(), IsEmpty());
  EXPECT_THAT(TargetedParameters("m", {}).value(), IsEmpty());
}

TEST(PeftExpertsTest, OneParameterNeedsNoOrder) {
  EXPECT_THAT(TargetedParameters("m.experts", {"experts.w1"}).value(), ElementsAre("w1"));
  EXPECT_THAT(TargetedParameters("m.experts", {"experts.w1", "m.experts.w1"}).value(),
              ElementsAre("w1"));
}

TEST(PeftExpertsTest, SeveralOfAnUnknownOrderAreRefused) {
  EXPECT_THAT(
      TargetedParameters("m.experts", {"experts.down_proj", "experts.w1"}),
      AllOf(HasReason(Reason::kUnsupportedAdapter), HasErrorMetadata("field", "target_parameters"),
            HasErrorMetadata("module", "m.experts"), HasMessage(HasSubstr("\"w1\""))));
}

BaseFacts FactsWith(const Shape& shape, bool in_out) {
  BaseFacts facts;
  facts.experts_are_in_out = in_out;
  facts.shape_of = [shape](std::string_view path) {
    return path == kPath ? std::optional(shape) : std::nullopt;
  };
  return facts;
}

// lora_A is 4 wide, lora_B 6 high.
absl::StatusOr<bool> Swapped(std::string_view version, const BaseFacts* base = nullptr) {
  return ExpertsAreSwapped({kPath, 4, 6}, version, base);
}

TEST(PeftExpertsTest, WithoutABaseTheVersionDecides) {
  for (const char* direct : {"0.19.1", "0.19.1.dev0@abc", "0.21.2", "1.0.0"}) {
    EXPECT_FALSE(Swapped(direct).value()) << direct;
  }
  EXPECT_TRUE(Swapped("0.19.0").value());
  for (const char* unclear : {"0.18.1", "0.17.0", "", "main", "0.19.x", "0.19", "0.100"}) {
    const absl::StatusOr<bool> answer = Swapped(unclear);
    EXPECT_THAT(answer, AllOf(HasReason(Reason::kBaseRequired), HasErrorMetadata("module", kPath)))
        << unclear;
  }
  const BaseFacts another = {[](std::string_view) { return std::nullopt; }, false};
  EXPECT_THAT(Swapped("0.18.1", &another), HasReason(Reason::kBaseRequired));
  EXPECT_TRUE(Swapped("0.19.0", &another).value());
}

// A base of another number of outputs than inputs tells, whatever the version.
TEST(PeftExpertsTest, TheShapeOfABaseDecides) {
  const BaseFacts out_in = FactsWith({3, 6, 4}, false);
  const BaseFacts out_in_swapped = FactsWith({3, 4, 6}, false);
  const BaseFacts in_out = FactsWith({3, 4, 6}, true);
  const BaseFacts in_out_swapped = FactsWith({3, 6, 4}, true);
  for (const char* version : {"", "0.18.0", "0.19.0", "0.19.1"}) {
    EXPECT_FALSE(Swapped(version, &out_in).value()) << version;
    EXPECT_TRUE(Swapped(version, &out_in_swapped).value()) << version;
    EXPECT_FALSE(Swapped(version, &in_out).value()) << version;
    EXPECT_TRUE(Swapped(version, &in_out_swapped).value()) << version;
  }
}

TEST(PeftExpertsTest, ABaseOfAnotherShapeIsAMismatch) {
  for (const Shape& shape :
       {Shape{3, 6, 5}, Shape{3, 4, 4}, Shape{6, 4}, Shape{3, 6, 4, 1}, Shape{}, Shape{3}}) {
    const BaseFacts base = FactsWith(shape, false);
    EXPECT_THAT(Swapped("0.19.1", &base),
                AllOf(HasReason(Reason::kBaseModelMismatch), HasErrorMetadata("module", kPath)))
        << ShapeString(shape);
  }
}

TEST(PeftExpertsTest, SquareParametersNeedTheVersion) {
  const auto square = [](std::string_view version, bool in_out) {
    const BaseFacts base = FactsWith({3, 5, 5}, in_out);
    return ExpertsAreSwapped({kPath, 5, 5}, version, &base);
  };
  for (const bool in_out : {false, true}) {
    EXPECT_THAT(square("", in_out), AllOf(HasReason(Reason::kInvalidAdapter),
                                          HasErrorMetadata("field", "peft_version")));
    EXPECT_FALSE(square("0.19.1", in_out).value());
    EXPECT_TRUE(square("0.19.0", in_out).value());
    // Before that lora_A had the second of [experts, first, second].
    EXPECT_EQ(square("0.18.0", in_out).value(), !in_out);
  }
}

}  // namespace
}  // namespace adapterd
