// The arithmetic against PEFT's own numbers: inputs, outputs and merged weights of its layers.
#include <map>

#include "core/compute/dora_norms.h"
#include "core/formats/safetensors.h"
#include "tests/core/compute/merge_fixture.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

constexpr double kScale = 2;  // alpha / r of every case below
constexpr char kPrefix[] = "base_model.model.";

// The tensors of one file; one-dimensional ones are a single row.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path)
      : bytes_(ReadFile(std::string(ADAPTERD_FIXTURES "/peft/") + path + ".safetensors")) {
    uint64_t header_bytes;
    std::memcpy(&header_bytes, bytes_.data(), sizeof(header_bytes));
    auto header = ParseSafetensorsHeader(std::string_view(bytes_).substr(8, header_bytes),
                                         static_cast<int64_t>(bytes_.size()), path);
    EXPECT_THAT(header, IsOk());
    for (const SafetensorsEntry& entry : header->tensors) entries_[entry.name] = entry;
  }

  bool Has(const std::string& name) const { return entries_.contains(name); }
  std::vector<std::string> NamesEndingWith(std::string_view suffix) const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) {
      if (name.ends_with(suffix)) names.push_back(name.substr(0, name.size() - suffix.size()));
    }
    EXPECT_FALSE(names.empty()) << suffix;
    return names;
  }

  // The last dimension is the columns.
  TestMatrix Matrix(const std::string& name) const {
    const SafetensorsEntry& entry = entries_.at(name);
    const int64_t cols = entry.shape.back();
    TestMatrix matrix(entry.dtype, entry.bytes / FloatBytes(entry.dtype) / cols, cols);
    std::memcpy(matrix.data(), bytes_.data() + entry.offset, entry.bytes);
    return matrix;
  }
  std::vector<float> Floats(const std::string& name) const {
    const TestMatrix matrix = Matrix(name);
    std::vector<float> values(matrix.view().rows * matrix.view().cols);
    ConvertToF32(matrix.dtype(), matrix.data(), values.data(), static_cast<int64_t>(values.size()));
    return values;
  }
  std::vector<int64_t> Ids(const std::string& name) const {
    const SafetensorsEntry& entry = entries_.at(name);
    std::vector<int64_t> ids(entry.bytes / static_cast<int64_t>(sizeof(int64_t)));
    std::memcpy(ids.data(), bytes_.data() + entry.offset, entry.bytes);
    return ids;
  }

 private:
  const std::string bytes_;
  std::map<std::string, SafetensorsEntry> entries_;
};

struct Case {
  Case(const std::string& name, const std::string& base_name)
      : adapter("cases/" + name + "/adapter_model"),
        expected("cases/" + name + "/expected"),
        base("bases/" + base_name + "/model") {}

  TensorFile adapter;
  TensorFile expected;
  TensorFile base;
};

TestPair PairOf(TestMatrix a, TestMatrix b) {
  TestPair pair(DType::kF32, DType::kF32, {1, 1, 1}, 1, kScale);
  pair.a = std::move(a);
  pair.b = std::move(b);
  return pair;
}

TestMatrix Converted(const TestMatrix& matrix, DType dtype) {
  TestMatrix result(dtype, matrix.view().rows, matrix.view().cols);
  for (int64_t row = 0; row < matrix.view().rows; ++row) {
    for (int64_t col = 0; col < matrix.view().cols; ++col) {
      result.Set(row, col, matrix.At(row, col));
    }
  }
  return result;
}

void AddMagnitudes(const TestMatrix& base, ExpectedOutput& sum) {
  for (size_t i = 0; i < sum.magnitude.size(); ++i) {
    const int64_t cols = base.view().cols;
    sum.magnitude[i] += std::abs(base.At(static_cast<int64_t>(i) / cols, i % cols));
  }
}

class PeftNumbersTest : public ::testing::Test {
 protected:
  // Sums of F32, in an order of their own on either side: `roundings` each. Numbers of a narrower
  // type were rounded on both sides, and by PEFT also in between.
  static void ExpectNumbers(const TestMatrix& actual, const TestMatrix& numbers,
                            const ExpectedOutput& sum, int64_t narrow_roundings) {
    ASSERT_EQ(actual.view().rows, numbers.view().rows);
    ASSERT_EQ(actual.view().cols, numbers.view().cols);
    const int64_t cols = actual.view().cols;
    for (int64_t row = 0; row < actual.view().rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const double magnitude = sum.magnitude[row * cols + col];
        const double tolerance =
            Tolerance({.exact = numbers.At(row, col),
                       .magnitude = magnitude,
                       .roundings = 2 * sum.roundings,
                       .output = actual.dtype()}) +
            static_cast<double>(narrow_roundings) * UnitRoundoff(actual.dtype()) * magnitude;
        ASSERT_NEAR(actual.At(row, col), numbers.At(row, col), tolerance) << row << ", " << col;
      }
    }
  }

  TestMatrix Apply(const ProjectionInput& input, const ProjectionTerm& term,
                   const TestMatrix& base) {
    ProjectionTarget target;
    target.segments = {{base.view().rows, {term}}};
    target.base_output = base.view();
    TestMatrix output(base.dtype(), base.view().rows, base.view().cols);
    target.output = output.mutable_view();
    EXPECT_THAT(ApplyProjection(SharedKernels(), pool_, input, {&target, 1}, Cancellation()),
                IsOk());
    return output;
  }

  TestMatrix Merge(const TestMatrix& weight, const TestTerms& pairs, const MergeOptions& options) {
    TestMatrix merged(weight.dtype(), weight.view().rows, weight.view().cols);
    EXPECT_THAT(MergeWeight(SharedKernels(), pool_, weight.view(), MergeTerms(pairs), options,
                            merged.mutable_view(), Cancellation()),
                IsOk());
    return merged;
  }

  std::vector<float> Gains(const TestMatrix& weight, const TestPair& pair,
                           const std::vector<float>& magnitude) {
    const MatrixView rows = weight.view();
    auto norms = DoraNorms::Create(SharedKernels(), MergeTerms({&pair})[0], WeightLayout::kOutIn,
                                   rows.rows, rows.cols);
    EXPECT_THAT(norms, IsOk());
    EXPECT_THAT(norms->Add(pool_, 0, rows, Cancellation()), IsOk());
    return DoraGains(magnitude, norms->Finish());
  }

  void ExpectDora(const Case& files, const std::string& module) {
    SCOPED_TRACE(module);
    const std::string name = kPrefix + module;
    const TestPair pair = PairOf(files.adapter.Matrix(name + ".lora_A.weight"),
                                 files.adapter.Matrix(name + ".lora_B.weight"));
    const std::vector<float> magnitude = files.adapter.Floats(name + ".lora_magnitude_vector");
    const TestMatrix x = files.expected.Matrix(module + "|x");
    const TestMatrix y_base = files.expected.Matrix(module + "|y_base");
    const TestMatrix weight = Converted(files.base.Matrix(module + ".weight"), x.dtype());
    std::vector<float> bias(magnitude.size(), 0);
    if (files.base.Has(module + ".bias")) bias = files.base.Floats(module + ".bias");
    const std::vector<float> gain = Gains(weight, pair, magnitude);
    const DoraRescale dora = {gain.data(), bias.data()};
    const int64_t narrow = x.dtype() == DType::kF32 ? 0 : 3;

    ExpectedOutput sum = ExpectedDelta(x, {&pair}, y_base.view().cols);
    AddMagnitudes(y_base, sum);
    for (size_t i = 0; i < sum.magnitude.size(); ++i) {
      const auto col = static_cast<int64_t>(i) % y_base.view().cols;
      sum.magnitude[i] = (1 + std::abs(gain[col])) * (sum.magnitude[i] + std::abs(bias[col]));
    }
    sum.roundings += 6;
    const auto packed = pair.Pack(x.dtype());
    ExpectNumbers(Apply(x.view(), {packed.get(), kScale, nullptr, &dora}, y_base),
                  files.expected.Matrix(module + "|y"), sum, narrow);

    if (!files.expected.Has(module + "|merged")) return;
    ExpectedOutput merged = ExpectedSum(weight, WeightLayout::kOutIn, {&pair});
    for (size_t i = 0; i < merged.magnitude.size(); ++i) {
      merged.magnitude[i] *= std::abs(gain[static_cast<int64_t>(i) / weight.view().cols]);
    }
    merged.roundings += 6 + weight.view().cols;  // those of PEFT's norm, which is F32
    ExpectNumbers(Merge(weight, {&pair}, {.magnitude = magnitude.data()}),
                  files.expected.Matrix(module + "|merged"), merged, narrow);
  }

  ThreadPool pool_{"compute", 2, PrepareComputeThread};
};

TEST_F(PeftNumbersTest, Dora) {
  for (const auto& [name, base] : {std::pair{"llama-dora", "tiny-llama"},
                                   {"llama-dora-bf16", "tiny-llama"},
                                   {"qwen2-dora-bias", "tiny-qwen2"}}) {
    SCOPED_TRACE(name);
    const Case files(name, base);
    for (const std::string& module : files.adapter.NamesEndingWith(".lora_magnitude_vector")) {
      ExpectDora(files, module.substr(sizeof(kPrefix) - 1));
    }
  }
}

TEST_F(PeftNumbersTest, BiasOfB) {
  const Case files("qwen2-lora-bias", "tiny-qwen2");
  for (const std::string& name : files.adapter.NamesEndingWith(".lora_B.bias")) {
    const std::string module = name.substr(sizeof(kPrefix) - 1);
    SCOPED_TRACE(module);
    TestPair pair = PairOf(files.adapter.Matrix(name + ".lora_A.weight"),
                           files.adapter.Matrix(name + ".lora_B.weight"));
    pair.bias = files.adapter.Floats(name + ".lora_B.bias");
    const TestMatrix x = files.expected.Matrix(module + "|x");
    const TestMatrix y_base = files.expected.Matrix(module + "|y_base");
    ExpectedOutput sum = ExpectedDelta(x, {&pair}, y_base.view().cols);
    AddMagnitudes(y_base, sum);
    const auto packed = pair.Pack(DType::kF32);
    ExpectNumbers(Apply(x.view(), {packed.get(), kScale, pair.bias.data()}, y_base),
                  files.expected.Matrix(module + "|y"), sum, 0);
  }
}

TEST_F(PeftNumbersTest, Embedding) {
  const Case files("llama-embedding-head", "tiny-llama");
  const std::string module = "model.embed_tokens";
  const TestPair pair = PairOf(files.adapter.Matrix(kPrefix + module + ".lora_embedding_A"),
                               files.adapter.Matrix(kPrefix + module + ".lora_embedding_B"));
  const std::vector<int64_t> ids = files.expected.Ids(module + "|x");
  const TestMatrix y_base = files.expected.Matrix(module + "|y_base");
  ExpectedOutput sum = ExpectedDelta(TokenIds(ids), TokenIds(ids), {&pair}, y_base.view().cols);
  AddMagnitudes(y_base, sum);
  ASSERT_OK_AND_ASSIGN(const auto packed,
                       PackedPair::PackEmbedding(SharedKernels(), pair.a.view(), pair.b.view()));
  ExpectNumbers(Apply(TokenIds(ids), {packed.get(), kScale}, y_base),
                files.expected.Matrix(module + "|y"), sum, 0);

  const TestMatrix weight = files.base.Matrix(module + ".weight");
  ExpectNumbers(Merge(weight, {&pair}, {.layout = WeightLayout::kInOut}),
                files.expected.Matrix(module + "|merged"),
                ExpectedSum(weight, WeightLayout::kInOut, {&pair}), 0);
}

TEST_F(PeftNumbersTest, ReplacedTokens) {
  const Case files("llama-trainable-tokens", "tiny-llama");
  const std::vector<int64_t> ids = {3, 1, 7};  // trainable_token_indices
  const TestMatrix rows = files.adapter.Matrix(
      "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta");
  EXPECT_TRUE(Merge(files.base.Matrix("model.embed_tokens.weight"), {},
                    {.replacement = MergeReplacement{rows.view(), ids}}) ==
              files.expected.Matrix("model.embed_tokens|merged"));
}

TEST_F(PeftNumbersTest, Experts) {
  constexpr int64_t kExperts = 4;
  const Case files("mixtral-experts", "tiny-mixtral");
  for (const auto& [module, parameter] :
       {std::pair<std::string, std::string>{"model.layers.0.mlp.experts.base_layer",
                                            "gate_up_proj"},
        {"model.layers.1.mlp.experts", "down_proj"}}) {
    SCOPED_TRACE(parameter);
    const TestMatrix a = files.adapter.Matrix(kPrefix + module + ".lora_A.weight");
    const TestMatrix b = files.adapter.Matrix(kPrefix + module + ".lora_B.weight");
    const int64_t rank = a.view().rows / kExperts;
    const int64_t out = b.view().rows;
    // [experts x out, in]
    const TestMatrix numbers = files.expected.Matrix(module + "|delta_weight." + parameter);
    for (int64_t e = 0; e < kExperts; ++e) {
      TestPair pair =
          PairOf(TestMatrix(DType::kF32, rank, a.view().cols), TestMatrix(DType::kF32, out, rank));
      std::memcpy(pair.a.data(), a.view().Rows(e * rank, rank).data, pair.a.bytes());
      // The expert counts fastest along the columns of B.
      for (int64_t at = 0; at < out * rank; ++at) {
        std::memcpy(pair.b.data() + at * sizeof(float),
                    b.view().data + (at * kExperts + e) * sizeof(float), sizeof(float));
      }
      TestMatrix of_expert(DType::kF32, out, a.view().cols);
      std::memcpy(of_expert.data(), numbers.view().Rows(e * out, out).data, of_expert.bytes());
      const TestMatrix zero(DType::kF32, out, a.view().cols);
      ExpectNumbers(Merge(zero, {&pair}, {}), of_expert,
                    ExpectedSum(zero, WeightLayout::kOutIn, {&pair}), 0);
    }
  }
}

}  // namespace
}  // namespace adapterd
