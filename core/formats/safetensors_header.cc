#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"
#include "core/formats/safetensors_json.h"

namespace adapterd {
namespace {

constexpr int64_t kLengthBytes = 8;

absl::Status CheckNamesDiffer(const std::vector<SafetensorsEntry>& tensors, std::string_view file) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  const auto twin = std::adjacent_find(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return tensors[a].name == tensors[b].name;
  });
  if (twin == order.end()) return absl::OkStatus();
  return MalformedTensor(file, tensors[*twin].name, "is declared twice");
}

absl::Status CheckSize(const SafetensorsEntry& entry, std::string_view file) {
  const std::string shape = Printable(ShapeString(entry.shape));
  const auto bytes = ByteCount(entry.dtype, entry.shape);
  if (!bytes.ok()) {
    const absl::string_view why = bytes.status().message();
    return MalformedTensor(file, entry.name, Printable({why.data(), why.size()}))
        .With("actual", shape);
  }
  if (*bytes == entry.bytes) return absl::OkStatus();
  return MalformedTensor(file, entry.name,
                         fmt::format("{} {} takes {} bytes, data_offsets give it {}",
                                     DTypeName(entry.dtype), shape, *bytes, entry.bytes))
      .With("expected", *bytes)
      .With("actual", entry.bytes);
}

// Tensors, by offset, must lie end to end and fill `data_bytes`: no hole can hide anything, and no
// two names share bytes.
absl::Status CheckLayout(const std::vector<SafetensorsEntry>& tensors, int64_t data_bytes,
                         std::string_view file) {
  int64_t end = 0;
  for (const SafetensorsEntry& entry : tensors) {
    if (entry.offset != end) {
      return MalformedTensor(
                 file, entry.name,
                 fmt::format("begins at byte {} of the data, expected {} ({})", entry.offset, end,
                             entry.offset < end ? "overlap" : "hole"))
          .With("expected", end)
          .With("actual", entry.offset);
    }
    RETURN_IF_ERROR(CheckSize(entry, file));
    end += entry.bytes;  // both came from the same two offsets: no overflow
  }
  if (end == data_bytes) return absl::OkStatus();
  return MalformedFile(
             file, fmt::format("{}: the tensors take {} bytes, the file has {} for them",
                               data_bytes < end ? "truncated" : "bytes left over", end, data_bytes))
      .With("expected", end)
      .With("actual", data_bytes);
}

// What a file that is no safetensors file at all seems to be; users put these under the same name.
absl::Status RefuseOtherFormats(std::string_view start, std::string_view file) {
  using std::string_view_literals::operator""sv;
  if (start.starts_with("version https://git-lfs.github.com/spec/v1")) {
    return MalformedFile(file, "is a Git LFS pointer, not the weights; fetch them (git lfs pull)")
        .With("expected", "safetensors")
        .With("actual", "Git LFS pointer");
  }
  // Every header starts with '{': without it, a length field may be what it looks like.
  if (start.size() <= kLengthBytes || start[kLengthBytes] == '{') return absl::OkStatus();
  const bool zip = start.starts_with("PK\3\4"sv);
  const bool pickle = start[0] == '\x80' && start[1] >= 2 && start[1] <= 5;
  if (!zip && !pickle) return absl::OkStatus();
  return Error(
             Reason::kUnsafeFormat,
             fmt::format("file {} is {}, not safetensors; pickled weights can run code and are "
                         "never loaded",
                         Quoted(file), zip ? "a zip archive as torch.save writes it" : "a pickle"))
      .With("file", Printable(file))
      .With("expected", "safetensors")
      .With("actual", zip ? "zip archive" : "pickle");
}

uint64_t LittleEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = kLengthBytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// The length of the header, once it is known to lie inside the file and our limit.
absl::StatusOr<int64_t> HeaderBytes(std::string_view start, int64_t file_bytes,
                                    std::string_view file) {
  if (file_bytes < kLengthBytes) {
    return MalformedFile(file, fmt::format("has {} bytes, too few for a header", file_bytes))
        .With("expected", fmt::format("at least {} bytes", kLengthBytes))
        .With("actual", fmt::format("{} bytes", file_bytes));
  }
  const uint64_t length = LittleEndian(start);
  if (length > kMaxSafetensorsHeaderBytes) {
    return MalformedFile(
               file, fmt::format("declares a header of {} bytes, more than the {} allowed", length,
                                 kMaxSafetensorsHeaderBytes))
        .With("expected", fmt::format("at most {}", kMaxSafetensorsHeaderBytes))
        .With("actual", fmt::format("{}", length));
  }
  const auto header_bytes = static_cast<int64_t>(length);
  if (header_bytes > file_bytes - kLengthBytes) {
    return MalformedFile(file, fmt::format("declares a header of {} bytes, only {} follow", length,
                                           file_bytes - kLengthBytes))
        .With("expected", header_bytes)
        .With("actual", file_bytes - kLengthBytes);
  }
  return header_bytes;
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header,
                                                         int64_t file_bytes,
                                                         std::string_view file_name) {
  ASSIGN_OR_RETURN(SafetensorsHeader parsed, ParseSafetensorsJson(header, file_name));
  std::stable_sort(parsed.tensors.begin(), parsed.tensors.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
                   });
  RETURN_IF_ERROR(CheckNamesDiffer(parsed.tensors, file_name));
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(header.size());
  RETURN_IF_ERROR(CheckLayout(parsed.tensors, file_bytes - data_begin, file_name));
  for (SafetensorsEntry& entry : parsed.tensors) entry.offset += data_begin;
  return parsed;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const InputFile& file) {
  std::array<char, 64> buffer;
  const std::string_view start(buffer.data(), std::min<int64_t>(buffer.size(), file.size()));
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(buffer).first(start.size()))));
  RETURN_IF_ERROR(RefuseOtherFormats(start, file.name()));
  ASSIGN_OR_RETURN(const int64_t header_bytes, HeaderBytes(start, file.size(), file.name()));
  if (header_bytes > 0 && start[kLengthBytes] != '{') {
    // Known before a large header is read.
    return MalformedFile(file.name(), "the header does not start with '{'");
  }
  std::string header(header_bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(kLengthBytes, std::as_writable_bytes(std::span(header))));
  return ParseSafetensorsHeader(header, file.size(), file.name());
}

}  // namespace adapterd
