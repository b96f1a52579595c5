// Validate: what a load would meet, without one.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ValidateTest : public RegistryTest {
 protected:
  ValidateTest() { sources_.Put("a", content_); }

  ValidationResult Validate(const LoadRequest& request) const {
    return registry_->Validate(request, Cancellation());
  }

  static std::vector<Reason> Errors(const ValidationResult& result) {
    std::vector<Reason> reasons;
    for (const Problem& problem : result.problems.items()) {
      if (problem.severity == Severity::kError) reasons.push_back(problem.reason);
    }
    return reasons;
  }

  FakeContent content_;
};
INSTANTIATE_TEST_SUITE_P(Threads, ValidateTest, ::testing::Values(1), ThreadsName);

TEST_P(ValidateTest, AGoodSourceIsDescribedAsItWouldBeLoaded) {
  LoadRequest request = Request("x");
  request.pinned = true;
  request.labels = {{"team", "red"}};
  const ValidationResult result = Validate(request);
  EXPECT_THAT(Errors(result), IsEmpty());
  EXPECT_EQ(result.memory_bytes, BytesOf(content_));
  EXPECT_TRUE(result.fits);
  ASSERT_TRUE(result.adapter.has_value());
  EXPECT_EQ(result.adapter->name, "x");
  EXPECT_EQ(result.adapter->public_id, "base:x");
  EXPECT_EQ(result.adapter->digest, DigestOf(content_));
  EXPECT_EQ(result.adapter->source, "a");
  EXPECT_EQ(result.adapter->memory_bytes, BytesOf(content_));
  EXPECT_EQ(result.adapter->labels, request.labels);
  EXPECT_TRUE(result.adapter->pinned);
  EXPECT_FALSE(result.adapter->load_time.has_value());
  ASSERT_NE(result.adapter->manifest, nullptr);
}

TEST_P(ValidateTest, NothingChanges) {
  Validate(Request("x"));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(budget_->used(), 0);
  EXPECT_EQ(sources_["a"].reads, 0);
  EXPECT_EQ(sources_["a"].digests, 1);
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_P(ValidateTest, ASourceThatCannotBeOpenedIsAProblem) {
  const ValidationResult result = Validate(Request("x", "nowhere"));
  EXPECT_THAT(Errors(result), ElementsAre(Reason::kSourceNotFound));
  EXPECT_FALSE(result.adapter.has_value());
}

TEST_P(ValidateTest, WhatOnlyTheWeightsShowIsReportedOnce) {
  content_.read_error = Error(Reason::kNonFiniteWeights, "NaN").With("tensor", "t");
  sources_.Put("a", content_);
  const ValidationResult result = Validate(Request("x"));
  EXPECT_THAT(Errors(result), ElementsAre(Reason::kNonFiniteWeights));
  EXPECT_EQ(result.problems.items()[0].tensor, "t");
  EXPECT_FALSE(result.adapter.has_value());
}

TEST_P(ValidateTest, AnotherDigestIsAProblem) {
  LoadRequest request = Request("x");
  request.expected_digest = std::string(64, '0');
  EXPECT_THAT(Errors(Validate(request)), ElementsAre(Reason::kDigestMismatch));
}

TEST_P(ValidateTest, ItSaysWhatDoesNotFit) {
  Start(BytesOf(content_) - 1);
  const ValidationResult result = Validate(Request("x"));
  EXPECT_THAT(Errors(result), IsEmpty());
  EXPECT_FALSE(result.fits);
  EXPECT_EQ(result.memory_bytes, BytesOf(content_));
}

TEST_P(ValidateTest, ATakenNameIsAProblemUnlessItMayBeReplaced) {
  FakeContent other;
  other.text = "2";
  sources_.Put("b", other);
  ASSERT_THAT(Load(Request("x", "a")), IsOk());
  EXPECT_THAT(Errors(Validate(Request("x", "b"))), ElementsAre(Reason::kAdapterExists));
  EXPECT_THAT(Errors(Validate(Replacing(Request("x", "b")))), IsEmpty());
  LoadRequest options = Request("x", "a");
  options.pinned = true;
  EXPECT_THAT(Errors(Validate(options)), ElementsAre(Reason::kAdapterExists));
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(content_));
}

TEST_P(ValidateTest, WhatIsLoadedAlreadyNeedsNoRoom) {
  Start(BytesOf(content_));
  ASSERT_THAT(Load(Request("x")), IsOk());
  EXPECT_TRUE(Validate(Request("x")).fits);
  LoadRequest options = Replacing(Request("x"));
  options.pinned = true;
  EXPECT_TRUE(Validate(options).fits);
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_FALSE(Validate(Request("y")).fits);
}

TEST_P(ValidateTest, ATakenPublicIdIsAProblem) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x")), IsOk());
  EXPECT_THAT(Errors(Validate(Request("y"))), ElementsAre(Reason::kAdapterExists));
  EXPECT_THAT(Errors(Validate(Request("x"))), IsEmpty());
}

TEST_P(ValidateTest, ACancelledCheckEndsEarly) {
  Cancellation cancellation;
  cancellation.Cancel();
  const ValidationResult result = registry_->Validate(Request("x"), cancellation);
  EXPECT_THAT(Errors(result), ElementsAre(Reason::kCancelled));
  EXPECT_FALSE(result.adapter.has_value());
}

}  // namespace
}  // namespace adapterd
