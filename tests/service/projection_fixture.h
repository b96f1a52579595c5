// Requests for ApplyProjection, and checks of what comes back.
#ifndef ADAPTERD_TESTS_SERVICE_PROJECTION_FIXTURE_H_
#define ADAPTERD_TESTS_SERVICE_PROJECTION_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/testing/oracle.h"
#include "tests/testing/rpc_matchers.h"
#include "tests/testing/tensors.h"
#include "tests/testing/test_server.h"

namespace adapterd {

inline constexpr DType kFloatTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

inline v1::AdapterRef Ref(const std::string& name) {
  v1::AdapterRef ref;
  ref.set_name(name);
  return ref;
}

inline v1::AdapterRef Ref(const std::string& name, float weight) {
  v1::AdapterRef ref = Ref(name);
  ref.set_weight(weight);
  return ref;
}

inline v1::Projection& AddPath(v1::ApplyProjectionRequest& request, const std::string& path) {
  v1::Projection& projection = *request.add_projections();
  projection.mutable_module()->set_path(path);
  return projection;
}

inline v1::Projection& AddTarget(v1::ApplyProjectionRequest& request, const std::string& target,
                                 int layer) {
  v1::Projection& projection = *request.add_projections();
  projection.mutable_module()->set_target(target);
  if (layer >= 0) projection.mutable_module()->set_layer(layer);
  return projection;
}

inline void AddSegment(v1::ApplyProjectionRequest& request, int64_t rows,
                       const std::vector<v1::AdapterRef>& refs) {
  v1::Segment& segment = *request.add_segments();
  segment.set_rows(rows);
  for (const v1::AdapterRef& ref : refs) *segment.add_adapters() = ref;
}

class ProjectionFixture : public ::testing::Test {
 protected:
  static constexpr char kQ0[] = "model.layers.0.self_attn.q_proj";
  static constexpr char kK0[] = "model.layers.0.self_attn.k_proj";
  static constexpr char kQ1[] = "model.layers.1.self_attn.q_proj";
  static constexpr int64_t kIn = 24;
  static constexpr int64_t kOut = 10;

  // Writes and loads it under that name.
  void LoadAs(const std::string& name, const PeftBuilder& builder) {
    builder.Write(server_.dir(), name);
    const auto reply = server_.Load(name, name);
    ASSERT_THAT(reply.status, IsRpcOk());
  }

  std::vector<float> Input(DType dtype, int64_t rows, int64_t cols = kIn) {
    return random_.Floats(dtype, rows * cols);
  }

  // Checks one output: shape, dtype, form, and every element. `rows[i]` are the terms of row i.
  static void ExpectOutput(const v1::Tensor& output, DType dtype, bool readable,
                           const std::vector<int64_t>& shape, const std::vector<float>& input,
                           DType input_dtype, const std::vector<std::vector<OracleTerm>>& rows,
                           const std::vector<float>& base = {}) {
    EXPECT_EQ(output.dtype(), ToProto(dtype));
    EXPECT_EQ(ShapeOf(output), shape);
    EXPECT_EQ(output.f32_values_size() > 0, readable);
    EXPECT_EQ(!output.data().empty(), !readable);
    EXPECT_EQ(output.int64_values_size(), 0);
    const std::vector<float> values = FloatsOf(output);
    const auto in = static_cast<int64_t>(input.size() / rows.size());
    const auto out = static_cast<int64_t>(values.size() / rows.size());
    ASSERT_EQ(values.size(), rows.size() * shape.back());
    for (size_t row = 0; row < rows.size(); ++row) {
      for (int64_t o = 0; o < out; ++o) {
        const double start = base.empty() ? 0 : base[row * out + o];
        const OracleValue expected =
            Project(&input[row * in], input_dtype, rows[row], o, start, dtype);
        ASSERT_NEAR(values[row * out + o], expected.value, expected.tolerance)
            << "row " << row << " column " << o;
      }
    }
  }

  TestServer server_;
  TestRandom random_{7};
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_SERVICE_PROJECTION_FIXTURE_H_
