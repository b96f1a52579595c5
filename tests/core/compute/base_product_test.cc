#include "core/compute/base_product.h"

#include <limits>
#include <random>

#include "core/compute/dot.h"
#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

struct Shape2 {
  int64_t in = 0;
  int64_t out = 0;
};

// What the products that are split into two BF16 leave out of a weight.
constexpr double kSplit = 0x1p-16;

class BaseProductTest : public ::testing::Test {
 protected:
  std::vector<float> Multiply(const ProjectionInput& input, const std::vector<BaseRun>& runs,
                              int64_t rows) {
    const int64_t out = runs[0].weight.out_features();
    std::vector<float> sums(rows * out + 1, std::numeric_limits<float>::quiet_NaN());
    sums.back() = -5;
    EXPECT_THAT(MultiplyBase(SharedKernels(), pool_, input, runs, sums.data(), Cancellation()),
                IsOk());
    EXPECT_EQ(sums.back(), -5);
    return sums;
  }

  // `weight` is what the product should be taken with, exactly.
  void ExpectProduct(const std::vector<float>& sums, const TestMatrix& input,
                     const TestMatrix& weight, WeightLayout layout, const std::vector<float>& bias,
                     double lost = 0) {
    std::vector<float> absolute_bias = bias;
    for (float& value : absolute_bias) value = std::abs(value);
    const auto exact =
        ReferenceProduct(input.view(), weight.view(), layout, bias.empty() ? nullptr : bias.data());
    const auto magnitude = ReferenceProduct(input.Abs().view(), weight.Abs().view(), layout,
                                            absolute_bias.empty() ? nullptr : absolute_bias.data());
    int failures = 0;
    for (size_t i = 0; i < exact.size() && failures < 3; ++i) {
      const double tolerance = Tolerance({.exact = exact[i],
                                          .magnitude = magnitude[i],
                                          .roundings = 2 * (input.view().cols + 2)}) +
                               lost * magnitude[i];
      if (std::abs(sums[i] - exact[i]) <= tolerance) continue;
      ++failures;
      ADD_FAILURE() << "element " << i << " is " << sums[i] << ", not " << exact[i] << " +- "
                    << tolerance;
    }
  }

  void ExpectRight(DType input_type, DType weight_type, WeightLayout layout, int64_t rows,
                   const Shape2& shape, bool with_bias, std::optional<int64_t> nf4_block = {}) {
    SCOPED_TRACE(testing::Message()
                 << rows << " rows " << DTypeName(input_type) << " x " << DTypeName(weight_type)
                 << " " << shape.in << " -> " << shape.out << (nf4_block ? " in 4 bits" : "")
                 << (layout == WeightLayout::kInOut ? " transposed" : ""));
    const bool out_in = layout == WeightLayout::kOutIn;
    const int64_t w_rows = out_in ? shape.out : shape.in;
    const int64_t w_cols = out_in ? shape.in : shape.out;
    auto weight = TestMatrix::Random(weight_type, w_rows, w_cols, ++seed_);
    const auto input = TestMatrix::Random(input_type, rows, shape.in, ++seed_);
    const auto bias_matrix = TestMatrix::Random(weight_type, 1, shape.out, ++seed_);
    std::vector<float> bias;
    for (int64_t o = 0; with_bias && o < shape.out; ++o) bias.push_back(bias_matrix.At(0, o));
    BaseRun run = {rows, {weight.view(), layout}};
    if (with_bias) run.bias = bias_matrix.view();
    std::optional<Nf4Matrix> quantised;
    if (nf4_block) {
      quantised.emplace(weight.view(), *nf4_block);
      run.weight.stored = &*quantised;
      weight = TestMatrix(DType::kF32, w_rows, w_cols);
      quantised->DequantizeRows(0, weight.mutable_view());
    }
    ExpectProduct(Multiply(input.view(), {run}, rows), input, weight, layout, bias,
                  nf4_block ? kSplit : 0);
  }

  ThreadPool pool_{"test", 2, PrepareComputeThread};
  uint32_t seed_ = 0;
};

TEST_F(BaseProductTest, AFewRowsMatchTheOracleForAllTinyShapes) {
  for (const WeightLayout layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
    for (int64_t rows = 1; rows <= 4; ++rows) {
      for (int64_t in = 1; in <= 9; ++in) {
        for (int64_t out = 1; out <= 9; ++out) {
          for (const DType type : kFloatTypes) {
            ExpectRight(type, type, layout, rows, {in, out}, rows % 2 == 0);
            ExpectRight(type, type, layout, rows, {in, out}, rows % 2 == 0, in + out);
          }
        }
      }
    }
  }
}

TEST_F(BaseProductTest, ManyRowsMatchTheOracleForTinyShapes) {
  for (const WeightLayout layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
    for (const Shape2 shape : {Shape2{1, 1}, {2, 3}, {3, 2}, {5, 7}, {16, 1}, {1, 16}, {9, 9}}) {
      for (const int64_t rows : {5, 8}) {
        for (const DType type : kFloatTypes) {
          ExpectRight(type, type, layout, rows, shape, rows == 8);
          ExpectRight(type, type, layout, rows, shape, rows == 8, 3);
        }
      }
    }
  }
}

TEST_F(BaseProductTest, EveryMixOfTypesMatchesTheOracle) {
  for (const DType input : kFloatTypes) {
    for (const DType weight : kFloatTypes) {
      for (const int64_t rows : {1, 3, 16, 70}) {
        for (const WeightLayout layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
          ExpectRight(input, weight, layout, rows, {97, 130}, true);
          ExpectRight(input, weight, layout, rows, {96, 130}, false, 64);
          ExpectRight(input, weight, layout, rows, {97, 131}, false, 33);
        }
      }
    }
  }
}

TEST_F(BaseProductTest, LargeProductsMatchTheOracle) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {1, 2, 17, 64, 65, 129}) {
      ExpectRight(type, type, WeightLayout::kOutIn, rows, {1030, 500}, true);
      ExpectRight(type, type, WeightLayout::kInOut, rows, {513, 300}, true);
      ExpectRight(type, DType::kBF16, WeightLayout::kOutIn, rows, {1024, 500}, true, 64);
    }
  }
  // Blocks of fewer outputs, because their inputs are wide.
  ExpectRight(DType::kF32, DType::kF16, WeightLayout::kOutIn, 5, {20'000, 70}, false);
}

// Where 128 codes are read at once, and where they cannot be.
TEST_F(BaseProductTest, EveryBlockSizeMatchesTheOracle) {
  for (const int64_t block : {1, 32, 63, 64, 65, 128, 192, 256, 384, 1000, 1 << 20}) {
    for (const int64_t in : {64, 128, 384, 640}) {
      for (const int64_t rows : {1, 2, 7}) {
        for (const DType type : {DType::kF32, DType::kBF16}) {
          ExpectRight(type, type, WeightLayout::kOutIn, rows, {in, 67}, true, block);
        }
      }
    }
  }
}

TEST_F(BaseProductTest, WeightsNeedNoAlignment) {
  for (const DType type : kFloatTypes) {
    const auto weight = TestMatrix::Random(type, 40, 33, 1, 1, /*offset=*/1);
    for (const int64_t rows : {1, 20}) {
      const auto input = TestMatrix::Random(type, rows, 33, 2, 1, /*offset=*/1);
      ExpectProduct(Multiply(input.view(), {{rows, {weight.view()}}}, rows), input, weight,
                    WeightLayout::kOutIn, {});
    }
  }
}

TEST_F(BaseProductTest, RunsHaveWeightsAndBiasesOfTheirOwn) {
  for (const DType type : kFloatTypes) {
    const auto one = TestMatrix::Random(type, 50, 40, 1);
    const auto other = TestMatrix::Random(DType::kF32, 50, 40, 2);
    const auto bias = TestMatrix::Random(DType::kF16, 1, 50, 3);
    const auto input = TestMatrix::Random(type, 30, 40, 4);
    const std::vector<BaseRun> runs = {{7, {one.view()}},
                                       {0, {one.view()}},
                                       {1, {other.view()}, bias.view()},
                                       {22, {one.view()}, bias.view()}};
    const std::vector<float> sums = Multiply(input.view(), runs, 30);
    int64_t row = 0;
    for (const BaseRun& run : runs) {
      TestMatrix rows(type, run.rows, 40);
      for (int64_t i = 0; i < run.rows; ++i) {
        for (int64_t j = 0; j < 40; ++j) rows.Set(i, j, input.At(row + i, j));
      }
      std::vector<float> bias_values;
      for (int64_t o = 0; run.bias.data != nullptr && o < 50; ++o) {
        bias_values.push_back(bias.At(0, o));
      }
      const bool is_other = run.weight.dense()->data == other.data();
      ExpectProduct({sums.begin() + row * 50, sums.end()}, rows, is_other ? other : one,
                    WeightLayout::kOutIn, bias_values);
      row += run.rows;
    }
  }
}

TEST_F(BaseProductTest, ReplacedRowsTakeThePlaceOfTheWeights) {
  const std::vector<ReplacedRow> replaced = {{0, 2}, {17, 0}, {39, 1}};
  for (const DType type : kFloatTypes) {
    for (const int64_t rows : {2, 20}) {
      const auto input = TestMatrix::Random(type, rows, 33, 1);
      const auto replacement = TestMatrix::Random(DType::kF32, 3, 33, 2);
      const auto stored = TestMatrix::Random(type, 40, 33, 3);
      TestMatrix weight(DType::kF32, 40, 33);
      for (int64_t o = 0; o < 40; ++o) {
        for (int64_t i = 0; i < 33; ++i) weight.Set(o, i, stored.At(o, i));
      }
      for (const ReplacedRow& row : replaced) {
        for (int64_t i = 0; i < 33; ++i) weight.Set(row.row, i, replacement.At(row.by, i));
      }
      const BaseRun run = {rows,
                           {stored.view(), WeightLayout::kOutIn, replaced, replacement.view()}};
      ExpectProduct(Multiply(input.view(), {run}, rows), input, weight, WeightLayout::kOutIn, {});
    }
  }
}

TEST_F(BaseProductTest, LooksEmbeddingsUp) {
  for (const DType type : kFloatTypes) {
    const auto table = TestMatrix::Random(type, 90, 24, 1);
    const auto replacement = TestMatrix::Random(DType::kF32, 1, 24, 2);
    const std::vector<ReplacedRow> replaced = {{3, 0}};
    std::vector<int64_t> ids = {0, 89, 3, 5, 5};
    for (int64_t i = 0; i < 200; ++i) ids.push_back(i * 7 % 90);
    const auto count = static_cast<int64_t>(ids.size());
    const StoredWeight weight = {table.view(), WeightLayout::kInOut};
    const StoredWeight patched = {table.view(), WeightLayout::kInOut, replaced, replacement.view()};
    const std::vector<float> sums =
        Multiply(TokenIds(ids), {{4, weight, {}, 2.5}, {count - 4, patched}}, count);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < 24; ++j) {
        const float value = ids[i] == 3 && i >= 4 ? replacement.At(0, j) : table.At(ids[i], j);
        ASSERT_EQ(sums[i * 24 + j], i < 4 ? value * 2.5f : value);
      }
    }
  }
}

TEST_F(BaseProductTest, ResultsDoNotDependOnThreads) {
  const auto weight = TestMatrix::Random(DType::kBF16, 1500, 2048, 1);
  const Nf4Matrix quantised(weight.view(), 64);
  ThreadPool nobody("none", 0);
  for (const StoredWeight& stored : {StoredWeight{weight.view()}, StoredWeight{&quantised}}) {
    for (const int64_t rows : {1, 40}) {
      const auto input = TestMatrix::Random(DType::kBF16, rows, 2048, 2);
      const BaseRun run = {rows, stored};
      std::vector<float> alone(rows * 1500);
      ASSERT_THAT(MultiplyBase(SharedKernels(), nobody, input.view(), {&run, 1}, alone.data(),
                               Cancellation()),
                  IsOk());
      std::vector<float> together = Multiply(input.view(), {run}, rows);
      together.pop_back();
      EXPECT_EQ(alone, together);
    }
  }
}

TEST_F(BaseProductTest, StopsWhenItIsCancelled) {
  const auto weight = TestMatrix::Random(DType::kF32, 200, 64, 1);
  Cancellation cancellation;
  cancellation.Cancel();
  for (const int64_t rows : {1, 20}) {
    const auto input = TestMatrix::Random(DType::kF32, rows, 64, 2);
    const BaseRun run = {rows, {weight.view()}};
    std::vector<float> sums(rows * 200);
    EXPECT_EQ(
        MultiplyBase(SharedKernels(), pool_, input.view(), {&run, 1}, sums.data(), cancellation)
            .code(),
        absl::StatusCode::kCancelled);
  }
}

TEST(DotLoopsTest, AllInstructionSetsAgreeWithTheDefinition) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (const int64_t count : {0, 1, 15, 16, 63, 64, 65, 1000}) {
    std::vector<float> a(count);
    std::vector<float> b(count);
    double exact = 0;
    double magnitude = 0;
    for (int64_t i = 0; i < count; ++i) {
      a[i] = normal(generator);
      b[i] = normal(generator);
      exact += double{a[i]} * b[i];
      magnitude += std::abs(double{a[i]} * b[i]);
    }
    for (const DotLoops& loops : DotLoopsVariants()) {
      SCOPED_TRACE(testing::Message() << loops.name << " " << count);
      EXPECT_NEAR(loops.dot(a.data(), b.data(), count), exact,
                  Tolerance({.exact = exact, .magnitude = magnitude, .roundings = count + 1}));
      TestMatrix upper(DType::kBF16, 1, count, 1);
      TestMatrix lower(DType::kBF16, 1, count, 1);
      loops.split(a.data(), count, upper.data(), lower.data());
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_NEAR(double{upper.At(0, i)} + lower.At(0, i), a[i], kSplit * std::abs(a[i]));
      }
    }
  }
}

}  // namespace
}  // namespace adapterd
