#include "bench/verify.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "core/base/status_macros.h"
#include "core/compute/reference.h"
#include "core/tensor/convert.h"

namespace adapterd::bench {
namespace {

// Error of a row over its norm. BF16 rounds the low-rank rows and the output to 8 bits; a single
// wrong element among thousands is above either limit.
constexpr double kMaxErrorF32 = 1e-5;
constexpr double kMaxErrorBF16 = 1.0 / 256;
// F32 sums differ from double ones in the last bits, which now and then moves a rounding.
constexpr double kMaxMovedRoundings = 0.01;

std::vector<float> Widen(const MatrixView& view) {
  std::vector<float> values(view.rows * view.cols);
  ConvertToF32(view.dtype, view.data, values.data(), view.rows * view.cols);
  return values;
}

absl::Status VerifyProjectedRow(const MatrixView& input, const Factors& factors,
                                const MatrixView& output) {
  const ReferenceTerm term{factors.a_view(), factors.b_view(), factors.scale};
  const std::vector<double> expected = ReferenceDelta(input, {&term, 1}, output.cols);
  const std::vector<float> actual = Widen(output);
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double limit = output.dtype == DType::kF32 ? kMaxErrorF32 : kMaxErrorBF16;
  const double relative = std::sqrt(error / norm);
  if (relative <= limit) return absl::OkStatus();  // false for NaN
  return absl::InternalError(
      fmt::format("wrong projection: relative error {:.2g}, at most {:.2g}", relative, limit));
}

// Magnitude order: neighbours among the BF16 numbers differ by one.
int64_t Ordered(float value) {
  const auto bits = static_cast<int64_t>(F32ToBF16(value));
  return bits & 0x8000 ? -(bits & 0x7fff) : bits;
}

absl::Status VerifyMergedRow(const MatrixView& weight, const MatrixView& a, const MatrixView& b,
                             double scale, const MatrixView& merged) {
  const ReferenceTerm term{a, b, scale};
  const std::vector<double> delta = ReferenceWeightDelta({&term, 1}, 1, weight.cols);
  const std::vector<float> before = Widen(weight);
  const std::vector<float> after = Widen(merged);
  int64_t moved = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    const auto expected = static_cast<float>(before[i] + delta[i]);
    const int64_t apart = std::abs(Ordered(after[i]) - Ordered(expected));
    if (apart > 1) {
      return absl::InternalError(
          fmt::format("wrong merge: expected {}, found {}", expected, after[i]));
    }
    moved += apart;
  }
  if (static_cast<double>(moved) <= kMaxMovedRoundings * static_cast<double>(delta.size())) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      fmt::format("wrong merge: {} of {} elements are rounded wrongly", moved, delta.size()));
}

}  // namespace

absl::Status VerifyProjection(const MatrixView& input, const Factors& factors,
                              const MatrixView& output) {
  for (const int64_t row : {int64_t{0}, input.rows - 1}) {
    RETURN_IF_ERROR(VerifyProjectedRow(input.Rows(row, 1), factors, output.Rows(row, 1)));
  }
  return absl::OkStatus();
}

absl::Status VerifyMerge(const MatrixView& weight, const Factors& factors,
                         const MatrixView& merged) {
  for (const int64_t row : {int64_t{0}, weight.rows / 3, weight.rows - 1}) {
    RETURN_IF_ERROR(VerifyMergedRow(weight.Rows(row, 1), factors.a_view(),
                                    factors.b_view().Rows(row, 1), factors.scale,
                                    merged.Rows(row, 1)));
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
