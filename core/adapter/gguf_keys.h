// The keys of a GGUF adapter that say what it is.
#ifndef ADAPTERD_CORE_ADAPTER_GGUF_KEYS_H_
#define ADAPTERD_CORE_ADAPTER_GGUF_KEYS_H_

#include <optional>
#include <string_view>

#include "core/adapter/gguf_names.h"
#include "core/adapter/problems.h"
#include "core/formats/gguf.h"

namespace adapterd {

struct GgufKeys {
  const GgufArchitecture* architecture = nullptr;
  double alpha = 0;  // missing: 0
};

// Errors name the key: INVALID_ADAPTER when general.type is not "adapter", MALFORMED_CONFIG for
// values of the wrong type, UNSUPPORTED_ADAPTER for an architecture or adapter.type that is not
// known, and for activated LoRA. nullopt: the tensors cannot be understood.
std::optional<GgufKeys> ReadGgufKeys(const GgufHeader& header, std::string_view file,
                                     ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_GGUF_KEYS_H_
