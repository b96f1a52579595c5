// An adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/tensor_role.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// What a file's metadata say of who made it. Exports say nothing: to whom they go, they are files
// like any other.
enum class ExportOrigin { kUnsaid, kCreated };

// Whether a file was written with kCreated.
bool IsCreated(const SafetensorsHeader& header);

// Where an export finds the final tensors of a module, in the form of ModuleTensors; or why it does
// not.
using TensorLookup = std::function<absl::StatusOr<Tensor>(size_t module, TensorRole role)>;

// Both files of an export, of which the second is made tensor by tensor: its size is known before
// the first of them is unpacked. Whatever it was loaded from, the adapter is a plain LoRA (or DoRA)
// of exact paths; loading it and exporting it again gives the same bytes. Immutable; any thread.
class PeftExport {
 public:
  // `manifest` must outlive the result. INVALID_FIELD when a name is no text, and what
  // MakePeftConfig refuses.
  static absl::StatusOr<PeftExport> Create(const AdapterManifest& manifest,
                                           ExportOrigin origin = ExportOrigin::kUnsaid);

  const std::string& config() const { return config_; }
  int64_t weights_bytes() const { return layout_.file_bytes; }

  // Calls `write` with the bytes of the weights file, one piece after the other, and stops at the
  // first error of either. Holds one tensor at a time.
  absl::Status WriteWeights(
      const TensorLookup& lookup,
      const std::function<absl::Status(std::span<const std::byte>)>& write) const;

 private:
  struct Entry {
    size_t module = 0;
    TensorRole role = TensorRole::kLoraA;
  };

  explicit PeftExport(const AdapterManifest& manifest) : manifest_(manifest) {}

  const AdapterManifest& manifest_;
  std::string config_;
  std::vector<Entry> entries_;  // one a tensor of layout_
  SafetensorsLayout layout_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_H_
