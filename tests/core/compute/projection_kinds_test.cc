// ApplyProjection of what is more than a pair of a linear layer: embeddings, biases, DoRA.
#include <limits>
#include <random>

#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

std::vector<float> RandomValues(int64_t count, uint32_t seed, float mean = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(mean, 1);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

class ProjectionKindsTest : public ::testing::Test {
 protected:
  absl::Status Apply(const ProjectionInput& input, std::vector<ProjectionSegment> segments,
                     const TestMatrix* base, TestMatrix& output) {
    ProjectionTarget target;
    target.segments = std::move(segments);
    if (base != nullptr) target.base_output = base->view();
    target.output = output.mutable_view();
    return ApplyProjection(SharedKernels(), pool_, input, {&target, 1}, Cancellation());
  }

  static std::unique_ptr<const PackedPair> PackEmbedding(const TestPair& pair) {
    auto packed = PackedPair::PackEmbedding(SharedKernels(), pair.a.view(), pair.b.view());
    EXPECT_THAT(packed, IsOk());
    return *std::move(packed);
  }

  static std::vector<int64_t> RandomIds(int64_t count, int64_t vocabulary, uint32_t seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<int64_t> distribution(0, vocabulary - 1);
    std::vector<int64_t> ids(count);
    for (int64_t& id : ids) id = distribution(generator);
    ids.front() = vocabulary - 1;
    return ids;
  }

  void ExpectRightEmbedding(const TestPair& pair, int64_t count, DType output_type) {
    const PairShape shape = {pair.a.view().cols, pair.a.view().rows, pair.b.view().rows};
    SCOPED_TRACE(testing::Message() << count << " of " << shape.in_features << " ids rank "
                                    << shape.rank << " to " << shape.out_features << " "
                                    << DTypeName(pair.a.dtype()) << " " << DTypeName(output_type));
    const auto packed = PackEmbedding(pair);
    const std::vector<int64_t> ids = RandomIds(count, shape.in_features, ++seed_);
    TestMatrix output(output_type, count, shape.out_features);
    ASSERT_THAT(Apply(TokenIds(ids), {{count, {{packed.get(), pair.factor}}}}, nullptr, output),
                IsOk());
    ExpectNear(output, ExpectedDelta(TokenIds(ids), TokenIds(ids), {&pair}, shape.out_features));
  }

  // The expected rescaled outputs, from expected deltas.
  static ExpectedOutput Rescaled(const TestMatrix& base, const DoraRescale& dora,
                                 ExpectedOutput expected) {
    expected.exact = ReferenceDora(base.view(), dora, expected.exact);
    const int64_t cols = base.view().cols;
    for (size_t i = 0; i < expected.magnitude.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / cols;
      const auto col = static_cast<int64_t>(i) % cols;
      const double bias = dora.base_bias == nullptr ? 0 : std::abs(dora.base_bias[col]);
      expected.magnitude[i] = bias + std::abs(dora.gain[col]) * (std::abs(base.At(row, col)) +
                                                                 bias + expected.magnitude[i]);
    }
    expected.roundings += 3;
    return expected;
  }

  void ExpectRightDora(DType type, int64_t rows, const PairShape& shape, bool with_bias) {
    SCOPED_TRACE(testing::Message()
                 << DTypeName(type) << " " << rows << " x " << shape.in_features << " rank "
                 << shape.rank << " to " << shape.out_features << (with_bias ? " with bias" : ""));
    const TestPair pair(type, type, shape, seed_ += 10, 0.5);
    const auto packed = pair.Pack(type);
    const auto input = TestMatrix::Random(type, rows, shape.in_features, ++seed_);
    const auto base = TestMatrix::Random(type, rows, shape.out_features, ++seed_);
    const std::vector<float> gain = RandomValues(shape.out_features, ++seed_, 1);
    const std::vector<float> bias = RandomValues(shape.out_features, ++seed_);
    const DoraRescale dora = {gain.data(), with_bias ? bias.data() : nullptr};
    const std::vector<ProjectionSegment> segments = {
        {rows, {{packed.get(), pair.factor, nullptr, &dora}}}};
    const ExpectedOutput expected =
        Rescaled(base, dora, ExpectedDelta(input, {&pair}, shape.out_features));
    TestMatrix output(type, rows, shape.out_features);
    ASSERT_THAT(Apply(input.view(), segments, &base, output), IsOk());
    ExpectNear(output, expected);
    TestMatrix in_place = base;
    ASSERT_THAT(Apply(input.view(), segments, &in_place, in_place), IsOk());
    EXPECT_TRUE(in_place == output);
  }

  ThreadPool pool_{"compute", 2, PrepareComputeThread};
  uint32_t seed_ = 1;
};

TEST_F(ProjectionKindsTest, EmbeddingsOfAllTinyShapesAndTypesMatchTheOracle) {
  for (const int64_t vocabulary : {1, 2, 3, 65}) {
    for (const int64_t out : {1, 2, 7, 9}) {
      for (int64_t rank = 1; rank <= 5; ++rank) {
        for (const DType a : kFloatTypes) {
          for (const DType b : kFloatTypes) {
            const TestPair pair(a, b, {vocabulary, rank, out}, seed_ += 10, 0.75);
            for (const int64_t count : {1, 2, 3, 5, 9}) {
              ExpectRightEmbedding(pair, count, kFloatTypes[seed_ % 3]);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST_F(ProjectionKindsTest, LargeEmbeddingsMatchTheOracle) {
  for (const DType type : kFloatTypes) {
    for (const int64_t rank : {8, 17, 64, 300}) {
      const TestPair pair(type, type, {5003, rank, 130}, seed_ += 10, 2);
      for (const int64_t count : {1, 16, 33, 200}) ExpectRightEmbedding(pair, count, type);
    }
  }
  const TestPair wide(DType::kBF16, DType::kBF16, {10, 4, 9000}, seed_ += 10);
  ExpectRightEmbedding(wide, 70, DType::kBF16);
}

TEST_F(ProjectionKindsTest, EmbeddingsTakeSegmentsTermsAndABase) {
  const TestPair first(DType::kF16, DType::kF32, {50, 3, 20}, 5, 0.5);
  const TestPair second(DType::kBF16, DType::kF16, {50, 16, 20}, 6, -1.5);
  const auto packed_first = PackEmbedding(first);
  const auto packed_second = PackEmbedding(second);
  const std::vector<int64_t> ids = RandomIds(75, 50, 7);
  const auto base = TestMatrix::Random(DType::kBF16, 75, 20, 8);
  TestMatrix output(DType::kBF16, 75, 20);
  ASSERT_THAT(
      Apply(TokenIds(ids),
            {{2, {{packed_first.get(), first.factor}}},
             {3, {}},
             {70, {{packed_first.get(), first.factor}, {packed_second.get(), second.factor}}}},
            &base, output),
      IsOk());
  int64_t row = 0;
  for (const auto& [rows, terms] :
       {std::pair<int64_t, TestTerms>{2, {&first}}, {3, {}}, {70, {&first, &second}}}) {
    const TokenIds of_segment = TokenIds(ids).subspan(row, rows);
    ExpectedOutput expected = ExpectedDelta(of_segment, of_segment, terms, 20);
    for (size_t i = 0; i < expected.exact.size(); ++i) {
      const double start = base.At(row + static_cast<int64_t>(i) / 20, i % 20);
      expected.exact[i] += start;
      expected.magnitude[i] += std::abs(start);
    }
    ExpectNear(output, expected, row);
    row += rows;
  }
}

TEST_F(ProjectionKindsTest, AnEmbeddingReadsOnlyTheColumnsOfItsIds) {
  TestPair pair(DType::kF32, DType::kF32, {4, 2, 3}, 5);
  for (const int64_t r : {0, 1}) pair.a.Set(r, 2, std::numeric_limits<float>::quiet_NaN());
  const auto packed = PackEmbedding(pair);
  const std::vector<int64_t> ids = {3, 2, 1};
  TestMatrix output(DType::kF32, 3, 3);
  ASSERT_THAT(Apply(TokenIds(ids), {{3, {{packed.get(), 1}}}}, nullptr, output), IsOk());
  for (int64_t row = 0; row < 3; ++row) EXPECT_EQ(std::isnan(output.At(row, 0)), row == 1);
}

TEST_F(ProjectionKindsTest, BiasesOfBMatchTheOracle) {
  for (const DType type : kFloatTypes) {
    for (const int64_t out : {1, 7, 130, 4500}) {
      TestPair biased(type, type, {24, 5, out}, seed_ += 10, 0.3);
      TestPair also(type, type, {24, 16, out}, seed_ += 10, -2);
      const TestPair plain(type, type, {24, 2, out}, seed_ += 10);
      biased.AddBias(++seed_);
      also.AddBias(++seed_);
      for (const TestTerms& terms : {TestTerms{&biased}, TestTerms{&plain, &biased, &also}}) {
        for (const int64_t rows : {1, 3, 16, 37}) {
          for (const bool with_base : {false, true}) {
            SCOPED_TRACE(testing::Message() << DTypeName(type) << " out " << out << " rows " << rows
                                            << " terms " << terms.size());
            std::vector<std::unique_ptr<const PackedPair>> packed;
            ProjectionSegment segment = {rows, {}};
            for (const TestPair* term : terms) {
              packed.push_back(term->Pack(type));
              segment.terms.push_back({packed.back().get(), term->factor,
                                       term->bias.empty() ? nullptr : term->bias.data()});
            }
            const auto input = TestMatrix::Random(type, rows, 24, ++seed_);
            const auto base = TestMatrix::Random(type, rows, out, ++seed_);
            TestMatrix output(type, rows, out);
            ASSERT_THAT(Apply(input.view(), {segment}, with_base ? &base : nullptr, output),
                        IsOk());
            ExpectNearOracle(input, terms, with_base ? &base : nullptr, output);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(ProjectionKindsTest, DoraOfAllTinyShapesMatchesTheOracle) {
  for (const DType type : kFloatTypes) {
    for (const int64_t in : {1, 3, 8}) {
      for (const int64_t out : {1, 2, 9}) {
        for (const int64_t rank : {1, 2, 5}) {
          for (const int64_t rows : {1, 2, 3, 8}) {
            for (const bool with_bias : {false, true}) {
              ExpectRightDora(type, rows, {in, rank, out}, with_bias);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST_F(ProjectionKindsTest, LargeDoraMatchesTheOracle) {
  for (const DType type : kFloatTypes) {
    ExpectRightDora(type, 100, {256, 16, 200}, true);
    ExpectRightDora(type, 16, {64, 64, 512}, false);
    ExpectRightDora(type, 19, {48, 16, 9000}, true);
  }
}

TEST_F(ProjectionKindsTest, DoraRescalesItsSegmentOnly) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 2, 6}, 5);
  const auto packed = pair.Pack(DType::kF32);
  const auto input = TestMatrix::Random(DType::kF32, 4, 8, 6);
  const auto base = TestMatrix::Random(DType::kF32, 4, 6, 7);
  const std::vector<float> gain(6, 0);
  const std::vector<float> bias = RandomValues(6, 8);
  const DoraRescale dora = {gain.data(), bias.data()};
  TestMatrix output(DType::kF32, 4, 6), plain(DType::kF32, 4, 6);
  const ProjectionTerm term = {packed.get(), 1};
  ProjectionTerm rescaled = term;
  rescaled.dora = &dora;
  ASSERT_THAT(Apply(input.view(), {{1, {term}}, {1, {rescaled}}, {2, {term}}}, &base, output),
              IsOk());
  ASSERT_THAT(Apply(input.view(), {{1, {term}}, {1, {term}}, {2, {term}}}, &base, plain), IsOk());
  for (int64_t row = 0; row < 4; ++row) {
    for (int64_t col = 0; col < 6; ++col) {
      if (row == 1) {
        EXPECT_EQ(output.At(row, col), bias[col]);
      } else {
        // Rows that go through the product together may be summed in another order than alone.
        EXPECT_NEAR(output.At(row, col), plain.At(row, col), 1e-5);
      }
    }
  }
}

TEST_F(ProjectionKindsTest, AnEmbeddingMayBeRescaledToo) {
  const TestPair pair(DType::kF16, DType::kF16, {40, 4, 12}, 5, 0.5);
  const auto packed = PackEmbedding(pair);
  const std::vector<int64_t> ids = RandomIds(21, 40, 6);
  const auto base = TestMatrix::Random(DType::kF16, 21, 12, 7);
  const std::vector<float> gain = RandomValues(12, 8, 1);
  const DoraRescale dora = {gain.data(), nullptr};
  TestMatrix output(DType::kF16, 21, 12);
  ASSERT_THAT(
      Apply(TokenIds(ids), {{21, {{packed.get(), pair.factor, nullptr, &dora}}}}, &base, output),
      IsOk());
  ExpectNear(output,
             Rescaled(base, dora, ExpectedDelta(TokenIds(ids), TokenIds(ids), {&pair}, 12)));
}

}  // namespace
}  // namespace adapterd
