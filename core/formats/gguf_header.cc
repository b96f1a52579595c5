#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/gguf.h"
#include "core/formats/gguf_cursor.h"
#include "core/formats/safetensors_json.h"
#include "core/tensor/q8_0.h"

namespace adapterd {
namespace {

constexpr std::string_view kAlignmentKey = "general.alignment";

// Types of values. Numbers: enum gguf_type.
enum : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};
constexpr uint64_t kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

Error MalformedKey(std::string_view file, std::string_view key, std::string_view problem) {
  return MalformedFile(file, fmt::format("key {} {}", Quoted(key), problem))
      .With("field", Printable(key));
}

template <typename Stored, typename Value>
absl::Status ReadNumber(GgufCursor& cursor, std::string_view what, GgufValue& value) {
  Stored stored{};
  RETURN_IF_ERROR(cursor.Number(what, stored));
  value = static_cast<Value>(stored);
  return absl::OkStatus();
}

absl::Status ReadArray(GgufCursor& cursor, std::string_view key, std::string_view what,
                       GgufValue& value) {
  GgufArray array;
  RETURN_IF_ERROR(cursor.Number(what, array.element_type));
  RETURN_IF_ERROR(cursor.Number(what, array.count));
  value = array;
  if (array.element_type == kArray) {
    return MalformedKey(cursor.file(), key, "is an array of arrays");
  }
  if (array.element_type >= std::size(kValueBytes)) {
    return MalformedKey(
        cursor.file(), key,
        fmt::format("is an array of type {}, which is not known", array.element_type));
  }
  if (array.element_type != kString) {
    return cursor.Skip(what, array.count, kValueBytes[array.element_type]);
  }
  for (uint64_t i = 0; i < array.count; ++i) {  // each has 8 bytes at least: ends with the file
    uint64_t length = 0;
    RETURN_IF_ERROR(cursor.Number(what, length));
    RETURN_IF_ERROR(cursor.Skip(what, length, 1));
  }
  return absl::OkStatus();
}

absl::Status ReadValue(GgufCursor& cursor, std::string_view key, GgufValue& value) {
  const std::string what = fmt::format("the value of key {}", Quoted(key));
  uint32_t type = 0;
  RETURN_IF_ERROR(cursor.Number(what, type));
  switch (type) {
    case kUint8:
      return ReadNumber<uint8_t, uint64_t>(cursor, what, value);
    case kInt8:
      return ReadNumber<int8_t, int64_t>(cursor, what, value);
    case kUint16:
      return ReadNumber<uint16_t, uint64_t>(cursor, what, value);
    case kInt16:
      return ReadNumber<int16_t, int64_t>(cursor, what, value);
    case kUint32:
      return ReadNumber<uint32_t, uint64_t>(cursor, what, value);
    case kInt32:
      return ReadNumber<int32_t, int64_t>(cursor, what, value);
    case kFloat32:
      return ReadNumber<float, float>(cursor, what, value);
    case kUint64:
      return ReadNumber<uint64_t, uint64_t>(cursor, what, value);
    case kInt64:
      return ReadNumber<int64_t, int64_t>(cursor, what, value);
    case kFloat64:
      return ReadNumber<double, double>(cursor, what, value);
    case kBool:
      return ReadNumber<uint8_t, bool>(cursor, what, value);
    case kString:
      return cursor.Text(what, kMaxGgufStringBytes, value.emplace<std::string>());
    case kArray:
      return ReadArray(cursor, key, what, value);
    default:
      return MalformedKey(cursor.file(), key,
                          fmt::format("has a value of type {}, which is not known", type));
  }
}

absl::Status ReadMetadata(GgufCursor& cursor, uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key;
    RETURN_IF_ERROR(cursor.Text(fmt::format("key {}", i), kMaxGgufKeyBytes, key));
    const auto [place, is_new] = header.metadata.emplace(std::move(key), GgufValue());
    if (!is_new) return MalformedKey(cursor.file(), place->first, "is there twice");
    RETURN_IF_ERROR(ReadValue(cursor, place->first, place->second));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> AlignmentOf(const GgufHeader& header, std::string_view file) {
  const auto found = header.metadata.find(std::string(kAlignmentKey));
  if (found == header.metadata.end()) return kDefaultGgufAlignment;
  const auto* value = std::get_if<uint64_t>(&found->second);
  if (value != nullptr && *value != 0 && *value <= static_cast<uint64_t>(kMaxGgufAlignment) &&
      (*value & (*value - 1)) == 0) {
    return static_cast<int64_t>(*value);
  }
  const std::string expected = fmt::format("a power of two up to {}", kMaxGgufAlignment);
  return MalformedKey(file, kAlignmentKey, fmt::format("is not {}", expected))
      .With("expected", expected)
      .With("actual", value == nullptr ? "another type" : fmt::format("{}", *value));
}

// Of the tensor's data in the file.
absl::StatusOr<int64_t> DataBytes(const GgufTensor& tensor, std::string_view file) {
  auto bytes = GgufByteCount(tensor.type, tensor.shape);
  if (bytes.ok()) return bytes;
  const absl::string_view why = bytes.status().message();
  return MalformedTensor(file, tensor.name, Printable({why.data(), why.size()}));
}

absl::Status ReadType(GgufCursor& cursor, GgufTensor& tensor) {
  uint32_t type = 0;
  RETURN_IF_ERROR(cursor.Number(fmt::format("the type of tensor {}", Quoted(tensor.name)), type));
  tensor.type = static_cast<GgufType>(type);
  if (!GgufTypeName(tensor.type).empty()) return absl::OkStatus();
  return Error(Reason::kUnsupportedDtype,
               fmt::format("file {}, tensor {}: ggml type {} is not read; F32 (0), F16 (1), Q8_0 "
                           "(8) and BF16 (30) are",
                           Quoted(cursor.file()), Quoted(tensor.name), type))
      .With("file", Printable(cursor.file()))
      .With("tensor", Printable(tensor.name))
      .With("expected", "F32, F16, Q8_0 or BF16")
      .With("actual", fmt::format("ggml type {}", type));
}

absl::Status ReadShape(GgufCursor& cursor, GgufTensor& tensor) {
  const std::string what = fmt::format("the shape of tensor {}", Quoted(tensor.name));
  uint32_t dims = 0;
  RETURN_IF_ERROR(cursor.Number(what, dims));
  if (dims == 0 || dims > kMaxGgufDims) {
    return MalformedTensor(
               cursor.file(), tensor.name,
               fmt::format("has {} dimensions, from 1 to {} are possible", dims, kMaxGgufDims))
        .With("actual", dims);
  }
  for (uint32_t i = 0; i < dims; ++i) {
    uint64_t size = 0;
    RETURN_IF_ERROR(cursor.Number(what, size));
    if (size > static_cast<uint64_t>(INT64_MAX)) {
      return MalformedTensor(cursor.file(), tensor.name,
                             fmt::format("has a dimension of {}, more than any file holds", size));
    }
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
  return absl::OkStatus();
}

// With the offset as written: from the start of the data.
absl::Status ReadTensorInfo(GgufCursor& cursor, uint64_t index, GgufTensor& tensor) {
  RETURN_IF_ERROR(
      cursor.Text(fmt::format("the name of tensor {}", index), kMaxGgufNameBytes, tensor.name));
  RETURN_IF_ERROR(ReadShape(cursor, tensor));
  RETURN_IF_ERROR(ReadType(cursor, tensor));
  ASSIGN_OR_RETURN(tensor.bytes, DataBytes(tensor, cursor.file()));
  uint64_t offset = 0;
  RETURN_IF_ERROR(
      cursor.Number(fmt::format("the offset of tensor {}", Quoted(tensor.name)), offset));
  if (offset > static_cast<uint64_t>(cursor.file_bytes())) {
    return MalformedTensor(cursor.file(), tensor.name,
                           fmt::format("begins at byte {} of the data, the file has {} bytes",
                                       offset, cursor.file_bytes()))
        .With("actual", fmt::format("{}", offset));
  }
  tensor.offset = static_cast<int64_t>(offset);
  return absl::OkStatus();
}

// Tensors, by offset, must lie one behind the other with nothing but padding between them, and end
// with the file.
absl::Status PlaceTensors(int64_t data_begin, int64_t alignment, int64_t file_bytes,
                          std::string_view file, std::vector<GgufTensor>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const GgufTensor& a, const GgufTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  int64_t expected = 0;
  int64_t end = data_begin;
  for (GgufTensor& tensor : tensors) {
    if (tensor.offset != expected) {
      const std::string_view why = tensor.offset % alignment != 0 ? "unaligned"
                                   : tensor.offset < expected     ? "overlap"
                                                                  : "hole";
      return MalformedTensor(file, tensor.name,
                             fmt::format("begins at byte {} of the data, expected {} ({})",
                                         tensor.offset, expected, why))
          .With("expected", expected)
          .With("actual", tensor.offset);
    }
    tensor.offset += data_begin;
    if (tensor.bytes > file_bytes - tensor.offset) {
      return MalformedTensor(file, tensor.name,
                             fmt::format("truncated: its data take {} bytes from byte {} on, the "
                                         "file has {}",
                                         tensor.bytes, tensor.offset, file_bytes))
          .With("expected", tensor.bytes)
          .With("actual", std::max<int64_t>(file_bytes - tensor.offset, 0));
    }
    end = tensor.offset + tensor.bytes;
    expected = RoundUp(end - data_begin, alignment);
  }
  if (file_bytes <= data_begin + expected) return absl::OkStatus();
  return MalformedFile(file, fmt::format("bytes left over: the tensors end at byte {}, the file "
                                         "has {}",
                                         end, file_bytes))
      .With("expected", end)
      .With("actual", file_bytes);
}

absl::Status CheckVersion(uint32_t version, std::string_view file) {
  if (version == 2 || version == 3) return absl::OkStatus();
  const bool swapped = version == 0x02000000 || version == 0x03000000;
  return MalformedFile(file, swapped ? std::string("is big-endian GGUF, which is not read")
                                     : fmt::format("is GGUF version {}, 2 and 3 are read", version))
      .With("expected", "2 or 3")
      .With("actual", fmt::format("{}", version));
}

absl::Status CheckCount(std::string_view what, uint64_t count, uint64_t most,
                        std::string_view file) {
  if (count <= most) return absl::OkStatus();
  return MalformedFile(file,
                       fmt::format("declares {} {}, more than the {} allowed", count, what, most))
      .With("expected", fmt::format("at most {}", most))
      .With("actual", fmt::format("{}", count));
}

absl::Status ReadTensorInfos(GgufCursor& cursor, uint64_t count, GgufHeader& header) {
  std::set<std::string, std::less<>> names;
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    RETURN_IF_ERROR(ReadTensorInfo(cursor, i, tensor));
    if (!names.insert(tensor.name).second) {
      return MalformedTensor(cursor.file(), tensor.name, "is declared twice");
    }
    header.tensors.push_back(std::move(tensor));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view GgufTypeName(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return "F32";
    case GgufType::kF16:
      return "F16";
    case GgufType::kQ8_0:
      return "Q8_0";
    case GgufType::kBF16:
      return "BF16";
  }
  return "";
}

GgufType GgufTypeOf(DType dtype) {
  if (dtype == DType::kF32) return GgufType::kF32;
  return dtype == DType::kF16 ? GgufType::kF16 : GgufType::kBF16;
}

absl::StatusOr<int64_t> GgufByteCount(GgufType type, std::span<const int64_t> shape) {
  const bool is_f32 = type == GgufType::kF32;
  ASSIGN_OR_RETURN(const int64_t bytes, ByteCount(is_f32 ? DType::kF32 : DType::kF16, shape));
  if (type != GgufType::kQ8_0) return bytes;
  if (shape.back() % kQ8BlockElements != 0) {
    return Error(Reason::kShapeMismatch,
                 fmt::format("Q8_0 has rows of whole blocks of {} elements, found {}",
                             kQ8BlockElements, shape.back()));
  }
  return bytes / 2 / kQ8BlockElements * kQ8BlockBytes;  // less than the bytes as F16
}

absl::StatusOr<GgufHeader> ParseGguf(const ReadBytes& read, int64_t file_bytes,
                                     std::string_view file_name) {
  GgufCursor cursor(read, file_bytes, file_name);
  uint32_t magic = 0;
  RETURN_IF_ERROR(cursor.Number("the magic", magic));
  const std::string_view seen(reinterpret_cast<const char*>(&magic), sizeof(magic));
  if (seen != kGgufMagic) {
    return MalformedFile(file_name,
                         fmt::format("starts with {}, not with the magic of GGUF{}", Quoted(seen),
                                     seen == "vers" ? "; a Git LFS pointer starts like "
                                                      "this: fetch it (git lfs pull)"
                                                    : ""))
        .With("expected", std::string(kGgufMagic))
        .With("actual", Printable(seen));
  }
  GgufHeader header;
  RETURN_IF_ERROR(cursor.Number("the version", header.version));
  RETURN_IF_ERROR(CheckVersion(header.version, file_name));
  uint64_t tensors = 0;
  uint64_t keys = 0;
  RETURN_IF_ERROR(cursor.Number("the tensor count", tensors));
  RETURN_IF_ERROR(cursor.Number("the key count", keys));
  RETURN_IF_ERROR(CheckCount("tensors", tensors, kMaxGgufTensors, file_name));
  RETURN_IF_ERROR(CheckCount("keys", keys, kMaxGgufKeys, file_name));
  RETURN_IF_ERROR(ReadMetadata(cursor, keys, header));
  ASSIGN_OR_RETURN(const int64_t alignment, AlignmentOf(header, file_name));
  RETURN_IF_ERROR(ReadTensorInfos(cursor, tensors, header));
  RETURN_IF_ERROR(PlaceTensors(RoundUp(cursor.position(), alignment), alignment, file_bytes,
                               file_name, header.tensors));
  return header;
}

absl::StatusOr<GgufHeader> ReadGgufHeader(const InputFile& file) {
  return ParseGguf(
      [&file](int64_t offset, std::span<std::byte> out) { return file.ReadAt(offset, out); },
      file.size(), file.name());
}

}  // namespace adapterd
