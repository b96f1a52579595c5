// Text from outside (tensor names, file names, config values) on its way into a message or a log.
#ifndef ADAPTERD_CORE_BASE_QUOTE_H_
#define ADAPTERD_CORE_BASE_QUOTE_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace adapterd {

// Longer text loses its middle: the ends of tensor names and paths are what tells them apart.
inline constexpr size_t kMaxQuotedBytes = 100;

// `text` as one short line of valid UTF-8: at most kMaxQuotedBytes bytes of it, "..." for the rest,
// and \xNN for every byte of a control character, of one that reorders text, or of broken UTF-8.
// Costs nothing on the size of `text`.
std::string Printable(std::string_view text);

// The same in double quotes, with quotes and backslashes escaped.
std::string Quoted(std::string_view text);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_QUOTE_H_
