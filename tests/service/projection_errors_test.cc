// Every way an ApplyProjection request can be wrong: the reason, and that nothing else happens.
#include <functional>
#include <limits>

#include "service/projection_plan.h"
#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ProjectionErrorsTest : public ProjectionFixture {
 protected:
  ProjectionErrorsTest() {
    LoadAs("x", PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Add(kQ1, 2, kIn, kOut));
    LoadAs("narrow", PeftBuilder(2).Add(kQ0, 2, kIn, kOut - 1));
  }

  v1::ApplyProjectionRequest Valid() {
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {2, kIn}, Input(DType::kF32, 2));
    *request.mutable_adapter() = Ref("x");
    AddPath(request, kQ0);
    return request;
  }
};

struct WrongRequest {
  const char* name;
  Reason reason;
  const char* field;  // of the metadata; empty: not looked at
  std::function<void(v1::ApplyProjectionRequest&)> spoil;
};

using Request = v1::ApplyProjectionRequest;

v1::Tensor& BaseOf(Request& request) {
  return *request.mutable_projections(0)->mutable_base_output();
}

v1::ModuleSelector& ModuleOf(Request& request) {
  return *request.mutable_projections(0)->mutable_module();
}

void UseSegments(Request& request, const std::vector<int64_t>& rows) {
  request.clear_adapter();
  for (const int64_t count : rows) AddSegment(request, count, {Ref("x")});
}

constexpr int64_t kIn = 24;
constexpr int64_t kOut = 10;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const WrongRequest kWrongTensors[] = {
    {"NoInput", Reason::kInvalidField, "input", [](Request& r) { r.clear_input(); }},
    {"NoContent", Reason::kInvalidField, "input",
     [](Request& r) {
       *r.mutable_input() = EmptyTensor(DType::kF32, {2, kIn});
     }},
    {"TwoContents", Reason::kInvalidField, "input",
     [](Request& r) { r.mutable_input()->add_f32_values(1); }},
    {"DataAndIntegers", Reason::kInvalidField, "input",
     [](Request& r) { r.mutable_input()->add_int64_values(1); }},
    {"DataTooShort", Reason::kShapeMismatch, "input",
     [](Request& r) { r.mutable_input()->mutable_data()->pop_back(); }},
    {"DataTooLong", Reason::kShapeMismatch, "input",
     [](Request& r) { r.mutable_input()->mutable_data()->push_back('x'); }},
    {"DataForNoElements", Reason::kShapeMismatch, "input",
     [](Request& r) { r.mutable_input()->set_shape(0, 0); }},
    {"TooFewValues", Reason::kShapeMismatch, "input",
     [](Request& r) {
       *r.mutable_input() = ReadableTensor(DType::kF32, {2, kIn}, {1, 2});
     }},
    {"Scalar", Reason::kShapeMismatch, "input",
     [](Request& r) { *r.mutable_input() = DataTensor(DType::kF32, {}, {1}); }},
    {"NegativeDimension", Reason::kShapeMismatch, "input",
     [](Request& r) { r.mutable_input()->set_shape(0, -2); }},
    {"TwoNegativeDimensions", Reason::kShapeMismatch, "input",
     [](Request& r) {
       r.mutable_input()->set_shape(0, -2);
       r.mutable_input()->set_shape(1, -kIn);
     }},
    {"HugeDimension", Reason::kShapeMismatch, "input",
     [](Request& r) { r.mutable_input()->set_shape(0, int64_t{1} << 40); }},
    {"OverflowingShape", Reason::kShapeMismatch, "input",
     [](Request& r) {
       r.mutable_input()->set_shape(0, int64_t{1} << 62);
       r.mutable_input()->set_shape(1, 4);
     }},
    {"ShapeThatOverflowsToTheRightSize", Reason::kShapeMismatch, "input",
     [](Request& r) {  // 2^63 x 2 x kIn elements are 0 modulo 2^64
       *r.mutable_input() = EmptyTensor(DType::kF32, {int64_t{1} << 62, 4, kIn});
     }},
    {"TooManyDimensions", Reason::kShapeMismatch, "input",
     [](Request& r) {
       for (int i = 0; i < 40; ++i) r.mutable_input()->add_shape(1);
     }},
    {"OtherWidth", Reason::kShapeMismatch, "input",
     [](Request& r) {
       *r.mutable_input() = DataTensor(DType::kF32, {1, 2 * kIn}, std::vector<float>(2 * kIn));
     }},
    {"NoWidth", Reason::kShapeMismatch, "input",
     [](Request& r) {
       *r.mutable_input() = EmptyTensor(DType::kF32, {2, 0});
     }},
    {"DataWithoutDtype", Reason::kUnsupportedDtype, "input",
     [](Request& r) { r.mutable_input()->clear_dtype(); }},
    {"UnknownDtype", Reason::kUnsupportedDtype, "input.dtype",
     [](Request& r) { r.mutable_input()->set_dtype(static_cast<v1::DataType>(77)); }},
    {"IntegerDtype", Reason::kUnsupportedDtype, "input",
     [](Request& r) { r.mutable_input()->set_dtype(v1::DATA_TYPE_I32); }},
    {"Ids", Reason::kUnsupportedDtype, "input",
     [](Request& r) {
       r.mutable_input()->Clear();
       r.mutable_input()->add_shape(1);
       r.mutable_input()->add_int64_values(5);
     }},
    {"FloatsAsIntegers", Reason::kUnsupportedDtype, "input",
     [](Request& r) {
       *r.mutable_input() = ReadableTensor(DType::kF32, {1}, {5});
       r.mutable_input()->set_dtype(v1::DATA_TYPE_I64);
     }},
    {"BaseWithOtherRows", Reason::kShapeMismatch, "projections[0].base_output",
     [](Request& r) {
       BaseOf(r) = DataTensor(DType::kF32, {3, kOut}, std::vector<float>(3 * kOut));
     }},
    {"BaseWithOtherWidth", Reason::kShapeMismatch, "projections[0].base_output",
     [](Request& r) {
       BaseOf(r) = DataTensor(DType::kF32, {2, kOut + 1}, std::vector<float>(2 * kOut + 2));
     }},
    {"BaseIsAScalar", Reason::kShapeMismatch, "projections[0].base_output",
     [](Request& r) { BaseOf(r) = DataTensor(DType::kF32, {}, {1}); }},
    {"BaseWithoutContent", Reason::kInvalidField, "projections[0].base_output",
     [](Request& r) {
       BaseOf(r) = EmptyTensor(DType::kF32, {2, kOut});
     }},
    {"UnknownOutputDtype", Reason::kUnsupportedDtype, "output_dtype",
     [](Request& r) { r.set_output_dtype(static_cast<v1::DataType>(77)); }},
    {"IntegerOutputDtype", Reason::kUnsupportedDtype, "output_dtype",
     [](Request& r) { r.set_output_dtype(v1::DATA_TYPE_I32); }},
};

const WrongRequest kWrongAdapters[] = {
    {"NeitherAdapterNorSegments", Reason::kInvalidField, "adapter",
     [](Request& r) { r.clear_adapter(); }},
    {"BothAdapterAndSegments", Reason::kInvalidField, "adapter",
     [](Request& r) { AddSegment(r, 2, {Ref("x")}); }},
    {"NoName", Reason::kInvalidField, "adapter.name",
     [](Request& r) { r.mutable_adapter()->set_name(""); }},
    {"BadName", Reason::kInvalidField, "adapter.name",
     [](Request& r) { r.mutable_adapter()->set_name("../x"); }},
    {"BadNameInASegment", Reason::kInvalidField, "segments[1].adapters[0].name",
     [](Request& r) {
       UseSegments(r, {1, 1});
       r.mutable_segments(1)->mutable_adapters(0)->set_name("a b");
     }},
    {"UnknownAlias", Reason::kAdapterNotFound, "",
     [](Request& r) { r.mutable_adapter()->set_name("x@stable"); }},
    {"BadAlias", Reason::kInvalidField, "adapter.name",
     [](Request& r) { r.mutable_adapter()->set_name("x@y@z"); }},
    {"UnknownAdapter", Reason::kAdapterNotFound, "",
     [](Request& r) { r.mutable_adapter()->set_name("nobody"); }},
    {"OtherRevision", Reason::kRevisionMismatch, "",
     [](Request& r) { r.mutable_adapter()->set_revision(std::string(64, '0')); }},
    {"WeightNaN", Reason::kInvalidField, "adapter.weight",
     [](Request& r) { r.mutable_adapter()->set_weight(kNan); }},
    {"WeightInfinite", Reason::kInvalidField, "adapter.weight",
     [](Request& r) { r.mutable_adapter()->set_weight(-kInfinity); }},
    {"RowsTooFew", Reason::kInvalidField, "segments", [](Request& r) { UseSegments(r, {1}); }},
    {"RowsTooMany", Reason::kInvalidField, "segments",
     [](Request& r) {
       UseSegments(r, {1, 2});
     }},
    {"NoRowsInTwoSegments", Reason::kInvalidField, "segments",
     [](Request& r) {
       UseSegments(r, {0, 0});
     }},
    {"NegativeRows", Reason::kInvalidField, "segments[0].rows",
     [](Request& r) {
       UseSegments(r, {-1, 3});
     }},
    {"RowsThatOverflow", Reason::kInvalidField, "segments",
     [](Request& r) {
       UseSegments(r, {INT64_MAX, INT64_MAX, 4});
     }},
    {"TooManySegments", Reason::kInvalidField, "segments",
     [](Request& r) { UseSegments(r, std::vector<int64_t>(kMaxSegments + 1, 0)); }},
    {"TooManyAdapters", Reason::kInvalidField, "segments[0].adapters",
     [](Request& r) {
       r.clear_adapter();
       AddSegment(r, 2, std::vector<v1::AdapterRef>(kMaxAdaptersPerSegment + 1, Ref("x")));
     }},
    {"TooManyRows", Reason::kInvalidField, "input",
     [](Request& r) {
       *r.mutable_input() = EmptyTensor(DType::kF32, {kMaxRows + 1, 0});
     }},
};

const WrongRequest kWrongModules[] = {
    {"NoProjections", Reason::kInvalidField, "projections",
     [](Request& r) { r.clear_projections(); }},
    {"NoSelector", Reason::kInvalidField, "",
     [](Request& r) { r.mutable_projections(0)->clear_module(); }},
    {"PathAndTarget", Reason::kInvalidField, "", [](Request& r) { ModuleOf(r).set_target("q"); }},
    {"PathAndLayer", Reason::kInvalidField, "", [](Request& r) { ModuleOf(r).set_layer(0); }},
    {"NegativeLayer", Reason::kInvalidField, "",
     [](Request& r) {
       ModuleOf(r).clear_path();
       ModuleOf(r).set_target("q_proj");
       ModuleOf(r).set_layer(-1);
     }},
    {"ExpertOfALinearModule", Reason::kInvalidField, "projections[0].module",
     [](Request& r) { ModuleOf(r).set_expert(0); }},
    {"NegativeExpert", Reason::kInvalidField, "", [](Request& r) { ModuleOf(r).set_expert(-1); }},
    {"UnknownPath", Reason::kModuleNotTargeted, "",
     [](Request& r) { ModuleOf(r).set_path("model.layers.2.self_attn.q_proj"); }},
    {"PartOfAComponent", Reason::kModuleNotTargeted, "",
     [](Request& r) {
       ModuleOf(r).clear_path();
       ModuleOf(r).set_target("proj");
     }},
    {"UnknownLayer", Reason::kModuleNotTargeted, "",
     [](Request& r) {
       ModuleOf(r).clear_path();
       ModuleOf(r).set_target("q_proj");
       ModuleOf(r).set_layer(2);
     }},
    {"AdaptersThatDisagreeOnTheWidth", Reason::kShapeMismatch, "",
     [](Request& r) {
       r.clear_adapter();
       AddSegment(r, 2, {Ref("x"), Ref("narrow")});
     }},
    {"TooManyProjections", Reason::kInvalidField, "projections",
     [](Request& r) {
       while (r.projections_size() <= kMaxProjections)
         AddPath(r, "model.layers.0.self_attn.q_proj");
     }},
};

TEST_F(ProjectionErrorsTest, WrongRequestsAreRefusedAndChangeNothing) {
  ASSERT_THAT(server_.Apply(Valid()).status, IsRpcOk());
  const int64_t used = server_.used_bytes();
  std::vector<WrongRequest> wrong(std::begin(kWrongTensors), std::end(kWrongTensors));
  wrong.insert(wrong.end(), std::begin(kWrongAdapters), std::end(kWrongAdapters));
  wrong.insert(wrong.end(), std::begin(kWrongModules), std::end(kWrongModules));
  for (const WrongRequest& one : wrong) {
    SCOPED_TRACE(one.name);
    v1::ApplyProjectionRequest request = Valid();
    one.spoil(request);
    const auto reply = server_.Apply(request);
    EXPECT_THAT(reply.status, IsRpcError(one.reason));
    if (*one.field != '\0') {
      EXPECT_THAT(reply.status, HasRpcMetadata("field", one.field));
    }
    EXPECT_EQ(server_.used_bytes(), used);
    EXPECT_EQ(server_.inflight_bytes(), 0);
    EXPECT_EQ(server_.List()->adapters_size(), 2);
    EXPECT_EQ(server_.registry().Get("x")->in_flight, 0);
  }
  EXPECT_THAT(server_.Apply(Valid()).status, IsRpcOk());
}

TEST_F(ProjectionErrorsTest, ErrorsNameWhatWasExpectedAndFound) {
  v1::ApplyProjectionRequest request = Valid();
  request.mutable_input()->mutable_data()->pop_back();
  grpc::Status status = server_.Apply(request).status;
  EXPECT_THAT(status, HasRpcMetadata("expected", std::to_string(2 * kIn * 4)));
  EXPECT_THAT(status, HasRpcMetadata("actual", std::to_string(2 * kIn * 4 - 1)));

  request = Valid();
  *request.mutable_input() = DataTensor(DType::kF32, {1, 3}, {1, 2, 3});
  status = server_.Apply(request).status;
  EXPECT_THAT(status, HasRpcMetadata("expected", std::to_string(kIn)));
  EXPECT_THAT(status, HasRpcMetadata("actual", "3"));
  EXPECT_THAT(status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(status, HasRpcMetadata("module", kQ0));

  request = Valid();
  request.mutable_adapter()->set_revision(std::string(64, '0'));
  status = server_.Apply(request).status;
  EXPECT_THAT(status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(status, HasRpcMetadata("expected", std::string(64, '0')));
  EXPECT_THAT(status, HasRpcMetadata("actual", server_.registry().Get("x")->digest.revision));

  request = Valid();
  request.mutable_adapter()->set_name("nobody");
  EXPECT_THAT(server_.Apply(request).status, HasRpcMetadata("adapter", "nobody"));

  request = Valid();
  ModuleOf(request).set_path("model.embed");
  status = server_.Apply(request).status;
  EXPECT_THAT(status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(status, HasRpcMetadata("module", "model.embed"));
}

TEST_F(ProjectionErrorsTest, AnAmbiguousTargetListsItsCandidates) {
  v1::ApplyProjectionRequest request = Valid();
  request.clear_projections();
  AddTarget(request, "q_proj", -1);
  const auto reply = server_.Apply(request);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
  EXPECT_THAT(reply.status, HasRpcMessage(AllOf(HasSubstr(kQ0), HasSubstr(kQ1))));
  EXPECT_THAT(reply.status, HasRpcMetadata("adapter", "x"));
}

TEST_F(ProjectionErrorsTest, SkippingForgivesOnlyWhatIsNotTargeted) {
  v1::ApplyProjectionRequest request = Valid();
  request.set_skip_untargeted(true);
  request.clear_projections();
  AddTarget(request, "q_proj", -1);  // ambiguous
  EXPECT_THAT(server_.Apply(request).status, IsRpcError(Reason::kInvalidField));
  request = Valid();
  request.set_skip_untargeted(true);
  request.mutable_adapter()->set_name("nobody");
  EXPECT_THAT(server_.Apply(request).status, IsRpcError(Reason::kAdapterNotFound));
}

TEST_F(ProjectionErrorsTest, LimitsThemselvesAreAllowed) {
  v1::ApplyProjectionRequest request = Valid();
  request.clear_adapter();
  for (int i = 0; i < kMaxSegments; ++i) AddSegment(request, i < 2 ? 1 : 0, {Ref("x")});
  EXPECT_THAT(server_.Apply(request).status, IsRpcOk());
  request = Valid();
  request.clear_adapter();
  AddSegment(request, 2, std::vector<v1::AdapterRef>(kMaxAdaptersPerSegment, Ref("x", 0.0625f)));
  EXPECT_THAT(server_.Apply(request).status, IsRpcOk());
}

TEST_F(ProjectionErrorsTest, ANameThatTriesToForgeTextIsQuotedWithinLimits) {
  v1::ApplyProjectionRequest request = Valid();
  request.mutable_adapter()->set_name(std::string(100'000, '/') + "\n\r\x1b[31m");
  const auto reply = server_.Apply(request);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
  EXPECT_THAT(reply.status, HasRpcMetadata("field", "adapter.name"));
}

}  // namespace
}  // namespace adapterd
