// Merge's numbers against plain loops.
#include <fmt/format.h>

#include <cstring>
#include <deque>
#include <limits>

#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

using ::testing::IsEmpty;

class MergeResultTest : public ProjectionFixture {
 protected:
  // Loads one adapter on kQ0 under `name`.
  const PeftModule& LoadOne(const std::string& name, uint32_t seed, int64_t rank,
                            int64_t in_features = kIn, int64_t out_features = kOut,
                            DType dtype = DType::kF32) {
    PeftBuilder& builder =
        builders_.emplace_back(seed).Add(kQ0, rank, in_features, out_features, dtype);
    LoadAs(name, builder);
    return builder.module();
  }

  static v1::MergeRequest Request(v1::Tensor weight, const std::vector<v1::AdapterRef>& refs) {
    v1::MergeRequest request;
    *request.mutable_weight() = std::move(weight);
    request.mutable_module()->set_path(kQ0);
    for (const v1::AdapterRef& ref : refs) *request.add_adapters() = ref;
    return request;
  }

  // Element [o, i] of the merged weight, W being `weight` there.
  static OracleValue Merged(double weight, const std::vector<OracleTerm>& terms, int64_t o,
                            int64_t i, DType dtype) {
    OracleValue result{weight, 0};
    double magnitude = std::abs(weight);
    int64_t additions = 4;
    for (const OracleTerm& term : terms) {
      const PeftModule& module = *term.module;
      const double factor = term.weight * module.scale;
      result.value += factor * module.WeightDelta(o, i);
      for (int64_t r = 0; r < module.rank; ++r) {
        magnitude +=
            std::abs(factor * module.b[o * module.rank + r] * module.a[r * module.in_features + i]);
      }
      additions += module.rank + 1;
    }
    result.tolerance = static_cast<double>(additions) * UnitRoundoff(DType::kF32) * magnitude;
    result.tolerance +=
        UnitRoundoff(dtype) * (std::abs(result.value) + result.tolerance) + SmallestRounding(dtype);
    return result;
  }

  std::deque<PeftBuilder> builders_;
};

TEST_F(MergeResultTest, EveryTypeLayoutAndFormAgreesWithPlainLoops) {
  const PeftModule* modules[3];
  for (int a = 0; a < 3; ++a) {
    modules[a] = &LoadOne(std::to_string(a), 30 + a, 3 + a, kIn, kOut, kFloatTypes[a]);
  }
  for (const DType dtype : kFloatTypes) {
    for (const bool in_out : {false, true}) {
      for (const bool readable : {false, true}) {
        for (int a = 0; a < 3; ++a) {
          SCOPED_TRACE(std::string(DTypeName(dtype)) + (in_out ? " transposed" : "") +
                       (readable ? " readable" : "") + " adapter " + std::to_string(a));
          const std::vector<float> weight = random_.Floats(dtype, kIn * kOut);
          const std::vector<int64_t> shape =
              in_out ? std::vector<int64_t>{kIn, kOut} : std::vector<int64_t>{kOut, kIn};
          v1::MergeRequest request =
              Request(MakeTensor(readable, dtype, shape, weight), {Ref(std::to_string(a), -1.5f)});
          if (in_out) request.set_weight_layout(v1::WEIGHT_LAYOUT_IN_OUT);
          const auto reply = server_.Merge(request);
          ASSERT_THAT(reply.status, IsRpcOk());
          EXPECT_EQ(reply->weight().dtype(), ToProto(dtype));
          EXPECT_EQ(ShapeOf(reply->weight()), shape);
          EXPECT_EQ(reply->weight().f32_values_size() > 0, readable);
          const std::vector<float> merged = FloatsOf(reply->weight());
          ASSERT_EQ(merged.size(), weight.size());
          for (int64_t o = 0; o < kOut; ++o) {
            for (int64_t i = 0; i < kIn; ++i) {
              const int64_t at = in_out ? i * kOut + o : o * kIn + i;
              const OracleValue expected = Merged(weight[at], {{modules[a], -1.5}}, o, i, dtype);
              ASSERT_NEAR(merged[at], expected.value, expected.tolerance) << o << ", " << i;
            }
          }
          EXPECT_FALSE(reply->has_bias());
          ASSERT_EQ(reply->adapters_size(), 1);
          EXPECT_EQ(reply->adapters(0).name(), std::to_string(a));
        }
      }
    }
  }
}

TEST_F(MergeResultTest, TheDeltasOfSeveralAdaptersAreSummedAndRoundedOnce) {
  const PeftModule& a = LoadOne("a", 40, 2);
  const PeftModule& b = LoadOne("b", 41, 5, kIn, kOut, DType::kBF16);
  const std::vector<float> weight = random_.Floats(DType::kBF16, kIn * kOut);
  const auto reply = server_.Merge(Request(DataTensor(DType::kBF16, {kOut, kIn}, weight),
                                           {Ref("a", 0.5f), Ref("b", -2), Ref("a", 0.25f)}));
  ASSERT_THAT(reply.status, IsRpcOk());
  const std::vector<float> merged = FloatsOf(reply->weight());
  for (int64_t at = 0; at < kIn * kOut; ++at) {
    const OracleValue expected =
        Merged(weight[at], {{&a, 0.5}, {&b, -2}, {&a, 0.25}}, at / kIn, at % kIn, DType::kBF16);
    ASSERT_NEAR(merged[at], expected.value, expected.tolerance) << at;
  }
  EXPECT_EQ(reply->adapters_size(), 2);
}

TEST_F(MergeResultTest, ABiasComesBackAsItWas) {
  LoadOne("x", 42, 2);
  v1::MergeRequest request = Request(
      DataTensor(DType::kF32, {kOut, kIn}, random_.Floats(DType::kF32, kOut * kIn)), {Ref("x")});
  *request.mutable_bias() = DataTensor(DType::kF16, {kOut}, random_.Floats(DType::kF16, kOut));
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->bias().SerializeAsString(), request.bias().SerializeAsString());
}

TEST_F(MergeResultTest, StatsTellWhatRoundingDid) {
  const PeftModule& module = LoadOne("x", 43, 2);
  for (const DType dtype : kFloatTypes) {
    SCOPED_TRACE(DTypeName(dtype));
    const std::vector<float> weight = random_.Floats(dtype, kIn * kOut);
    const auto reply =
        server_.Merge(Request(DataTensor(dtype, {kOut, kIn}, weight), {Ref("x", 0.001f)}));
    ASSERT_THAT(reply.status, IsRpcOk());
    const std::vector<float> merged = FloatsOf(reply->weight());
    double max_delta = 0, max_error = 0, delta_norm = 0, error_norm = 0;
    int64_t unchanged = 0;
    for (int64_t at = 0; at < kIn * kOut; ++at) {
      const double delta =
          static_cast<double>(0.001f) * module.scale * module.WeightDelta(at / kIn, at % kIn);
      const double error = weight[at] + delta - merged[at];
      max_delta = std::max(max_delta, std::abs(delta));
      max_error = std::max(max_error, std::abs(error));
      delta_norm += delta * delta;
      error_norm += error * error;
      unchanged += merged[at] == weight[at] ? 1 : 0;
    }
    const v1::MergeStats& stats = reply->stats();
    EXPECT_NEAR(stats.max_abs_delta(), max_delta, 1e-5 * max_delta);
    // The delta itself is only known as well as F32 knows it.
    EXPECT_NEAR(stats.max_abs_rounding_error(), max_error, 1e-2 * max_error + 1e-5 * max_delta);
    EXPECT_NEAR(stats.relative_rounding_error(), std::sqrt(error_norm / delta_norm),
                1e-2 * std::sqrt(error_norm / delta_norm) + 1e-5);
    EXPECT_EQ(stats.zeroed_elements(), unchanged);
    EXPECT_EQ(stats.non_finite_elements(), 0);
  }
}

TEST_F(MergeResultTest, DeltasThatRoundingSwallowsAreCounted) {
  LoadOne("x", 44, 2);
  const std::vector<float> weight(kIn * kOut, 512);
  const v1::Tensor tensor = DataTensor(DType::kBF16, {kOut, kIn}, weight);
  const auto reply = server_.Merge(Request(tensor, {Ref("x", 1e-6f)}));
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->weight().data(), tensor.data());
  EXPECT_EQ(reply->stats().zeroed_elements(), kIn * kOut);
  EXPECT_NEAR(reply->stats().relative_rounding_error(), 1, 1e-6);
  EXPECT_GT(reply->stats().max_abs_delta(), 0);
}

// Bits that arithmetic would change: a signalling NaN, -0, the smallest subnormal, -infinity.
std::string AwkwardBits(DType dtype, int64_t elements) {
  std::string bits(elements * FloatBytes(dtype), '\0');
  const auto set = [&](int64_t at, uint32_t f32, uint16_t f16, uint16_t bf16) {
    const uint32_t value = dtype == DType::kF32 ? f32 : dtype == DType::kF16 ? f16 : bf16;
    std::memcpy(&bits[at * FloatBytes(dtype)], &value, FloatBytes(dtype));
  };
  set(0, 0x7f800001, 0x7c01, 0x7f81);
  set(1, 0x80000000, 0x8000, 0x8000);
  set(2, 0x00000001, 0x0001, 0x0001);
  set(3, 0xff800000, 0xfc00, 0xff80);
  set(4, 0x3f800001, 0x3c01, 0x3f81);
  return bits;
}

TEST_F(MergeResultTest, NothingToAddChangesNoBit) {
  LoadOne("x", 45, 2);
  LoadAs("other", PeftBuilder(46).Add(kK0, 2, kIn, kOut));
  for (const DType dtype : kFloatTypes) {
    SCOPED_TRACE(DTypeName(dtype));
    v1::Tensor weight = EmptyTensor(dtype, {kOut, kIn});
    weight.set_data(AwkwardBits(dtype, kOut * kIn));

    v1::MergeRequest skipped = Request(weight, {Ref("other")});
    skipped.set_skip_untargeted(true);
    const auto untargeted = server_.Merge(skipped);
    ASSERT_THAT(untargeted.status, IsRpcOk());
    EXPECT_EQ(untargeted->weight().data(), weight.data());
    EXPECT_THAT(untargeted->adapters(), IsEmpty());
    EXPECT_EQ(untargeted->stats().max_abs_delta(), 0);
    EXPECT_EQ(untargeted->stats().relative_rounding_error(), 0);
    EXPECT_EQ(untargeted->stats().zeroed_elements(), 0);
    EXPECT_EQ(untargeted->stats().non_finite_elements(), 2);

    const auto weightless = server_.Merge(Request(weight, {Ref("x", 0)}));
    ASSERT_THAT(weightless.status, IsRpcOk());
    EXPECT_EQ(weightless->weight().data(), weight.data());
    EXPECT_EQ(weightless->adapters_size(), 1);
  }
}

TEST_F(MergeResultTest, SkippingKeepsTheAdaptersThatDoTarget) {
  const PeftModule& module = LoadOne("x", 47, 2);
  LoadAs("other", PeftBuilder(48).Add(kK0, 2, kIn, kOut));
  const std::vector<float> weight = random_.Floats(DType::kF32, kIn * kOut);
  v1::MergeRequest request =
      Request(DataTensor(DType::kF32, {kOut, kIn}, weight), {Ref("other"), Ref("x")});
  EXPECT_THAT(server_.Merge(request).status, IsRpcError(Reason::kModuleNotTargeted));
  request.set_skip_untargeted(true);
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  const OracleValue expected = Merged(weight[0], {{&module}}, 0, 0, DType::kF32);
  EXPECT_NEAR(FloatsOf(reply->weight())[0], expected.value, expected.tolerance);
  ASSERT_EQ(reply->adapters_size(), 1);
  EXPECT_EQ(reply->adapters(0).name(), "x");
}

TEST_F(MergeResultTest, AResultBeyondItsTypeIsRefusedUnlessAllowed) {
  LoadOne("x", 49, 2);
  std::vector<float> weight(kIn * kOut, 65504);  // F16's largest
  v1::MergeRequest request =
      Request(DataTensor(DType::kF16, {kOut, kIn}, weight), {Ref("x", 1000)});
  const auto refused = server_.Merge(request);
  EXPECT_THAT(refused.status, IsRpcError(Reason::kNonFiniteResult));
  request.set_allow_non_finite(true);
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  int64_t infinite = 0;
  for (const float value : FloatsOf(reply->weight())) infinite += std::isinf(value) ? 1 : 0;
  EXPECT_GT(infinite, 0);
  EXPECT_LT(infinite, kIn * kOut);
  EXPECT_EQ(reply->stats().non_finite_elements(), infinite);
}

TEST_F(MergeResultTest, AWeightThatWasNotFiniteBeforeIsNoError) {
  LoadOne("x", 50, 2);
  std::vector<float> weight = random_.Floats(DType::kF32, kIn * kOut);
  weight[7] = std::numeric_limits<float>::quiet_NaN();
  weight[8] = std::numeric_limits<float>::infinity();
  const auto reply =
      server_.Merge(Request(DataTensor(DType::kF32, {kOut, kIn}, weight), {Ref("x")}));
  ASSERT_THAT(reply.status, IsRpcOk());
  const std::vector<float> merged = FloatsOf(reply->weight());
  EXPECT_TRUE(std::isnan(merged[7]));
  EXPECT_TRUE(std::isinf(merged[8]));
  EXPECT_EQ(reply->stats().non_finite_elements(), 2);
}

TEST_F(MergeResultTest, WhatMergeAddsIsWhatApplyProjectionAdds) {
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    const int64_t in = 1 + random_.Below(70);
    const int64_t out = 1 + random_.Below(70);
    const int64_t rank = 1 + random_.Below(static_cast<int>(std::min<int64_t>({in, out, 20})));
    const DType weight_dtype = kFloatTypes[random_.Below(3)];
    const DType factor_dtype = kFloatTypes[random_.Below(3)];
    const std::string name = fmt::format("x{}", round);
    const PeftModule& module = LoadOne(name, 60 + round, rank, in, out, factor_dtype);
    const std::vector<float> weight = random_.Floats(weight_dtype, out * in);
    const auto merged_reply =
        server_.Merge(Request(DataTensor(weight_dtype, {out, in}, weight), {Ref(name)}));
    ASSERT_THAT(merged_reply.status, IsRpcOk());
    const std::vector<float> merged = FloatsOf(merged_reply->weight());

    const std::vector<float> x = random_.Floats(DType::kF32, in);
    v1::ApplyProjectionRequest apply;
    *apply.mutable_input() = DataTensor(DType::kF32, {in}, x);
    *apply.mutable_adapter() = Ref(name);
    AddPath(apply, kQ0);
    const auto applied_reply = server_.Apply(apply);
    ASSERT_THAT(applied_reply.status, IsRpcOk());
    const std::vector<float> delta = FloatsOf(applied_reply->outputs(0).output());

    for (int64_t o = 0; o < out; ++o) {
      double difference = 0;
      double tolerance = Project(x.data(), DType::kF32, {{&module}}, o, 0, DType::kF32).tolerance;
      for (int64_t i = 0; i < in; ++i) {
        difference += x[i] * (static_cast<double>(merged[o * in + i]) - weight[o * in + i]);
        tolerance +=
            std::abs(x[i]) * Merged(weight[o * in + i], {{&module}}, o, i, weight_dtype).tolerance;
      }
      ASSERT_NEAR(difference, delta[o], tolerance) << "row " << o;
    }
  }
}

}  // namespace
}  // namespace adapterd
