// The safetensors container: header in, tensor table out, and back.
//
// Layout: u64 little-endian N, N bytes of UTF-8 JSON, tensor data. Accepts what the reference reader
// (safetensors/src/tensor.rs) accepts, but for our stricter rules; docs/formats/safetensors.md lists
// both.
#ifndef ADAPTERD_CORE_FORMATS_SAFETENSORS_H_
#define ADAPTERD_CORE_FORMATS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/input_file.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

namespace adapterd {

inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the reference's own limit
// A header of 100 MB could declare millions of tensors; real adapters have thousands.
inline constexpr int64_t kMaxSafetensorsTensors = 1'000'000;
inline constexpr size_t kMaxTensorNameBytes = 4096;
inline constexpr size_t kMaxTensorDims = 32;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // by offset; entries of zero bytes in file order of offsets
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// `header` is the N bytes of JSON, `file_bytes` the size of the whole file. MALFORMED_TENSOR_FILE
// (metadata: file, tensor, expected, actual) when anything is off; nothing is allocated on the word
// of a length that was not checked.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header,
                                                         int64_t file_bytes,
                                                         std::string_view file_name);

// Reads and checks the header of an open file. A Git LFS pointer or a zip archive (pickled weights)
// under this name is told apart in the message.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const InputFile& file);

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> data;
};

// The bytes of a whole file: tensors ordered by descending width, then name; header padded with
// spaces to a multiple of 8, as the reference writes them. INVALID_FIELD for duplicate or reserved
// names and data that is not shape x dtype.
absl::StatusOr<std::string> SerializeSafetensors(std::vector<SafetensorsTensor> tensors,
                                                 const std::map<std::string, std::string>& metadata);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_SAFETENSORS_H_
