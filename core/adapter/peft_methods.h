// The methods of PEFT, by peft_type: which are read, what their configs may say without changing
// the arithmetic, and why the others are refused.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_METHODS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_METHODS_H_

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace adapterd {

enum class PeftMethod { kLora, kAdaLora, kVera };

// "LORA", "ADALORA", "VERA": as configs spell them.
std::string_view PeftTypeName(PeftMethod method);

// Exact, as PEFT compares. nullopt: not read.
std::optional<PeftMethod> FindPeftMethod(std::string_view peft_type);

struct RefusedMethod {
  std::string_view peft_type;
  std::string_view why;  // ends the sentence "not supported: ..."
  // The method adds a delta to weights, so that PEFT itself may be able to turn it into a LoRA.
  bool has_delta = false;
};

// The methods of PEFT that are not read, by name.
std::span<const RefusedMethod> RefusedMethods();

// Why adapters of this type are not read, and what helps where something does. Any text will do.
// REQUIRES: FindPeftMethod gives nullopt.
std::string WhyRefused(std::string_view peft_type);

// Keys without a say in the arithmetic of a trained adapter: names, training, initialisation. Those
// of one method are not known to another.
std::vector<std::string_view> InformationalKeys(PeftMethod method);

// A switch of LORA and ADALORA that changes the arithmetic in a way that is not implemented.
struct RefusedSwitch {
  std::string_view key;
  std::string_view why;  // ends the sentence "KEY is set: ..."
};
std::span<const RefusedSwitch> RefusedSwitches();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_METHODS_H_
