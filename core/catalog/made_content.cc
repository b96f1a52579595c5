#include "core/catalog/made_content.h"

#include <memory>
#include <string_view>

#include "core/adapter/peft_export.h"
#include "core/adapter/source_folder.h"
#include "core/base/status_macros.h"
#include "core/catalog/incoming_content.h"

namespace adapterd {

absl::StatusOr<StoredContent> StoreMade(ContentStore& store, const MadeAdapter& made,
                                        const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(const PeftExport files,
                   PeftExport::Create(*made.manifest, ExportOrigin::kCreated));
  const std::string& config = files.config();
  ASSIGN_OR_RETURN(const std::unique_ptr<IncomingContent> incoming,
                   store.Begin(static_cast<int64_t>(config.size()) + files.weights_bytes()));
  RETURN_IF_ERROR(incoming->Append(std::string(kConfigFileName), config));
  RETURN_IF_ERROR(files.WriteWeights(made.tensors, [&](std::span<const std::byte> bytes) {
    if (absl::Status status = cancellation.Check(); !status.ok()) return status;
    return incoming->Append(
        "adapter_model.safetensors",
        std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }));
  return incoming->Commit();
}

}  // namespace adapterd
