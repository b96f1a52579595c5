// Every way a Merge request can be wrong: the reason, and that nothing else happens.
#include <functional>
#include <limits>

#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

using Request = v1::MergeRequest;

constexpr int64_t kIn = 24;
constexpr int64_t kOut = 10;

class MergeErrorsTest : public ProjectionFixture {
 protected:
  MergeErrorsTest() {
    LoadAs("x", PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Add(kQ1, 2, kIn, kOut));
    LoadAs("other", PeftBuilder(2).Add(kQ0, 2, kIn + 1, kOut));
  }

  static Request Valid() {
    Request request;
    *request.mutable_weight() =
        DataTensor(DType::kF32, {kOut, kIn}, std::vector<float>(kOut * kIn, 0.5f));
    request.mutable_module()->set_path(kQ0);
    *request.add_adapters() = Ref("x");
    return request;
  }
};

struct WrongRequest {
  const char* name;
  Reason reason;
  const char* field;  // of the metadata; empty: not looked at
  std::function<void(Request&)> spoil;
};

const WrongRequest kWrong[] = {
    {"NoWeight", Reason::kInvalidField, "weight", [](Request& r) { r.clear_weight(); }},
    {"NoContent", Reason::kInvalidField, "weight",
     [](Request& r) { r.mutable_weight()->clear_data(); }},
    {"TwoContents", Reason::kInvalidField, "weight",
     [](Request& r) { r.mutable_weight()->add_f32_values(1); }},
    {"DataTooShort", Reason::kShapeMismatch, "weight",
     [](Request& r) { r.mutable_weight()->mutable_data()->pop_back(); }},
    {"OneDimension", Reason::kShapeMismatch, "weight",
     [](Request& r) {
       *r.mutable_weight() = DataTensor(DType::kF32, {kOut * kIn}, std::vector<float>(kOut * kIn));
     }},
    {"ThreeDimensions", Reason::kShapeMismatch, "weight",
     [](Request& r) {
       *r.mutable_weight() =
           DataTensor(DType::kF32, {1, kOut, kIn}, std::vector<float>(kOut * kIn));
     }},
    {"Transposed", Reason::kShapeMismatch, "weight",
     [](Request& r) {
       r.mutable_weight()->set_shape(0, kIn);
       r.mutable_weight()->set_shape(1, kOut);
     }},
    {"TransposedByLayout", Reason::kShapeMismatch, "weight",
     [](Request& r) { r.set_weight_layout(v1::WEIGHT_LAYOUT_IN_OUT); }},
    {"NegativeShape", Reason::kShapeMismatch, "weight",
     [](Request& r) {
       r.mutable_weight()->set_shape(0, -kOut);
       r.mutable_weight()->set_shape(1, -kIn);
     }},
    {"OverflowingShape", Reason::kShapeMismatch, "weight",
     [](Request& r) { r.mutable_weight()->set_shape(0, INT64_MAX); }},
    {"Empty", Reason::kShapeMismatch, "weight",
     [](Request& r) {
       *r.mutable_weight() = EmptyTensor(DType::kF32, {0, 0});
     }},
    {"Integers", Reason::kUnsupportedDtype, "weight.dtype",
     [](Request& r) { r.mutable_weight()->set_dtype(v1::DATA_TYPE_I32); }},
    {"NoDtype", Reason::kUnsupportedDtype, "weight",
     [](Request& r) { r.mutable_weight()->clear_dtype(); }},
    {"UnknownLayout", Reason::kInvalidField, "weight_layout",
     [](Request& r) { r.set_weight_layout(static_cast<v1::WeightLayout>(9)); }},
    {"BiasTooLong", Reason::kShapeMismatch, "bias",
     [](Request& r) {
       *r.mutable_bias() = DataTensor(DType::kF32, {kOut + 1}, std::vector<float>(kOut + 1));
     }},
    {"BiasIsAMatrix", Reason::kShapeMismatch, "bias",
     [](Request& r) {
       *r.mutable_bias() = DataTensor(DType::kF32, {1, kOut}, std::vector<float>(kOut));
     }},
    {"NoAdapters", Reason::kInvalidField, "adapters", [](Request& r) { r.clear_adapters(); }},
    {"BadName", Reason::kInvalidField, "adapters[1].name",
     [](Request& r) { *r.add_adapters() = Ref("-x"); }},
    {"WeightNaN", Reason::kInvalidField, "adapters[0].weight",
     [](Request& r) {
       r.mutable_adapters(0)->set_weight(std::numeric_limits<float>::quiet_NaN());
     }},
    {"UnknownAlias", Reason::kAdapterNotFound, "",
     [](Request& r) { r.mutable_adapters(0)->set_name("x@stable"); }},
    {"BadAlias", Reason::kInvalidField, "adapters[0].name",
     [](Request& r) { r.mutable_adapters(0)->set_name("x@"); }},
    {"NoModule", Reason::kInvalidField, "", [](Request& r) { r.clear_module(); }},
    {"ExpertOfALinearModule", Reason::kInvalidField, "module",
     [](Request& r) { r.mutable_module()->set_expert(1); }},
    {"AmbiguousTarget", Reason::kInvalidField, "module",
     [](Request& r) {
       r.mutable_module()->clear_path();
       r.mutable_module()->set_target("q_proj");
     }},
    {"UnknownAdapter", Reason::kAdapterNotFound, "",
     [](Request& r) { *r.add_adapters() = Ref("nobody"); }},
    {"OtherRevision", Reason::kRevisionMismatch, "",
     [](Request& r) { r.mutable_adapters(0)->set_revision(std::string(64, 'a')); }},
    {"UnknownModule", Reason::kModuleNotTargeted, "",
     [](Request& r) { r.mutable_module()->set_path("lm_head"); }},
    {"AdaptersThatDisagree", Reason::kShapeMismatch, "weight",
     [](Request& r) { *r.add_adapters() = Ref("other"); }},
};

TEST_F(MergeErrorsTest, WrongRequestsAreRefusedAndChangeNothing) {
  ASSERT_THAT(server_.Merge(Valid()).status, IsRpcOk());
  const int64_t used = server_.used_bytes();
  for (const WrongRequest& one : kWrong) {
    SCOPED_TRACE(one.name);
    Request request = Valid();
    one.spoil(request);
    const auto reply = server_.Merge(request);
    EXPECT_THAT(reply.status, IsRpcError(one.reason));
    if (*one.field != '\0') {
      EXPECT_THAT(reply.status, HasRpcMetadata("field", one.field));
    }
    EXPECT_EQ(server_.used_bytes(), used);
    EXPECT_EQ(server_.inflight_bytes(), 0);
    EXPECT_EQ(server_.registry().Get("x")->in_flight, 0);
  }
}

TEST_F(MergeErrorsTest, AShapeErrorSaysWhatTheAdapterNeeds) {
  Request request = Valid();
  request.set_weight_layout(v1::WEIGHT_LAYOUT_IN_OUT);
  const auto reply = server_.Merge(request);
  EXPECT_THAT(reply.status, HasRpcMetadata("expected", "[24, 10]"));
  EXPECT_THAT(reply.status, HasRpcMetadata("actual", "[10, 24]"));
  EXPECT_THAT(reply.status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(reply.status, HasRpcMetadata("module", kQ0));
}

}  // namespace
}  // namespace adapterd
