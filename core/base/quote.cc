#include "core/base/quote.h"

#include <fmt/format.h>

#include <cstdint>
#include <iterator>

namespace adapterd {
namespace {

constexpr size_t kHeadBytes = 60;
constexpr size_t kTailBytes = kMaxQuotedBytes - kHeadBytes;

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

struct CodePoint {
  char32_t value = 0;
  size_t bytes = 0;  // 0: not UTF-8
};

// The code point that `text` starts with. Overlong forms and surrogates are not UTF-8.
CodePoint Decode(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return {};
  char32_t value = first & (0x7f >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if (!IsContinuation(text[i])) return {};
    value = value << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  if (value < kSmallest[bytes] || value > 0x10ffff || surrogate) return {};
  return {value, bytes};
}

// Controls, line separators and the marks that reorder text: they can make a log line lie.
bool IsUnprintable(char32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200e && c <= 0x200f) ||
         (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

void Append(std::string_view text, bool quoted, std::string& out) {
  while (!text.empty()) {
    const CodePoint point = Decode(text);
    const size_t bytes = point.bytes == 0 ? 1 : point.bytes;
    if (point.bytes == 0 || IsUnprintable(point.value)) {
      for (char byte : text.substr(0, bytes)) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(byte));
      }
    } else {
      if (quoted && (text[0] == '"' || text[0] == '\\')) out.push_back('\\');
      out.append(text.substr(0, bytes));
    }
    text.remove_prefix(bytes);
  }
}

std::string Escape(std::string_view text, bool quoted) {
  std::string out;
  if (text.size() <= kMaxQuotedBytes) {
    Append(text, quoted, out);
    return out;
  }
  // Cut between code points; in broken UTF-8 it does not matter where.
  size_t head = kHeadBytes;
  for (int i = 0; i < 3 && IsContinuation(text[head]); ++i) --head;
  size_t tail = text.size() - kTailBytes;
  for (int i = 0; i < 3 && IsContinuation(text[tail]); ++i) ++tail;
  Append(text.substr(0, head), quoted, out);
  out.append("...");
  Append(text.substr(tail), quoted, out);
  return out;
}

}  // namespace

std::string Printable(std::string_view text) { return Escape(text, /*quoted=*/false); }

std::string Quoted(std::string_view text) { return '"' + Escape(text, /*quoted=*/true) + '"'; }

}  // namespace adapterd
