#include "core/formats/gguf_cursor.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/checked_math.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors_json.h"

namespace adapterd {
namespace {

// Headers of adapters fit in one.
constexpr int64_t kWindowBytes = 1 << 16;

}  // namespace

absl::Status GgufCursor::CheckRoom(uint64_t count, std::string_view what) const {
  const int64_t left = file_bytes_ - position_;
  if (count > static_cast<uint64_t>(left)) {
    return MalformedFile(file_, fmt::format("truncated: {} needs {} bytes at byte {}, {} follow",
                                            what, count, position_, left))
        .With("expected", fmt::format("{} bytes", count))
        .With("actual", fmt::format("{} bytes", left));
  }
  if (position_ + static_cast<int64_t>(count) <= kMaxGgufHeaderBytes) return absl::OkStatus();
  return MalformedFile(file_, fmt::format("{} ends beyond the {} bytes that a header may have",
                                          what, kMaxGgufHeaderBytes));
}

absl::Status GgufCursor::Need(uint64_t count, std::string_view what) {
  RETURN_IF_ERROR(CheckRoom(count, what));
  const auto wanted = static_cast<int64_t>(count);
  const int64_t end = begin_ + static_cast<int64_t>(buffer_.size());
  if (position_ >= begin_ && position_ + wanted <= end) return absl::OkStatus();
  buffer_.resize(std::min(std::max(wanted, kWindowBytes), file_bytes_ - position_));
  begin_ = position_;
  return read_(begin_, buffer_);
}

absl::Status GgufCursor::Text(std::string_view what, uint64_t most, std::string& text) {
  uint64_t length = 0;
  RETURN_IF_ERROR(Number(what, length));
  RETURN_IF_ERROR(CheckRoom(length, what));
  if (length > most) {
    return MalformedFile(
               file_, fmt::format("{} has {} bytes, more than the {} allowed", what, length, most))
        .With("expected", fmt::format("at most {}", most))
        .With("actual", fmt::format("{}", length));
  }
  RETURN_IF_ERROR(Need(length, what));
  text.assign(reinterpret_cast<const char*>(buffer_.data()) + (position_ - begin_), length);
  position_ += static_cast<int64_t>(length);
  return absl::OkStatus();
}

absl::Status GgufCursor::Skip(std::string_view what, uint64_t count, uint64_t width) {
  const auto bytes = CheckedMul(count, width);
  // 2^64 bytes are more than any file has, too.
  RETURN_IF_ERROR(CheckRoom(bytes.value_or(UINT64_MAX), what));
  position_ += static_cast<int64_t>(*bytes);
  return absl::OkStatus();
}

}  // namespace adapterd
