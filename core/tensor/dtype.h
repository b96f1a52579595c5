// Element types of tensors, in files and in memory.
#ifndef ADAPTERD_CORE_TENSOR_DTYPE_H_
#define ADAPTERD_CORE_TENSOR_DTYPE_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace adapterd {

// Every type that a safetensors file may hold. Names and widths: safetensors/src/tensor.rs.
enum class DType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// "F32", "BF16", ...: the names that safetensors uses.
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

// Width of one element; 4 and 6 for the sub-byte types.
int BitsOf(DType dtype);

// F32, F16 or BF16: what factors, activations and weights may be.
constexpr bool IsComputeFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// Bytes of one element. REQUIRES: IsComputeFloat(dtype).
constexpr int64_t FloatBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_DTYPE_H_
