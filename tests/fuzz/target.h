// What is fuzzed: functions over bytes that end the process when a property does not hold.
#ifndef ADAPTERD_TESTS_FUZZ_TARGET_H_
#define ADAPTERD_TESTS_FUZZ_TARGET_H_

#include <cstdint>
#include <span>
#include <string_view>

namespace adapterd::fuzz {

// One place deep in the code, behind checks that random bytes do not pass. It counts as reached
// when an error says so, or when the target notes it by name.
struct DeepCheck {
  std::string_view name;
  std::string_view message;  // part of the error's message; empty: noted by name
};

struct Target {
  std::string_view name;  // also the folder of its stored inputs
  void (*run)(std::string_view input);
  std::span<const DeepCheck> deep_checks;
};

// A whole weights file. What the reader accepts, the writer writes and the reader reads again.
const Target& SafetensorsTarget();
// The text of an adapter_config.json.
const Target& PeftConfigTarget();
// The name of one tensor: PEFT's; sd-scripts' and diffusers'.
const Target& PeftKeyTarget();
const Target& KohyaKeyTarget();
// A regular expression of a config, then the module paths to match, divided by NUL.
const Target& PeftPatternTarget();
// The text of a config, NUL, the JSON of a weights file's header: a folder as it is opened.
const Target& PeftOpenTarget();

// A whole GGUF file, as a container and as an adapter.
const Target& GgufTarget();
// The bytes of a StreamProjectionsRequest.
const Target& TensorMessageTarget();

std::span<const Target* const> AllTargets();

// Counts of this process. A check is told by its name in the table, which outlives it. One thread.
void NoteMessage(const Target& target, std::string_view message);
void Note(const Target& target, std::string_view deep_check);
int64_t TimesReached(const Target& target, std::string_view deep_check);

// Writes "reached COUNT NAME" for every deep check of `target` to standard error.
void PrintReached(const Target& target);

}  // namespace adapterd::fuzz

#endif  // ADAPTERD_TESTS_FUZZ_TARGET_H_
