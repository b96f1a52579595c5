// An adapter as llama.cpp reads one: a GGUF file.
#ifndef ADAPTERD_CORE_ADAPTER_GGUF_EXPORT_H_
#define ADAPTERD_CORE_ADAPTER_GGUF_EXPORT_H_

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/gguf_names.h"
#include "core/adapter/peft_export.h"
#include "core/formats/gguf.h"

namespace adapterd {

// A file that is made tensor by tensor: its size is known before the first of them is unpacked.
// Factors keep their bits and dtypes. Immutable; any thread.
class GgufExport {
 public:
  // `manifest` must outlive the result. INVALID_FIELD for an architecture whose names are not
  // known. UNSUPPORTED_ADAPTER, naming the module, for what the format cannot say: modules without
  // a name there, anything beside a pair, scales that no one alpha gives. BASE_REQUIRED when rows
  // have to be reordered by heads that are not known, BASE_MODEL_MISMATCH when they are no heads.
  static absl::StatusOr<GgufExport> Create(const AdapterManifest& manifest,
                                           std::string_view architecture);

  int64_t file_bytes() const { return layout_.file_bytes; }

  // Calls `write` with the bytes of the file, one piece after the other, and stops at its first
  // error. Holds one tensor at a time.
  absl::Status Write(const TensorLookup& lookup,
                     const std::function<absl::Status(std::span<const std::byte>)>& write) const;

 private:
  struct Entry {
    size_t module = 0;
    TensorRole role = TensorRole::kLoraA;
    int64_t rope_heads = 0;  // not 0: into the order of so many heads
  };

  explicit GgufExport(const AdapterManifest& manifest) : manifest_(manifest) {}
  absl::Status AddModule(const GgufArchitecture& architecture, size_t index,
                         std::vector<GgufSpec>& specs);

  const AdapterManifest& manifest_;
  std::vector<Entry> entries_;  // one a tensor of layout_
  GgufLayout layout_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_GGUF_EXPORT_H_
