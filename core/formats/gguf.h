// The GGUF container, versions 2 and 3: metadata and tensor table in, and back.
//
// Layout (ggml/docs/gguf.md): magic, u32 version, u64 tensor count, u64 key count, keys with typed
// values, tensor infos (name, dimensions with the fastest first, type, offset), padding, data. All
// little-endian. docs/formats/gguf.md lists where we are stricter than llama.cpp.
#ifndef ADAPTERD_CORE_FORMATS_GGUF_H_
#define ADAPTERD_CORE_FORMATS_GGUF_H_

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/input_file.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"

namespace adapterd {

inline constexpr std::string_view kGgufMagic = "GGUF";
// Keys and tensor infos together; those of a whole model with its tokenizer have some 10 MB.
inline constexpr int64_t kMaxGgufHeaderBytes = 100'000'000;
// Real adapters have thousands of tensors and a dozen keys.
inline constexpr uint64_t kMaxGgufTensors = 1'000'000;
inline constexpr uint64_t kMaxGgufKeys = 100'000;
inline constexpr uint64_t kMaxGgufKeyBytes = 65'535;         // the specification's own limit
inline constexpr uint64_t kMaxGgufNameBytes = 4096;          // llama.cpp takes 63
inline constexpr uint64_t kMaxGgufStringBytes = 10'000'000;  // chat templates have some 10 KB
inline constexpr uint32_t kMaxGgufDims = 4;                  // GGML_MAX_DIMS
inline constexpr size_t kMaxGgmlNameBytes = 64;              // GGML_MAX_NAME, with its zero byte
inline constexpr int64_t kDefaultGgufAlignment = 32;
inline constexpr int64_t kMaxGgufAlignment = 1 << 20;  // writers take 32

// The element types that are read. Numbers: enum ggml_type.
enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kQ8_0 = 8, kBF16 = 30 };

std::string_view GgufTypeName(GgufType type);  // empty for any other number

// REQUIRES: IsComputeFloat(dtype).
GgufType GgufTypeOf(DType dtype);

// Of a tensor's data. SHAPE_MISMATCH when the product overflows, or when rows of Q8_0 are not whole
// blocks. REQUIRES: at least one dimension.
absl::StatusOr<int64_t> GgufByteCount(GgufType type, std::span<const int64_t> shape);

// An array: of which type and how many, without its elements.
struct GgufArray {
  uint32_t element_type = 0;
  uint64_t count = 0;
};

// Integers of all widths, floats of both, bool, text.
using GgufValue = std::variant<int64_t, uint64_t, float, double, bool, std::string, GgufArray>;

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  Shape shape;         // outermost dimension first, as everywhere but in the file
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t bytes = 0;
};

struct GgufHeader {
  uint32_t version = 0;
  std::map<std::string, GgufValue> metadata;
  std::vector<GgufTensor> tensors;  // by offset
};

// Fills the span from an offset of the file. REQUIRES: it lies inside.
using ReadBytes = std::function<absl::Status(int64_t offset, std::span<std::byte> out)>;

// MALFORMED_TENSOR_FILE for all that is off, UNSUPPORTED_DTYPE for a tensor of another type;
// nothing is allocated on the word of a length that was not checked against the file's size.
absl::StatusOr<GgufHeader> ParseGguf(const ReadBytes& read, int64_t file_bytes,
                                     std::string_view file_name);
absl::StatusOr<GgufHeader> ReadGgufHeader(const InputFile& file);

// A tensor that is to be written.
struct GgufSpec {
  std::string name;
  GgufType type = GgufType::kF32;
  Shape shape;
};

// A file of version 3 without its data.
struct GgufLayout {
  std::string start;             // all that comes before the data of the first tensor
  std::vector<int64_t> padding;  // zero bytes behind each tensor's data, in the given order
  int64_t file_bytes = 0;
};

using GgufKeyValue = std::variant<std::string, float, uint32_t>;

// INVALID_FIELD for names that llama.cpp would not read, and for two of one name; errors of
// GgufByteCount. REQUIRES: the sum of all sizes does not overflow.
absl::StatusOr<GgufLayout> LayOutGguf(
    const std::vector<GgufSpec>& tensors,
    const std::vector<std::pair<std::string, GgufKeyValue>>& metadata);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_GGUF_H_
