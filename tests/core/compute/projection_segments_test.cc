// ApplyProjection of requests with several adapters, segments and targets; threads and
// cancellation.
#include <thread>

#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

// Rows [first, first + count) of a matrix, copied.
TestMatrix Rows(const TestMatrix& matrix, int64_t first, int64_t count) {
  TestMatrix rows(matrix.dtype(), count, matrix.view().cols);
  if (count > 0) {
    std::memcpy(rows.data(), matrix.view().Rows(first, count).data, rows.bytes());
  }
  return rows;
}

// A request with random adapters: segments of 3, 0, 40, 1 and 70 rows with 1, 1, 0, 2 and 3 terms,
// for two targets of different width.
class SegmentsTest : public ::testing::TestWithParam<DType> {
 protected:
  static constexpr int64_t kRows = 3 + 0 + 40 + 1 + 70;
  static constexpr int64_t kIn = 96;
  static constexpr int64_t kOut[] = {64, 200};

  SegmentsTest() {
    for (const int64_t out : kOut) {
      for (const int64_t rank : {16, 8, 33}) {
        // The second adapter has other types: with BF16 input it computes in F32.
        const DType type = rank == 8 ? DType::kF16 : GetParam();
        pairs_.emplace_back(type, type, PairShape{kIn, rank, out}, static_cast<uint32_t>(rank),
                            1.0 / static_cast<double>(rank));
        packed_.push_back(pairs_.back().Pack(GetParam()));
      }
      bases_.push_back(TestMatrix::Random(GetParam(), kRows, out, 5));
      outputs_.emplace_back(GetParam(), kRows, out);
    }
  }

  TestTerms TermsOf(int64_t target, int segment) const {
    const TestPair* pairs = &pairs_[target * 3];
    switch (segment) {
      case 2:
        return {};
      case 3:
        return {&pairs[2], &pairs[0]};
      case 4:
        return {&pairs[0], &pairs[1], &pairs[2]};
      default:
        return {&pairs[0]};
    }
  }

  std::vector<ProjectionTarget> Targets() {
    std::vector<ProjectionTarget> targets(2);
    for (int t = 0; t < 2; ++t) {
      for (int s = 0; s < 5; ++s) {
        ProjectionSegment segment = {kSegments[s], {}};
        for (const TestPair* pair : TermsOf(t, s)) {
          segment.terms.push_back({packed_[pair - pairs_.data()].get(), pair->factor});
        }
        targets[t].segments.push_back(segment);
      }
      if (t == 1) targets[t].base_output = bases_[t].view();
      targets[t].output = outputs_[t].mutable_view();
    }
    return targets;
  }

  absl::Status Apply(int threads) {
    ThreadPool pool("compute", threads, PrepareComputeThread);
    const auto targets = Targets();
    return ApplyProjection(SharedKernels(), pool, input_.view(), targets, cancellation_);
  }

  static constexpr int64_t kSegments[] = {3, 0, 40, 1, 70};
  const TestMatrix input_ = TestMatrix::Random(GetParam(), kRows, kIn, 1);
  std::vector<TestPair> pairs_;
  std::vector<std::unique_ptr<const PackedPair>> packed_;
  std::vector<TestMatrix> bases_;
  std::vector<TestMatrix> outputs_;
  Cancellation cancellation_;
};

INSTANTIATE_TEST_SUITE_P(Types, SegmentsTest, ::testing::ValuesIn(kFloatTypes),
                         [](const auto& type) { return std::string(DTypeName(type.param)); });

TEST_P(SegmentsTest, EverySegmentOfEveryTargetMatchesTheOracle) {
  ASSERT_THAT(Apply(2), IsOk());
  for (int t = 0; t < 2; ++t) {
    int64_t first = 0;
    for (int s = 0; s < 5; ++s) {
      SCOPED_TRACE(testing::Message() << "target " << t << " segment " << s);
      const TestMatrix* base = t == 1 ? &bases_[t] : nullptr;
      ExpectNearOracle(Rows(input_, first, kSegments[s]), TermsOf(t, s), base, outputs_[t], first);
      first += kSegments[s];
    }
  }
}

TEST_P(SegmentsTest, RowsWithoutTermsAreTheBaseBitForBitOrZero) {
  // Bits that arithmetic would change: -0 and a signalling NaN.
  if (GetParam() != DType::kF32) {
    bases_[1].SetBits(5, 0, 0x8000);
    bases_[1].SetBits(6, 0, 0x7f81);
  }
  outputs_[0] = TestMatrix::Filled(GetParam(), kRows, kOut[0], 7);
  ASSERT_THAT(Apply(2), IsOk());
  EXPECT_TRUE(Rows(outputs_[0], 3, 40) == TestMatrix(GetParam(), 40, kOut[0]));
  EXPECT_TRUE(Rows(outputs_[1], 3, 40) == Rows(bases_[1], 3, 40));
}

TEST_P(SegmentsTest, ABaseOfAnotherTypeIsConverted) {
  const DType other = GetParam() == DType::kF32 ? DType::kBF16 : DType::kF32;
  bases_[1] = TestMatrix::Random(other, kRows, kOut[1], 6);
  ASSERT_THAT(Apply(2), IsOk());
  for (int64_t row = 3; row < 43; ++row) {
    const float base = bases_[1].At(row, 9);
    TestMatrix rounded(GetParam(), 1, 1);
    rounded.Set(0, 0, base);
    EXPECT_EQ(outputs_[1].At(row, 9), rounded.At(0, 0));
  }
  ExpectNearOracle(Rows(input_, 0, 3), TermsOf(1, 0), &bases_[1], outputs_[1]);
}

TEST_P(SegmentsTest, ResultsDoNotDependOnTheNumberOfThreads) {
  ASSERT_THAT(Apply(1), IsOk());
  const std::vector<TestMatrix> expected = outputs_;
  for (const int threads : {2, 4}) {
    ASSERT_THAT(Apply(threads), IsOk());
    for (int t = 0; t < 2; ++t) EXPECT_TRUE(outputs_[t] == expected[t]) << threads;
  }
}

TEST_P(SegmentsTest, CallersAtTheSameTimeGetTheSameResults) {
  constexpr int kCallers = 8;
  constexpr int kCalls = 10;
  ThreadPool pool("compute", 2, PrepareComputeThread);
  ASSERT_THAT(Apply(1), IsOk());
  std::vector<std::vector<TestMatrix>> outputs(kCallers, outputs_);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    std::vector<ProjectionTarget> targets = Targets();
    for (int t = 0; t < 2; ++t) {
      outputs[caller][t] = TestMatrix(GetParam(), kRows, kOut[t]);
      targets[t].output = outputs[caller][t].mutable_view();
    }
    callers.emplace_back([this, &pool, targets] {
      for (int call = 0; call < kCalls; ++call) {
        EXPECT_THAT(ApplyProjection(SharedKernels(), pool, input_.view(), targets, Cancellation()),
                    IsOk());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& output : outputs) {
    for (int t = 0; t < 2; ++t) EXPECT_TRUE(output[t] == outputs_[t]);
  }
}

TEST_P(SegmentsTest, ACancelledRequestStops) {
  cancellation_.Cancel();
  EXPECT_THAT(Apply(1), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(Apply(4), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace adapterd
