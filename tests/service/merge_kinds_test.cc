// Merge of modules that are more than a linear pair: weights of every shape, what takes the base's
// place, and biases.
#include "tests/service/kinds_fixture.h"

namespace adapterd {
namespace {

using Dims = std::vector<int64_t>;

class MergeKindsTest : public KindsFixture {
 protected:
  // A random weight of that shape, for one adapter.
  v1::MergeRequest RequestOf(const std::string& path, const Dims& shape,
                             const std::string& adapter = "kinds", DType dtype = DType::kF32) {
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    weight_ = random_.Floats(dtype, elements);
    v1::MergeRequest request;
    *request.mutable_weight() = DataTensor(dtype, shape, weight_);
    request.mutable_module()->set_path(path);
    *request.add_adapters() = Ref(adapter);
    return request;
  }

  v1::MergeRequest OfQ(const std::string& adapter) {
    return RequestOf("q_proj", {kOutputs, kInputs}, adapter);
  }

  // Expects that element `at` of the flat result is value(at).
  template <typename Value>
  void ExpectMerged(const v1::MergeRequest& request, Value value) {
    const auto reply = server_.Merge(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(ShapeOf(reply->weight()), ShapeOf(request.weight()));
    EXPECT_EQ(reply->weight().dtype(), request.weight().dtype());
    const std::vector<float> merged = FloatsOf(reply->weight());
    ASSERT_EQ(merged.size(), weight_.size());
    for (size_t i = 0; i < merged.size(); ++i) {
      const double expected = value(static_cast<int64_t>(i));
      ASSERT_NEAR(merged[i], expected, Near(expected, DTypeOf(reply->weight()))) << i;
    }
  }

  void ExpectRefused(const v1::MergeRequest& request, Reason reason, const std::string& field) {
    const auto reply = server_.Merge(request);
    EXPECT_THAT(reply.status, IsRpcError(reason));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", field));
  }

  void ExpectShapesRefused(const std::string& path, const std::vector<Dims>& shapes) {
    for (const Dims& shape : shapes) {
      SCOPED_TRACE(path + " " + ShapeString(Shape(shape.begin(), shape.end())));
      ExpectRefused(RequestOf(path, shape), Reason::kShapeMismatch, "weight");
    }
  }

  // Neither weighted nor with another adapter.
  void ExpectAlone(const v1::MergeRequest& request) {
    v1::MergeRequest weighted = request;
    weighted.mutable_adapters(0)->set_weight(0.5f);
    ExpectRefused(weighted, Reason::kInvalidField, "adapters");
    v1::MergeRequest twice = request;
    *twice.add_adapters() = request.adapters(0);
    ExpectRefused(twice, Reason::kInvalidField, "adapters");
  }

  std::vector<float> weight_;
};

TEST_F(MergeKindsTest, ConvolutionsKeepTheirDimensions) {
  ExpectMerged(RequestOf("conv", {4, 3, 3, 2}), [&](int64_t i) {
    return weight_[i] + Delta(at("conv.A"), at("conv.B"), 18, i / 18, i % 18);
  });
  ExpectShapesRefused("conv", {{4, 3, 3, 3}, {3, 4, 3, 2}, {4, 18}, {72}, {4, 3, 6, 2}});
}

TEST_F(MergeKindsTest, AKernelOfOneElementFitsWithItsDimensions) {
  ExpectMerged(RequestOf("point", {kOutputs, kInputs, 1, 1}), [&](int64_t i) {
    return weight_[i] + Delta(at("point.A"), at("point.B"), kInputs, i / kInputs, i % kInputs);
  });
  ExpectShapesRefused("point", {{kInputs, kOutputs, 1, 1}, {kOutputs, kInputs, 2, 1}});
}

TEST_F(MergeKindsTest, EmbeddingsHaveARowForEachToken) {
  ExpectMerged(RequestOf("e", {kIds, kDim}), [&](int64_t i) {
    return weight_[i] + Delta(at("e.A"), at("e.B"), kIds, i % kDim, i / kDim);
  });
  ExpectShapesRefused("e", {{kDim, kIds}, {kIds + 1, kDim}, {kIds * kDim}});
}

TEST_F(MergeKindsTest, AnExpertIsMergedAlone) {
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    v1::MergeRequest request = RequestOf("experts.down_proj", {kOutputs, kInputs});
    request.mutable_module()->set_expert(static_cast<int32_t>(expert));
    const std::vector<float> a = ExpertA(expert);
    const std::vector<float> b = ExpertB(expert);
    ExpectMerged(request, [&](int64_t i) {
      return weight_[i] + Delta(a, b, kInputs, i / kInputs, i % kInputs);
    });
    request.mutable_module()->set_expert(kExperts);
    ExpectRefused(request, Reason::kInvalidField, "module");
    request.mutable_module()->clear_expert();
    ExpectRefused(request, Reason::kInvalidField, "module");
  }
}

TEST_F(MergeKindsTest, AReplacedWeightTakesTheBasesPlace) {
  v1::MergeRequest request = RequestOf("score", {3, kInputs}, "kinds", DType::kBF16);
  ExpectMerged(request, [&](int64_t i) { return at("score.W")[i]; });
  const auto reply = server_.Merge(request);
  EXPECT_EQ(FloatsOf(reply->bias()).size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_NEAR(FloatsOf(reply->bias())[i], at("score.bias")[i], Near(1, DType::kBF16));
  }
  ExpectAlone(request);
  ExpectShapesRefused("score", {{kInputs, 3}, {3, kInputs, 1}, {4, kInputs}, {3 * kInputs}});
}

// The pair is added to the weight that the file brings along, not to the request's.
TEST_F(MergeKindsTest, APairMayBringItsWeightAlong) {
  const v1::MergeRequest request = RequestOf("embed_tokens", {kIds, kDim});
  ExpectMerged(request, [&](int64_t i) {
    return at("embed.W")[i] + Delta(at("embed.A"), at("embed.B"), kIds, i % kDim, i / kDim);
  });
  ExpectAlone(request);
}

TEST_F(MergeKindsTest, TokenRowsReplaceTheirRows) {
  const v1::MergeRequest request = RequestOf("tok", {kIds, kDim});
  ExpectMerged(request, [&](int64_t i) {
    const int64_t row = i / kDim;
    if (row == 5) return at("tok.rows")[i % kDim];
    return row == 0 ? at("tok.rows")[kDim + i % kDim] : weight_[i];
  });
  ExpectAlone(request);
  ExpectShapesRefused("tok", {{5, kDim}, {kIds, kDim + 1}, {kIds * kDim}, {kIds, kDim, 1}});
}

TEST_F(MergeKindsTest, DoraNeedsNothingButTheWeight) {
  for (const std::string adapter : {"bare", "dora"}) {
    const v1::MergeRequest request = OfQ(adapter);
    ExpectMerged(request, [&](int64_t at_element) {
      const int64_t o = at_element / kInputs;
      double squares = 0;
      double own = 0;
      for (int64_t i = 0; i < kInputs; ++i) {
        const double sum =
            weight_[o * kInputs + i] + Delta(at("dora.A"), at("dora.B"), kInputs, o, i);
        squares += sum * sum;
        if (i == at_element % kInputs) own = sum;
      }
      return at("dora.magnitude")[o] / std::sqrt(squares) * own;
    });
    ExpectAlone(request);
    v1::MergeRequest with_other = request;
    *with_other.add_adapters() = Ref("plain");
    ExpectRefused(with_other, Reason::kInvalidField, "adapters");
  }
}

TEST_F(MergeKindsTest, BiasesThatNobodyChangesComeBackAsTheyWere) {
  v1::MergeRequest request = OfQ("plain");
  EXPECT_FALSE(server_.Merge(request)->has_bias());
  const std::vector<float> bias = random_.Floats(DType::kF16, kOutputs);
  *request.mutable_bias() = DataTensor(DType::kF16, {kOutputs}, bias);
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->bias().SerializeAsString(), request.bias().SerializeAsString());
  *request.mutable_bias() = DataTensor(DType::kF32, {kInputs}, std::vector<float>(kInputs));
  ExpectRefused(request, Reason::kShapeMismatch, "bias");
}

TEST_F(MergeKindsTest, AReplacedBiasIsTheAnswerWhateverWasGiven) {
  v1::MergeRequest request = OfQ("kinds");
  for (const bool given : {false, true}) {
    if (given) {
      *request.mutable_bias() = DataTensor(DType::kBF16, {kOutputs}, {1, 2, 3, 4, 5});
    }
    const auto reply = server_.Merge(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    const DType dtype = given ? DType::kBF16 : DType::kF32;
    EXPECT_EQ(DTypeOf(reply->bias()), dtype);
    EXPECT_EQ(FloatsOf(reply->bias()), FloatsOf(dtype, BytesOf(dtype, at("q.bias"))));
  }
  ExpectAlone(request);
}

TEST_F(MergeKindsTest, TheAdaptersOwnBiasIsAddedScaledAndWeighted) {
  v1::MergeRequest request = OfQ("own");
  request.mutable_adapters(0)->set_weight(-2);
  const std::vector<float> given = random_.Floats(DType::kF32, kOutputs);
  for (const bool with_bias : {false, true}) {
    if (with_bias) *request.mutable_bias() = ReadableTensor(DType::kF32, {kOutputs}, given);
    const auto reply = server_.Merge(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(reply->bias().f32_values_size() > 0, with_bias);
    const std::vector<float> bias = FloatsOf(reply->bias());
    ASSERT_EQ(bias.size(), static_cast<size_t>(kOutputs));
    for (int64_t o = 0; o < kOutputs; ++o) {
      const double expected = (with_bias ? given[o] : 0) - 2 * kScale * at("own.bias")[o];
      EXPECT_NEAR(bias[o], expected, Near(expected));
    }
  }
  ExpectMerged(request, [&](int64_t i) {
    return weight_[i] - 2 * Delta(at("own.A"), at("own.B"), kInputs, i / kInputs, i % kInputs);
  });
}

TEST_F(MergeKindsTest, ABiasBeyondItsTypeIsRefusedUnlessAllowed) {
  v1::MergeRequest request = OfQ("own");
  request.mutable_adapters(0)->set_weight(1e8f);  // more than F16 holds, in the F32 of the weight
  *request.mutable_bias() = DataTensor(DType::kF16, {kOutputs}, std::vector<float>(kOutputs, 1.0f));
  EXPECT_THAT(server_.Merge(request).status, IsRpcError(Reason::kNonFiniteResult));
  request.set_allow_non_finite(true);
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_TRUE(std::isinf(FloatsOf(reply->bias())[0]));
}

TEST_F(MergeKindsTest, WhatNobodyTargetsMayHaveAnyShape) {
  v1::MergeRequest request = RequestOf("norm", {7}, "kinds", DType::kF16);
  request.set_skip_untargeted(true);
  const auto reply = server_.Merge(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->weight().SerializeAsString(), request.weight().SerializeAsString());
  EXPECT_EQ(reply->adapters_size(), 0);
}

TEST_F(MergeKindsTest, ListingsNameTheKindOfEachModule) {
  v1::GetAdapterRequest request;
  request.set_name("kinds");
  request.set_view(v1::ADAPTER_VIEW_FULL);
  const auto reply = server_.Get(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  std::multimap<std::string, v1::ModuleKind> kinds;
  for (const v1::AdapterModule& module : reply->adapter().modules()) {
    kinds.emplace(module.path(), module.kind());
    EXPECT_EQ(module.experts(), module.kind() == v1::MODULE_KIND_EXPERTS ? kExperts : 0);
    EXPECT_EQ(module.replaces_bias(), module.path() == "q_proj" || module.path() == "score");
  }
  EXPECT_THAT(kinds, ::testing::ElementsAre(std::pair("conv", v1::MODULE_KIND_CONV),
                                            std::pair("e", v1::MODULE_KIND_EMBEDDING),
                                            std::pair("embed_tokens", v1::MODULE_KIND_EMBEDDING),
                                            std::pair("embed_tokens", v1::MODULE_KIND_REPLACEMENT),
                                            std::pair("experts.down_proj", v1::MODULE_KIND_EXPERTS),
                                            std::pair("point", v1::MODULE_KIND_CONV),
                                            std::pair("q_proj", v1::MODULE_KIND_LINEAR),
                                            std::pair("score", v1::MODULE_KIND_REPLACEMENT),
                                            std::pair("tok", v1::MODULE_KIND_REPLACEMENT)));
}

}  // namespace
}  // namespace adapterd
