#include "bench/pytorch.h"

#include <cstdint>

#include "bench/machine.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int kCores = 2;

struct Median {
  DType dtype;
  int64_t rank;
  int64_t rows;
  double us;
};

constexpr Median kMedians[] = {
    {DType::kF32, 16, 1, 26},       {DType::kF32, 16, 16, 65},      {DType::kF32, 16, 64, 192},
    {DType::kF32, 16, 512, 1247},   {DType::kF32, 16, 2048, 23292}, {DType::kF32, 64, 1, 46},
    {DType::kF32, 64, 16, 198},     {DType::kF32, 64, 64, 516},     {DType::kF32, 64, 512, 8389},
    {DType::kF32, 64, 2048, 33019}, {DType::kBF16, 16, 1, 98},      {DType::kBF16, 16, 16, 121},
    {DType::kBF16, 16, 64, 174},    {DType::kBF16, 16, 512, 961},   {DType::kBF16, 16, 2048, 15261},
    {DType::kBF16, 64, 1, 80},      {DType::kBF16, 64, 16, 137},    {DType::kBF16, 64, 64, 280},
    {DType::kBF16, 64, 512, 1110},  {DType::kBF16, 64, 2048, 16533}};

}  // namespace

std::optional<double> PyTorchUs(const ProjectionShape& shape) {
  if (shape.features != kFeatures) return std::nullopt;
  for (const Median& median : kMedians) {
    if (median.dtype == shape.dtype && median.rank == shape.rank && median.rows == shape.rows) {
      return median.us;
    }
  }
  return std::nullopt;
}

bool IsPyTorchMachine(const Kernels& kernels) {
  return UsableCores() == kCores && kernels.isa() == "AVX512_CORE_AMX";
}

}  // namespace adapterd::bench
