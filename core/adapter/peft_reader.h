// Reads the weights that a PeftPlan locates.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_READER_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_READER_H_

#include <memory>
#include <vector>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/peft_plan.h"
#include "core/formats/input_file.h"

namespace adapterd {

// Bytes are read, digested and checked in pieces of this size, while they are in the cache.
inline constexpr int64_t kReadBytes = 1 << 20;

// Owns both open files. Reading costs one pass over the weights file: two digests of the same bytes
// (the tensor's for the revision, the file's), about 1.5 ns a byte.
class PeftReader : public AdapterReader {
 public:
  PeftReader(PeftPlan plan, InputFile config, InputFile weights);

  const std::shared_ptr<const AdapterManifest>& manifest() const override { return manifest_; }
  const SourceIdentity& identity() const override { return identity_; }
  absl::StatusOr<std::shared_ptr<const Adapter>> Read(const Cancellation& cancellation,
                                                      ProblemList& problems) override;
  absl::StatusOr<ContentDigest> Digest(const Cancellation& cancellation,
                                       ProblemList& problems) override;

 private:
  // One pass over the weights, which are kept when `factors` is given (one a module).
  absl::StatusOr<ContentDigest> Pass(const Cancellation& cancellation, ProblemList& problems,
                                     std::vector<ModuleFactors>* factors);
  absl::Status CheckUnchanged() const;

  std::shared_ptr<const AdapterManifest> manifest_;
  std::vector<PlannedTensor> tensors_;
  InputFile config_;
  InputFile weights_;
  SourceIdentity identity_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_READER_H_
