// Reads a GGUF header from front to back, never past the end of the file.
#ifndef ADAPTERD_CORE_FORMATS_GGUF_CURSOR_H_
#define ADAPTERD_CORE_FORMATS_GGUF_CURSOR_H_

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "core/formats/gguf.h"

namespace adapterd {

// Every method fails with MALFORMED_TENSOR_FILE when the file ends before what it is asked for, or
// the header grows beyond kMaxGgufHeaderBytes. `what` is what errors call it. Not thread-safe.
class GgufCursor {
 public:
  GgufCursor(const ReadBytes& read, int64_t file_bytes, std::string_view file)
      : read_(read), file_bytes_(file_bytes), file_(file) {}

  template <typename T>
  requires std::is_arithmetic_v<T> absl::Status Number(std::string_view what, T& value) {
    static_assert(std::endian::native == std::endian::little);
    const absl::Status status = Need(sizeof(T), what);
    if (!status.ok()) return status;
    std::memcpy(&value, buffer_.data() + (position_ - begin_), sizeof(T));
    position_ += static_cast<int64_t>(sizeof(T));
    return absl::OkStatus();
  }

  // A u64 and as many bytes, at most `most`.
  absl::Status Text(std::string_view what, uint64_t most, std::string& text);

  // `count` elements of `width` bytes each.
  absl::Status Skip(std::string_view what, uint64_t count, uint64_t width);

  int64_t position() const { return position_; }
  int64_t file_bytes() const { return file_bytes_; }
  std::string_view file() const { return file_; }

 private:
  // Makes `count` bytes from the position on available in the buffer.
  absl::Status Need(uint64_t count, std::string_view what);
  absl::Status CheckRoom(uint64_t count, std::string_view what) const;

  const ReadBytes& read_;
  const int64_t file_bytes_;
  const std::string_view file_;
  std::vector<std::byte> buffer_;
  int64_t begin_ = 0;  // of the buffer, in the file
  int64_t position_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_GGUF_CURSOR_H_
