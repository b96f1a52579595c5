// ApplyProjection's numbers against plain loops.
#include <fmt/format.h>

#include <limits>

#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using ProjectionResultTest = ProjectionFixture;

std::string NameOf(DType dtype) { return std::string(DTypeName(dtype)); }

TEST_F(ProjectionResultTest, EveryMixOfTypesAndFormsAgreesWithPlainLoops) {
  constexpr int64_t kRows = 3;
  std::vector<PeftBuilder> adapters;
  for (const DType dtype : kFloatTypes) {
    adapters.push_back(PeftBuilder(1).Add(kQ0, 3, kIn, kOut, dtype));
    LoadAs(NameOf(dtype), adapters.back());
  }
  for (size_t a = 0; a < adapters.size(); ++a) {
    for (const DType input_dtype : kFloatTypes) {
      const std::vector<float> input = Input(input_dtype, kRows);
      for (const bool readable : {false, true}) {
        for (const int base : {-1, 0, 1, 2}) {
          for (const int output : {-1, 0, 1, 2}) {
            SCOPED_TRACE(NameOf(kFloatTypes[a]) + " adapter, " + NameOf(input_dtype) +
                         " input, base " + std::to_string(base) + ", output " +
                         std::to_string(output) + (readable ? ", readable" : ""));
            v1::ApplyProjectionRequest request;
            *request.mutable_input() = MakeTensor(readable, input_dtype, {kRows, kIn}, input);
            *request.mutable_adapter() = Ref(NameOf(kFloatTypes[a]));
            v1::Projection& projection = AddPath(request, kQ0);
            DType expected = input_dtype;
            std::vector<float> base_output;
            if (base >= 0) {
              expected = kFloatTypes[base];
              base_output = Input(expected, kRows, kOut);
              *projection.mutable_base_output() =
                  MakeTensor(base == 1, expected, {kRows, kOut}, base_output);
            }
            if (output >= 0) {
              expected = kFloatTypes[output];
              request.set_output_dtype(ToProto(expected));
            }
            const auto reply = server_.Apply(request);
            ASSERT_THAT(reply.status, IsRpcOk());
            ASSERT_EQ(reply->outputs_size(), 1);
            const OracleTerm term{&adapters[a].module()};
            ASSERT_NO_FATAL_FAILURE(ExpectOutput(reply->outputs(0).output(), expected, readable,
                                                 {kRows, kOut}, input, input_dtype,
                                                 {{term}, {term}, {term}}, base_output));
          }
        }
      }
    }
  }
}

TEST_F(ProjectionResultTest, ReadableInputIsRoundedToItsType) {
  PeftBuilder adapter(2);
  LoadAs("x", adapter.Add(kQ0, 2, kIn, kOut));
  std::vector<float> fine(kIn);
  for (float& value : fine) value = random_.Next();
  const std::vector<float> rounded = FloatsOf(DType::kBF16, BytesOf(DType::kBF16, fine));
  ASSERT_NE(fine, rounded);
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = ReadableTensor(DType::kBF16, {kIn}, fine);
  *request.mutable_adapter() = Ref("x");
  request.set_output_dtype(v1::DATA_TYPE_F32);
  AddPath(request, kQ0);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  ExpectOutput(reply->outputs(0).output(), DType::kF32, true, {kOut}, rounded, DType::kBF16,
               {{{&adapter.module()}}});
}

TEST_F(ProjectionResultTest, ReadableInputWithoutATypeIsF32) {
  PeftBuilder adapter(2);
  LoadAs("x", adapter.Add(kQ0, 2, kIn, kOut));
  const std::vector<float> input = Input(DType::kF32, 1);
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = ReadableTensor(DType::kF32, {kIn}, input);
  request.mutable_input()->clear_dtype();
  *request.mutable_adapter() = Ref("x");
  AddPath(request, kQ0);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  ExpectOutput(reply->outputs(0).output(), DType::kF32, true, {kOut}, input, DType::kF32,
               {{{&adapter.module()}}});
}

TEST_F(ProjectionResultTest, LeadingDimensionsAreRows) {
  PeftBuilder adapter(3);
  LoadAs("x", adapter.Add(kQ0, 2, kIn, kOut));
  const OracleTerm term{&adapter.module()};
  const std::pair<std::vector<int64_t>, int64_t> shapes[] = {
      {{}, 1}, {{1}, 1}, {{4}, 4}, {{2, 3}, 6}, {{2, 1, 2}, 4}};
  for (const auto& [leading, rows] : shapes) {
    const std::vector<float> input = Input(DType::kF32, rows);
    std::vector<int64_t> shape = leading;
    shape.push_back(kIn);
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, shape, input);
    *request.mutable_adapter() = Ref("x");
    AddPath(request, kQ0);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    shape.back() = kOut;
    ExpectOutput(reply->outputs(0).output(), DType::kF32, false, shape, input, DType::kF32,
                 std::vector<std::vector<OracleTerm>>(rows, {term}));
  }
}

TEST_F(ProjectionResultTest, SeveralModulesShareOneInput) {
  PeftBuilder adapter(4);
  LoadAs("x", adapter.Add(kQ0, 3, kIn, kOut).Add(kK0, 5, kIn, 7).Add(kQ1, 1, kIn, 3));
  const std::vector<float> input = Input(DType::kF32, 2);
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = DataTensor(DType::kF32, {2, kIn}, input);
  *request.mutable_adapter() = Ref("x", -0.5f);
  const std::vector<float> base = Input(DType::kF16, 2, 7);
  *AddTarget(request, "k_proj", -1).mutable_base_output() = DataTensor(DType::kF16, {2, 7}, base);
  AddTarget(request, "q_proj", 1);
  AddTarget(request, "self_attn.q_proj", 0);
  AddPath(request, kQ1);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  ASSERT_EQ(reply->outputs_size(), 4);
  const char* const paths[] = {kK0, kQ1, kQ0, kQ1};
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    const PeftModule& module = adapter.module(paths[i]);
    EXPECT_EQ(reply->outputs(i).path(), paths[i]);
    EXPECT_EQ(reply->outputs(i).applied(), 1);
    const OracleTerm term{&module, -0.5};
    ExpectOutput(reply->outputs(i).output(), i == 0 ? DType::kF16 : DType::kF32, false,
                 {2, module.out_features}, input, DType::kF32, {{term}, {term}},
                 i == 0 ? base : std::vector<float>());
  }
  ASSERT_EQ(reply->adapters_size(), 1);
  EXPECT_EQ(reply->adapters(0).name(), "x");
  EXPECT_EQ(reply->adapters(0).revision(), server_.registry().Get("x")->digest.revision);
}

TEST_F(ProjectionResultTest, SegmentsHaveTheirOwnWeightedAdapters) {
  std::vector<PeftBuilder> adapters;
  for (uint32_t seed = 0; seed < 3; ++seed) {
    adapters.push_back(PeftBuilder(10 + seed).Add(kQ0, 2 + seed, kIn, kOut, kFloatTypes[seed]));
    LoadAs(std::string(1, static_cast<char>('a' + seed)), adapters.back());
  }
  constexpr int64_t kRows = 7;
  const std::vector<float> input = Input(DType::kBF16, kRows);
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = DataTensor(DType::kBF16, {kRows, kIn}, input);
  request.set_output_dtype(v1::DATA_TYPE_F32);
  AddPath(request, kQ0);
  AddSegment(request, 2, {Ref("c")});
  AddSegment(request, 0, {Ref("a")});
  AddSegment(request, 1, {});
  AddSegment(request, 4, {Ref("a", 2), Ref("b", -0.25f), Ref("a", 0.5f), Ref("b", 0)});
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  const PeftModule* a = &adapters[0].module();
  const PeftModule* b = &adapters[1].module();
  const PeftModule* c = &adapters[2].module();
  const std::vector<OracleTerm> mixed = {{a, 2}, {b, -0.25}, {a, 0.5}, {b, 0}};
  ExpectOutput(reply->outputs(0).output(), DType::kF32, false, {kRows, kOut}, input, DType::kBF16,
               {{{c}}, {{c}}, {}, mixed, mixed, mixed, mixed});
  EXPECT_EQ(reply->outputs(0).applied(), 6);
  std::vector<std::string> names;
  for (const v1::AdapterUse& use : reply->adapters()) names.push_back(use.name());
  EXPECT_THAT(names, ElementsAre("c", "a", "b"));
}

TEST_F(ProjectionResultTest, ASoleSegmentWithoutRowsMeansAll) {
  PeftBuilder adapter(5);
  LoadAs("x", adapter.Add(kQ0, 2, kIn, kOut));
  const std::vector<float> input = Input(DType::kF32, 3);
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = DataTensor(DType::kF32, {3, kIn}, input);
  AddPath(request, kQ0);
  AddSegment(request, 0, {Ref("x"), Ref("x")});
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  const std::vector<OracleTerm> twice = {{&adapter.module()}, {&adapter.module()}};
  ExpectOutput(reply->outputs(0).output(), DType::kF32, false, {3, kOut}, input, DType::kF32,
               {twice, twice, twice});
  EXPECT_EQ(reply->outputs(0).applied(), 2);
}

TEST_F(ProjectionResultTest, NoRowsIsAnAnswerWithoutElements) {
  LoadAs("x", PeftBuilder(5).Add(kQ0, 2, kIn, kOut));
  for (const auto& leading : {std::vector<int64_t>{0}, std::vector<int64_t>{3, 0}}) {
    v1::ApplyProjectionRequest request;
    std::vector<int64_t> shape = leading;
    shape.push_back(kIn);
    *request.mutable_input() = EmptyTensor(DType::kF16, shape);
    *request.mutable_adapter() = Ref("x");
    AddPath(request, kQ0);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    shape.back() = kOut;
    EXPECT_EQ(ShapeOf(reply->outputs(0).output()), shape);
    EXPECT_EQ(reply->outputs(0).output().dtype(), v1::DATA_TYPE_F16);
    EXPECT_THAT(reply->outputs(0).output().data(), IsEmpty());
  }
}

TEST_F(ProjectionResultTest, NotANumberAndInfinityPassThrough) {
  PeftBuilder adapter(6);
  LoadAs("x", adapter.Add(kQ0, 2, kIn, kOut));
  std::vector<float> input = Input(DType::kF32, 3);
  input[kIn + 5] = std::numeric_limits<float>::quiet_NaN();
  input[2 * kIn + 7] = std::numeric_limits<float>::infinity();
  v1::ApplyProjectionRequest request;
  *request.mutable_input() = DataTensor(DType::kF32, {3, kIn}, input);
  *request.mutable_adapter() = Ref("x");
  AddPath(request, kQ0);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  const std::vector<float> values = FloatsOf(reply->outputs(0).output());
  for (int64_t o = 0; o < kOut; ++o) {
    const OracleValue first =
        Project(input.data(), DType::kF32, {{&adapter.module()}}, o, 0, DType::kF32);
    EXPECT_NEAR(values[o], first.value, first.tolerance);
    EXPECT_TRUE(std::isnan(values[kOut + o]));
    EXPECT_FALSE(std::isfinite(values[2 * kOut + o]));
  }
}

TEST_F(ProjectionResultTest, RowsWithoutAdaptersAreTheBaseBitForBit) {
  LoadAs("x", PeftBuilder(7).Add(kQ0, 2, kIn, kOut));
  for (const DType dtype : kFloatTypes) {
    SCOPED_TRACE(NameOf(dtype));
    std::string bits = BytesOf(dtype, Input(dtype, 2, kOut));
    const int64_t width = FloatBytes(dtype);
    bits.replace(0, width, std::string(width, '\xff'));              // a NaN with all its payload
    bits.replace(width, width, std::string(width - 1, 0) + '\x80');  // -0
    bits.replace(2 * width, width, '\x01' + std::string(width - 1, 0));  // the smallest subnormal
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {2, kIn}, Input(DType::kF32, 2));
    AddSegment(request, 1, {});
    AddSegment(request, 1, {Ref("x")});
    v1::Projection& projection = AddPath(request, kQ0);
    *projection.mutable_base_output() = EmptyTensor(dtype, {2, kOut});
    projection.mutable_base_output()->set_data(bits);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(reply->outputs(0).output().data().substr(0, kOut * width),
              bits.substr(0, kOut * width));
    EXPECT_NE(reply->outputs(0).output().data(), bits);
  }
}

TEST_F(ProjectionResultTest, AdaptersThatDoNotTargetTheModuleCanBeSkipped) {
  PeftBuilder q(8);
  LoadAs("q", q.Add(kQ0, 2, kIn, kOut));
  LoadAs("k", PeftBuilder(9).Add(kK0, 2, kIn, 7));
  const std::vector<float> input = Input(DType::kF32, 1);
  for (const bool readable : {false, true}) {
    const std::vector<float> base = Input(DType::kBF16, 1, kOut);
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = MakeTensor(readable, DType::kF32, {1, kIn}, input);
    request.set_skip_untargeted(true);
    AddSegment(request, 0, {Ref("k"), Ref("q", 3)});
    AddPath(request, kQ0);
    v1::Projection& with_base = AddPath(request, kQ1);
    *with_base.mutable_base_output() = MakeTensor(readable, DType::kBF16, {1, kOut}, base);
    AddPath(request, kQ1);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());

    ExpectOutput(reply->outputs(0).output(), DType::kF32, readable, {1, kOut}, input, DType::kF32,
                 {{{&q.module(), 3}}});
    EXPECT_EQ(reply->outputs(0).applied(), 1);
    EXPECT_EQ(reply->outputs(0).path(), kQ0);

    EXPECT_EQ(FloatsOf(reply->outputs(1).output()), base);
    EXPECT_EQ(reply->outputs(1).output().dtype(), v1::DATA_TYPE_BF16);
    EXPECT_EQ(ShapeOf(reply->outputs(1).output()), (std::vector<int64_t>{1, kOut}));
    EXPECT_EQ(reply->outputs(1).applied(), 0);
    EXPECT_EQ(reply->outputs(1).path(), "");

    EXPECT_THAT(FloatsOf(reply->outputs(2).output()), IsEmpty());
    EXPECT_EQ(reply->outputs(2).applied(), 0);

    ASSERT_EQ(reply->adapters_size(), 1);  // "k" was not used
    EXPECT_EQ(reply->adapters(0).name(), "q");
  }
}

TEST_F(ProjectionResultTest, AModuleWithoutALayerServesEveryLayer) {
  PeftBuilder adapter(10);
  LoadAs("x", adapter.Add("lm_head", 2, kIn, kOut));
  const std::vector<float> input = Input(DType::kF32, 1);
  for (const int layer : {-1, 0, 41}) {
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {1, kIn}, input);
    *request.mutable_adapter() = Ref("x");
    AddTarget(request, "lm_head", layer);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(reply->outputs(0).path(), "lm_head");
    ExpectOutput(reply->outputs(0).output(), DType::kF32, false, {1, kOut}, input, DType::kF32,
                 {{{&adapter.module()}}});
  }
}

TEST_F(ProjectionResultTest, ManyRowsAndWideModulesAgreeWithPlainLoops) {
  struct Case {
    int64_t rows, in, out, rank;
    DType dtype;
  };
  const Case cases[] = {{300, 64, 96, 17, DType::kF32}, {130, 33, 65, 1, DType::kBF16},
                        {2, 7, 4100, 3, DType::kF32},   {65, 48, 50, 70, DType::kBF16},
                        {1, 512, 31, 16, DType::kBF16}, {17, 40, 24, 32, DType::kF16}};
  int index = 0;
  for (const Case& c : cases) {
    SCOPED_TRACE(index);
    const std::string name = fmt::format("x{}", index++);
    PeftBuilder adapter(20 + index);
    LoadAs(name, adapter.Add(kQ0, c.rank, c.in, c.out, c.dtype));
    const std::vector<float> input = Input(c.dtype, c.rows, c.in);
    const std::vector<float> base = Input(DType::kF32, c.rows, c.out);
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(c.dtype, {c.rows, c.in}, input);
    *request.mutable_adapter() = Ref(name, 0.75f);
    *AddPath(request, kQ0).mutable_base_output() = DataTensor(DType::kF32, {c.rows, c.out}, base);
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    ExpectOutput(reply->outputs(0).output(), DType::kF32, false, {c.rows, c.out}, input, c.dtype,
                 std::vector<std::vector<OracleTerm>>(c.rows, {{&adapter.module(), 0.75}}), base);
  }
}

}  // namespace
}  // namespace adapterd
