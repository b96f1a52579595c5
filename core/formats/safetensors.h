// The safetensors container: header in, tensor table out, and back.
//
// Layout: u64 little-endian N, N bytes of UTF-8 JSON, tensor data. Accepts what the reference
// reader (safetensors/src/tensor.rs) accepts, but for our stricter rules;
// docs/formats/safetensors.md lists both.
#ifndef ADAPTERD_CORE_FORMATS_SAFETENSORS_H_
#define ADAPTERD_CORE_FORMATS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
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
// Each key costs memory on top of its bytes; trainers write a hundred or so.
inline constexpr size_t kMaxSafetensorsMetadata = 100'000;
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
  std::vector<SafetensorsEntry>
      tensors;  // by offset; of zero bytes at one offset: as in the header
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// `header` is the N bytes of JSON, `file_bytes` the size of the whole file. UNSUPPORTED_DTYPE for a
// dtype that safetensors does not know, MALFORMED_TENSOR_FILE when anything else is off (metadata:
// file, tensor, expected, actual); nothing is allocated on the word of a length that was not
// checked.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header,
                                                         int64_t file_bytes,
                                                         std::string_view file_name);

// Reads and checks the header of an open file. Errors as above, and for other files under this
// name: MALFORMED_TENSOR_FILE for a Git LFS pointer, UNSAFE_FORMAT for a zip archive (torch.save)
// or a pickle.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const InputFile& file);

// A tensor that is to be written.
struct SafetensorsSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// A file without its data, as the reference writes it: tensors in descending order of DType, then
// by name; header padded with spaces to a multiple of 8.
struct SafetensorsLayout {
  std::string start;          // length and header: all that comes before the data
  std::vector<size_t> order;  // of the tensors' data, which follow without gaps
  int64_t file_bytes = 0;
};

// INVALID_FIELD for duplicate or reserved names, text that is not UTF-8, and whatever exceeds a
// limit above.
absl::StatusOr<SafetensorsLayout> LayOutSafetensors(
    const std::vector<SafetensorsSpec>& tensors,
    const std::map<std::string, std::string>& metadata);

struct SafetensorsTensor : SafetensorsSpec {
  SafetensorsTensor(std::string tensor_name, DType tensor_dtype, Shape tensor_shape,
                    std::span<const std::byte> tensor_data)
      : SafetensorsSpec{std::move(tensor_name), tensor_dtype, std::move(tensor_shape)},
        data(tensor_data) {}

  std::span<const std::byte> data;
};

// The bytes of a whole file. INVALID_FIELD also for data that is not shape x dtype.
absl::StatusOr<std::string> SerializeSafetensors(
    const std::vector<SafetensorsTensor>& tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_SAFETENSORS_H_
