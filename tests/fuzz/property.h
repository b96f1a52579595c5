// Properties that hold for every input, and for every error that an input ends with.
#ifndef ADAPTERD_TESTS_FUZZ_PROPERTY_H_
#define ADAPTERD_TESTS_FUZZ_PROPERTY_H_

#include <initializer_list>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "core/adapter/problems.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {

// What a reply can carry of a message and of it with its details: longer ones lose their end.
inline constexpr size_t kMaxMessageBytes = 1000;
inline constexpr size_t kMaxErrorBytes = 4000;

// Ends the process, naming the property, when it does not hold: the fuzzer keeps the input then.
void Require(bool holds, std::string_view property);

// An error for people: one of `reasons`, a message of one printable line that fits in a reply, as
// do its details. Notes the deep check that it came from. REQUIRES: !status.ok().
void RequireGoodError(const Target& target, const absl::Status& status,
                      std::initializer_list<Reason> reasons);

// The same for each of the problems, and ToStatus tells of an error exactly when there is one.
void RequireGoodProblems(const Target& target, const ProblemList& problems,
                         std::initializer_list<Reason> reasons);

// `input` at its NUL bytes, at most `limit` parts; the last one takes the rest.
std::vector<std::string_view> SplitAtNul(std::string_view input, size_t limit);

}  // namespace adapterd::fuzz

#endif  // ADAPTERD_TESTS_FUZZ_PROPERTY_H_
