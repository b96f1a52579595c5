// ApplyProjection on modules that are more than a linear pair: numbers, and what cannot be applied.
#include "tests/service/kinds_fixture.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using Request = v1::ApplyProjectionRequest;

v1::Tensor Ids(const std::vector<int64_t>& shape, const std::vector<int64_t>& values) {
  v1::Tensor tensor;
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.mutable_int64_values()->Assign(values.begin(), values.end());
  return tensor;
}

class ProjectionKindsTest : public KindsFixture {
 protected:
  static Request RequestOf(v1::Tensor input, const std::string& path,
                           const std::string& adapter = "kinds") {
    Request request;
    *request.mutable_input() = std::move(input);
    *request.mutable_adapter() = Ref(adapter);
    AddPath(request, path);
    return request;
  }

  // Two rows of activations.
  Request Floats(const std::string& path, const std::string& adapter = "kinds") {
    input_ = Input(DType::kF32, 2, kInputs);
    return RequestOf(DataTensor(DType::kF32, {2, kInputs}, input_), path, adapter);
  }

  // (scale * B A x)[o] for row `row` of the last Floats.
  double Applied(const std::vector<float>& a, const std::vector<float>& b, int64_t row,
                 int64_t o) const {
    double sum = 0;
    for (int64_t i = 0; i < kInputs; ++i)
      sum += Delta(a, b, kInputs, o, i) * input_[row * kInputs + i];
    return sum;
  }

  // Expects outputs [2, kOutputs] of that value at (row, o).
  template <typename Value>
  void ExpectRows(const Request& request, Value value) {
    const auto reply = server_.Apply(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(reply->outputs(0).applied(), 1);
    const std::vector<float> output = FloatsOf(reply->outputs(0).output());
    ASSERT_EQ(output.size(), static_cast<size_t>(2 * kOutputs));
    for (int64_t row = 0; row < 2; ++row) {
      for (int64_t o = 0; o < kOutputs; ++o) {
        EXPECT_NEAR(output[row * kOutputs + o], value(row, o), Near(value(row, o)))
            << row << ", " << o;
      }
    }
  }

  void ExpectRefused(const Request& request, Reason reason, const std::string& message) {
    const auto reply = server_.Apply(request);
    EXPECT_THAT(reply.status, IsRpcError(reason));
    EXPECT_THAT(reply.status, HasRpcMessage(HasSubstr(message)));
    EXPECT_EQ(server_.inflight_bytes(), 0);
  }

  std::vector<float> input_;
};

TEST_F(ProjectionKindsTest, TokenIdsPickColumns) {
  const std::vector<int64_t> ids = {8, 0, 3, 3, 1, 7};
  v1::Tensor i64 = Ids({6}, {});
  i64.set_dtype(v1::DATA_TYPE_I64);
  i64.set_data(std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * 8));
  const std::vector<int32_t> narrow(ids.begin(), ids.end());
  v1::Tensor i32 = Ids({3, 1, 2}, {});
  i32.set_dtype(v1::DATA_TYPE_I32);
  i32.set_data(std::string(reinterpret_cast<const char*>(narrow.data()), narrow.size() * 4));
  for (const v1::Tensor& input : {Ids({2, 3}, ids), i64, i32}) {
    const auto reply = server_.Apply(RequestOf(input, "e"));
    ASSERT_THAT(reply.status, IsRpcOk());
    const v1::Tensor& output = reply->outputs(0).output();
    std::vector<int64_t> shape(input.shape().begin(), input.shape().end());
    shape.push_back(kDim);
    EXPECT_EQ(ShapeOf(output), shape);
    EXPECT_EQ(output.dtype(), v1::DATA_TYPE_F32);
    const std::vector<float> values = FloatsOf(output);
    for (size_t row = 0; row < ids.size(); ++row) {
      for (int64_t o = 0; o < kDim; ++o) {
        const double expected = Delta(at("e.A"), at("e.B"), kIds, o, ids[row]);
        EXPECT_NEAR(values[row * kDim + o], expected, Near(expected)) << row << ", " << o;
      }
    }
  }
}

TEST_F(ProjectionKindsTest, EmbeddingsAreAddedToTheirBaseOutputInItsType) {
  Request request = RequestOf(Ids({1}, {4}), "e");
  *request.mutable_projections(0)->mutable_base_output() =
      DataTensor(DType::kF16, {1, kDim}, {1, -2, 0.5f, 0});
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->outputs(0).output().dtype(), v1::DATA_TYPE_F16);
  const std::vector<float> values = FloatsOf(reply->outputs(0).output());
  const double base[] = {1, -2, 0.5, 0};
  for (int64_t o = 0; o < kDim; ++o) {
    const double expected = base[o] + Delta(at("e.A"), at("e.B"), kIds, o, 4);
    EXPECT_NEAR(values[o], expected, Near(expected, DType::kF16));
  }
}

TEST_F(ProjectionKindsTest, IdsThatAreNoneAreRefused) {
  for (const int64_t id : {int64_t{-1}, kIds, int64_t{1} << 40, INT64_MIN}) {
    const auto reply = server_.Apply(RequestOf(Ids({2}, {0, id}), "e"));
    EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", "input"));
    EXPECT_THAT(reply.status, HasRpcMetadata("actual", std::to_string(id)));
    EXPECT_THAT(reply.status, HasRpcMetadata("module", "e"));
  }
}

TEST_F(ProjectionKindsTest, EachModuleTakesItsKindOfInput) {
  ExpectRefused(Floats("e"), Reason::kUnsupportedDtype, "takes token ids");
  ExpectRefused(RequestOf(Ids({2}, {1, 2}), "q_proj"), Reason::kUnsupportedDtype, "takes floats");
  EXPECT_THAT(server_.Apply(Floats("e")).status, HasRpcMetadata("field", "input"));
}

TEST_F(ProjectionKindsTest, AnExpertIsALinearPairOfItsOwn) {
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    Request request = Floats("experts.down_proj");
    request.mutable_projections(0)->mutable_module()->set_expert(static_cast<int32_t>(expert));
    const std::vector<float> a = ExpertA(expert);
    const std::vector<float> b = ExpertB(expert);
    ExpectRows(request, [&](int64_t row, int64_t o) { return Applied(a, b, row, o); });
  }
}

TEST_F(ProjectionKindsTest, ExpertsAreAskedForByNumber) {
  Request request = Floats("experts.down_proj");
  ExpectRefused(request, Reason::kInvalidField, "needs an expert from 0 to 2, found none");
  request.mutable_projections(0)->mutable_module()->set_expert(3);
  ExpectRefused(request, Reason::kInvalidField, "needs an expert from 0 to 2, found 3");
  request.mutable_projections(0)->mutable_module()->set_expert(-1);
  ExpectRefused(request, Reason::kInvalidField, "");
  request = Floats("q_proj");
  request.mutable_projections(0)->mutable_module()->set_expert(0);
  ExpectRefused(request, Reason::kInvalidField, "has no experts");
}

TEST_F(ProjectionKindsTest, ReplacementsAndKernelsCanOnlyBeMerged) {
  ExpectRefused(Floats("score"), Reason::kUnsupportedAdapter, "replaced as a whole");
  ExpectRefused(Floats("tok"), Reason::kUnsupportedAdapter, "replaced as a whole");
  ExpectRefused(Floats("conv"), Reason::kUnsupportedAdapter, "convolution of 6 elements");
}

TEST_F(ProjectionKindsTest, AKernelOfOneElementIsALinearLayer) {
  ExpectRows(Floats("point"),
             [&](int64_t row, int64_t o) { return Applied(at("point.A"), at("point.B"), row, o); });
}

TEST_F(ProjectionKindsTest, BiasesOfTheAdapterAreScaledAndWeighted) {
  Request request = Floats("q_proj", "own");
  request.mutable_adapter()->set_weight(-0.5f);
  ExpectRows(request, [&](int64_t row, int64_t o) {
    return -0.5 * (Applied(at("own.A"), at("own.B"), row, o) + kScale * at("own.bias")[o]);
  });
}

class ProjectionDoraTest : public ProjectionKindsTest {
 protected:
  // Of "dora", with a base output.
  Request Valid() {
    Request request = Floats("q_proj", "dora");
    base_output_ = random_.Floats(DType::kF32, 2 * kOutputs);
    *request.mutable_projections(0)->mutable_base_output() =
        DataTensor(DType::kF32, {2, kOutputs}, base_output_);
    return request;
  }

  double Gain(int64_t o) const {
    double squares = 0;
    for (int64_t i = 0; i < kInputs; ++i) {
      const double merged =
          at("base.W")[o * kInputs + i] + Delta(at("dora.A"), at("dora.B"), kInputs, o, i);
      squares += merged * merged;
    }
    return at("dora.magnitude")[o] / std::sqrt(squares);
  }

  std::vector<float> base_output_;
};

TEST_F(ProjectionDoraTest, BaseAndDeltaAreRescaledButNotTheBias) {
  ExpectRows(Valid(), [&](int64_t row, int64_t o) {
    const double bias = at("base.bias")[o];
    const double sum =
        base_output_[row * kOutputs + o] - bias + Applied(at("dora.A"), at("dora.B"), row, o);
    return bias + Gain(o) * sum;
  });
}

TEST_F(ProjectionDoraTest, BothTheBaseAndItsOutputAreNeeded) {
  Request request = Valid();
  *request.mutable_adapter() = Ref("bare");
  ExpectRefused(request, Reason::kBaseRequired, "load the adapter with base_checkpoint");
  request = Valid();
  request.mutable_projections(0)->clear_base_output();
  ExpectRefused(request, Reason::kBaseRequired, "give base_output");
}

TEST_F(ProjectionDoraTest, ItIsNoSummand) {
  Request request = Valid();
  request.mutable_adapter()->set_weight(2);
  ExpectRefused(request, Reason::kInvalidField, "weight 1 alone");
  for (const bool dora_first : {false, true}) {
    request = Valid();
    request.clear_adapter();
    AddSegment(request, 2,
               {Ref(dora_first ? "dora" : "plain"), Ref(dora_first ? "plain" : "dora")});
    ExpectRefused(request, Reason::kInvalidField, "no other adapter");
  }
  // In a segment of its own it may stand beside others.
  request = Valid();
  request.clear_adapter();
  AddSegment(request, 1, {Ref("dora")});
  AddSegment(request, 1, {Ref("plain"), Ref("plain", -1)});
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  const std::vector<float> output = FloatsOf(reply->outputs(0).output());
  for (int64_t o = 0; o < kOutputs; ++o) {
    const double untouched = base_output_[kOutputs + o];
    EXPECT_NEAR(output[kOutputs + o], untouched, Near(untouched));
  }
}

}  // namespace
}  // namespace adapterd
