// What GGUF calls the modules of a base model (llama.cpp: gguf-py/gguf/tensor_mapping.py).
#ifndef ADAPTERD_CORE_ADAPTER_GGUF_NAMES_H_
#define ADAPTERD_CORE_ADAPTER_GGUF_NAMES_H_

#include <optional>
#include <string>
#include <string_view>

namespace adapterd {

// Whose heads decide the order of a module's rows.
enum class RopeHeads { kNone, kQuery, kKeyValue };

struct GgufArchitecture {
  std::string_view name;  // general.architecture
  bool reorders_rope;     // the rows of q and k are in the order of ggml's RoPE
};

// nullptr: its names are not known here.
const GgufArchitecture* FindGgufArchitecture(std::string_view name);

// All that FindGgufArchitecture knows, for messages.
std::string KnownGgufArchitectures();

struct GgufModule {
  std::string path;
  RopeHeads rope = RopeHeads::kNone;
  bool is_experts = false;
  bool is_embedding = false;
};

// The module of the base tensor "blk.0.attn_q.weight"; nullopt: no rule explains the name.
std::optional<GgufModule> ModuleOfGgufTensor(const GgufArchitecture& architecture,
                                             std::string_view tensor);

// The base tensor of the module at `path`, with ".weight"; nullopt: GGUF has no name for it.
// "model.language_model." and "language_model." stand for "model." and nothing, as for the
// converter.
std::optional<std::string> GgufTensorOf(const GgufArchitecture& architecture,
                                        std::string_view path);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_GGUF_NAMES_H_
