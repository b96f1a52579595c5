// What adapters, roots and aliases may be called.
#ifndef ADAPTERD_CORE_BASE_NAME_H_
#define ADAPTERD_CORE_BASE_NAME_H_

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace adapterd {

inline constexpr size_t kMaxNameBytes = 128;  // a file name of any common disk, with room to spare

// [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}: never a path, a hidden file or a flag, and never quoted.
inline bool IsName(std::string_view name) {
  const auto is_word = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !name.empty() && name.size() <= kMaxNameBytes && is_word(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return is_word(c) || c == '.' || c == '-'; });
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_NAME_H_
