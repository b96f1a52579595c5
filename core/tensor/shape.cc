#include "core/tensor/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::Status Overflows(std::span<const int64_t> shape) {
  return Error(Reason::kShapeMismatch,
               fmt::format("the element count of shape {} overflows", ShapeString(shape)))
      .With("actual", ShapeString(shape));
}

}  // namespace

absl::StatusOr<int64_t> ElementCount(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (int64_t dimension : shape) {
    if (dimension < 0) {
      return Error(Reason::kShapeMismatch,
                   fmt::format("shape {} has a negative dimension", ShapeString(shape)))
          .With("actual", ShapeString(shape));
    }
    auto product = CheckedMul(count, dimension);
    if (!product) return Overflows(shape);
    count = *product;
  }
  return count;
}

absl::StatusOr<int64_t> ByteCount(DType dtype, std::span<const int64_t> shape) {
  ASSIGN_OR_RETURN(int64_t elements, ElementCount(shape));
  auto bits = CheckedMul<int64_t>(elements, BitsOf(dtype));
  if (!bits) return Overflows(shape);
  if (*bits % 8 != 0) {
    return Error(Reason::kShapeMismatch, fmt::format("shape {} of {} does not fill whole bytes",
                                                     ShapeString(shape), DTypeName(dtype)))
        .With("actual", ShapeString(shape));
  }
  return *bits / 8;
}

std::string ShapeString(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

}  // namespace adapterd
