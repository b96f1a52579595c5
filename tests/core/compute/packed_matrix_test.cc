// The layout byte for byte, the zeros that pad it among them.
#include "core/compute/packed_matrix.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/base/checked_math.h"
#include "core/tensor/convert.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

// The transpose of a source of this size is packed by this plan.
struct Case {
  MatrixPlan plan;
  int64_t source_rows = 0;
  int64_t source_cols = 0;
};

constexpr ComputeType kF32 = ComputeType::kF32;
constexpr ComputeType kBF16 = ComputeType::kBF16;

// type, k, n, panel, chunk, is_f16; rows, cols.
const Case kCases[] = {
    {{kBF16, 16, 4226, 64, 4096}, 4226, 16},  // of an expanding factor: half of k is zeros
    {{kBF16, 1000, 16, 16, 16}, 16, 1000},    // of a shrinking one
    {{kBF16, 1000, 32, 32, 32}, 20, 1000},    // the plan has more columns
    {{kBF16, 32, 100, 64, 100}, 100, 9},      // the plan has more rows, a pair is half full
    {{kBF16, 7, 48, 48, 48}, 48, 7},
    {{kBF16, 300, 128, 64, 128}, 50, 300},  // a whole panel of zeros
    {{kBF16, 6, 130, 0, 130}, 130, 6},
    {{kBF16, 6, 16, 0, 16}, 9, 5},
    {{kF32, 16, 4226, 64, 4096}, 4226, 16},
    {{kF32, 600, 16, 0, 16}, 16, 600},
    {{kF32, 17, 70, 64, 70}, 70, 17},
    {{kF32, 5, 3, 0, 3}, 3, 4},
    {{kF32, 16, 4226, 64, 4096, true}, 4226, 16},
    {{kF32, 600, 16, 0, 16, true}, 16, 600},
    {{kF32, 17, 70, 64, 70, true}, 70, 17},
    {{kF32, 5, 3, 0, 3, true}, 3, 4},
};

// No element is zero, nor like its neighbours.
std::vector<std::byte> Source(const Case& c) {
  const int64_t bytes = c.plan.element_bytes();
  std::vector<std::byte> source(c.source_rows * c.source_cols * bytes);
  for (int64_t i = 0; i < c.source_rows * c.source_cols; ++i) {
    const auto bits = static_cast<uint32_t>(0x3f800001 + i % 30011 * 0x10003);
    std::memcpy(source.data() + i * bytes, &bits, bytes);
  }
  return source;
}

// By the words of MatmulShape::panel, element by element.
std::vector<std::byte> Expected(const Case& c, const std::vector<std::byte>& source) {
  const MatrixPlan& plan = c.plan;
  const int64_t bytes = plan.element_bytes();
  std::vector<std::byte> packed(*plan.bytes());
  for (int64_t col = 0; col < c.source_rows; ++col) {
    const int64_t chunk = col / plan.chunk * plan.chunk;
    const int64_t width = plan.panel == 0 ? std::min(plan.chunk, plan.n - chunk) : plan.panel;
    const int64_t panel = chunk + (col - chunk) / width * width;
    for (int64_t k = 0; k < c.source_cols; ++k) {
      const int64_t pair = plan.panel != 0 && plan.type == kBF16 ? 2 : 1;
      const int64_t at =
          panel * plan.stored_k() + (k / pair * width + col - panel) * pair + k % pair;
      std::memcpy(packed.data() + at * bytes, source.data() + (col * c.source_cols + k) * bytes,
                  bytes);
    }
  }
  return packed;
}

DType SourceType(const MatrixPlan& plan) {
  if (plan.is_f16) return DType::kF16;
  return plan.type == kBF16 ? DType::kBF16 : DType::kF32;
}

// What malloc hands out is not zero by chance.
class PackedMatrixTest : public testing::Test {
 protected:
  void SetUp() override { mallopt(M_PERTURB, 0x5a); }
  void TearDown() override { mallopt(M_PERTURB, 0); }

  static void Check(const PackedMatrix& matrix, const std::vector<std::byte>& expected) {
    ASSERT_EQ(matrix.bytes(), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(std::memcmp(matrix.chunks()[0].weights, expected.data(), expected.size()), 0);
  }

  const Kernels kernels_;
};

TEST_F(PackedMatrixTest, HoldsTheTransposeAndZerosAroundIt) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message()
                 << "k " << c.plan.k << ", n " << c.plan.n << ", panel " << c.plan.panel
                 << ", source " << c.source_rows << " x " << c.source_cols);
    const std::vector<std::byte> source = Source(c);
    const MatrixView view = {SourceType(c.plan), c.source_rows, c.source_cols, source.data()};
    const std::vector<std::byte> expected = Expected(c, source);
    ASSERT_OK_AND_ASSIGN(const PackedMatrix matrix, PackedMatrix::Transposed(c.plan, view));
    Check(matrix, expected);
    ASSERT_OK_AND_ASSIGN(PackedMatrix filled, PackedMatrix::Create(c.plan));
    filled.FillTransposed(view, 0);
    Check(filled, expected);
  }
}

TEST_F(PackedMatrixTest, KernelsGetF16AsF32) {
  for (const Case& c : kCases) {
    if (!c.plan.is_f16) continue;
    const std::vector<std::byte> source = Source(c);
    const MatrixView halves = {DType::kF16, c.source_rows, c.source_cols, source.data()};
    std::vector<float> wide(c.source_rows * c.source_cols);
    ConvertToF32(DType::kF16, source.data(), wide.data(), c.source_rows * c.source_cols);
    const MatrixView floats = {DType::kF32, c.source_rows, c.source_cols,
                               reinterpret_cast<const std::byte*>(wide.data())};
    ASSERT_OK_AND_ASSIGN(const PackedMatrix matrix, PackedMatrix::Transposed(c.plan, halves));
    MatrixPlan plan = c.plan;
    plan.is_f16 = false;
    ASSERT_OK_AND_ASSIGN(const PackedMatrix expected, PackedMatrix::Transposed(plan, floats));
    for (const PackedMatrix::Chunk& chunk : expected.chunks()) {
      const int64_t columns = plan.panel == 0 ? chunk.columns : RoundUp(chunk.columns, plan.panel);
      EXPECT_EQ(std::memcmp(matrix.ForKernel(chunk.first_column, chunk.columns),
                            expected.ForKernel(chunk.first_column, chunk.columns),
                            columns * plan.stored_k() * sizeof(float)),
                0);
    }
  }
}

}  // namespace
}  // namespace adapterd
