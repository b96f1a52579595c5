#include "core/adapter/python_syntax.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsOctal(char c) { return c >= '0' && c <= '7'; }

// One pass over the pattern. Each method consumes one token at `at_` and appends its translation.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          RETURN_IF_ERROR(Escape(/*in_class=*/false));
          break;
        case '[':
          RETURN_IF_ERROR(Class());
          break;
        case '(':
          RETURN_IF_ERROR(Group());
          break;
        case '{':
          Brace();
          break;
        default:
          out_ += in_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  absl::Status Fail(std::string_view what, size_t position) const {
    return absl::InvalidArgumentError(fmt::format("{} at position {}", what, position));
  }

  bool Has(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  // \x, \u and \U take exactly `digits` hexadecimal digits.
  absl::Status HexEscape(size_t digits) {
    const std::string_view text = in_.substr(std::min(at_ + 2, in_.size()), digits);
    if (text.size() != digits || !std::all_of(text.begin(), text.end(), absl::ascii_isxdigit)) {
      return Fail("incomplete escape", at_);
    }
    out_ += fmt::format("\\x{{{}}}", text);
    at_ += 2 + digits;
    return absl::OkStatus();
  }

  void OctalEscape(size_t digits) {
    int value = 0;
    for (size_t i = 1; i <= digits; ++i) value = value * 8 + (Peek(i) - '0');
    out_ += fmt::format("\\x{{{:x}}}", value);
    at_ += 1 + digits;
  }

  // Python: \0 starts up to three octal digits; three octal digits are octal; anything else is a
  // group of one or two digits (in a class: an error).
  absl::Status DigitEscape(bool in_class) {
    if (Peek(1) == '0' || (in_class && IsOctal(Peek(1)))) {
      size_t digits = 1;
      while (digits < 3 && IsOctal(Peek(digits + 1))) ++digits;
      return Octal(digits);
    }
    if (in_class) return Fail("bad escape", at_);
    if (IsOctal(Peek(1)) && IsOctal(Peek(2)) && IsOctal(Peek(3))) return Octal(3);
    const size_t digits = IsDigit(Peek(2)) ? 2 : 1;
    out_ += fmt::format("\\g{{{}}}", in_.substr(at_ + 1, digits));
    at_ += 1 + digits;
    return absl::OkStatus();
  }

  absl::Status Octal(size_t digits) {
    if (digits == 3 && Peek(1) > '3') return Fail("octal escape outside of range 0-0o377", at_);
    OctalEscape(digits);
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    const char c = Peek(1);
    if (at_ + 1 >= in_.size()) return Fail("bad escape (end of pattern)", at_);
    if (c == 'x') return HexEscape(2);
    if (c == 'u') return HexEscape(4);
    if (c == 'U') return HexEscape(8);
    if (IsDigit(c)) return DigitEscape(in_class);
    if (c == 'v') {  // PCRE2: any vertical space
      out_ += "\\x0b";
    } else if (c == 'Z' && !in_class) {  // PCRE2: also before a final newline
      out_ += "\\z";
    } else if (absl::ascii_isalpha(c)) {
      const std::string_view known = in_class ? "afnrtbdDsSwW" : "afnrtAbBdDsSwW";
      if (known.find(c) == std::string_view::npos) {
        return Fail(fmt::format("bad escape \\{}", c), at_);
      }
      out_ += {'\\', c};
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      out_ += c;  // the first byte of a character that needs no escape
    } else {
      out_ += {'\\', c};
    }
    at_ += 2;
    return absl::OkStatus();
  }

  absl::Status Class() {
    const size_t begin = at_;
    out_ += in_[at_++];
    if (Has("^")) out_ += in_[at_++];
    for (bool first = true; at_ < in_.size(); first = false) {
      const char c = in_[at_];
      if (c == ']' && !first) {
        out_ += in_[at_++];
        return absl::OkStatus();
      }
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/true));
        continue;
      }
      if (c == '[' || c == ']') out_ += '\\';  // PCRE2 has [:alpha:]; Python has a literal
      out_ += c;
      ++at_;
    }
    return Fail("unterminated character set", begin);
  }

  // {m}, {m,}, {,n}, {m,n} and {,} repeat; any other brace is itself. PCRE2 reads {,n} literally.
  void Brace() {
    size_t end = 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (IsDigit(Peek(end))) ++end;
      return in_.substr(at_ + begin, end - begin);
    };
    const std::string_view low = digits();
    const bool comma = Peek(end) == ',';
    if (comma) ++end;
    const std::string_view high = comma ? digits() : std::string_view();
    if (Peek(end) != '}' || (low.empty() && !comma)) {
      out_ += "\\{";
      ++at_;
      return;
    }
    out_ += fmt::format("{{{}{}{}}}", low.empty() ? "0" : low, comma ? "," : "", high);
    at_ += end + 1;
  }

  absl::Status Group() {
    if (Has("(*")) return Fail("nothing to repeat", at_ + 1);
    if (!Has("(?")) {
      out_ += in_[at_++];
      return absl::OkStatus();
    }
    for (const std::string_view plain : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P<"}) {
      if (Has(plain)) return Copy(plain.size());
    }
    if (Has("(?P=") || Has("(?#")) {
      const size_t close = in_.find(')', at_);
      if (close == std::string_view::npos) return Fail("missing )", at_);
      return Copy(close + 1 - at_);
    }
    if (Has("(?(")) return Condition();
    return Flags();
  }

  absl::Status Copy(size_t bytes) {
    out_ += in_.substr(at_, bytes);
    at_ += bytes;
    return absl::OkStatus();
  }

  // (?(1)yes|no) and (?(name)yes|no). PCRE2 would take some names (R, DEFINE) as its own.
  absl::Status Condition() {
    const size_t close = in_.find(')', at_);
    if (close == std::string_view::npos) return Fail("missing ), unterminated name", at_);
    const std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    const bool number = !name.empty() && std::all_of(name.begin(), name.end(), IsDigit);
    const bool word = !name.empty() && !IsDigit(name[0]) &&
                      std::all_of(name.begin(), name.end(),
                                  [](char c) { return absl::ascii_isalnum(c) || c == '_'; });
    if (!number && !word) return Fail("bad character in group name", at_ + 3);
    out_ += number ? fmt::format("(?({})", name) : fmt::format("(?(<{}>)", name);
    at_ = close + 1;
    return absl::OkStatus();
  }

  // (?ims) at the very start, (?ims-ims:...) anywhere. "u" is the default and changes nothing.
  absl::Status Flags() {
    size_t end = at_ + 2;
    std::string flags;
    for (; end < in_.size() && (absl::ascii_isalpha(in_[end]) || in_[end] == '-'); ++end) {
      const char flag = in_[end];
      if (flag == 'u' && flags.find('-') == std::string::npos) continue;
      if (flag != 'i' && flag != 'm' && flag != 's' && flag != '-') {
        return Fail(fmt::format("unknown or unsupported extension ?{}", flag), at_ + 1);
      }
      flags += flag;
    }
    const char close = end < in_.size() ? in_[end] : '\0';
    const size_t dashes = std::count(flags.begin(), flags.end(), '-');
    if (close == ')' && at_ != 0) {
      return Fail("global flags not at the start of the expression", at_);
    }
    if ((close != ')' && close != ':') || end == at_ + 2 || dashes > (close == ':' ? 1 : 0) ||
        flags.ends_with('-')) {
      return Fail("unknown extension or missing flag", at_ + 1);
    }
    out_ += "(?" + flags + close;
    at_ = end + 1;
    return absl::OkStatus();
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePythonRegex(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace adapterd
