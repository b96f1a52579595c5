// Reads the weights that a WeightsPlan locates.
#ifndef ADAPTERD_CORE_ADAPTER_WEIGHTS_READER_H_
#define ADAPTERD_CORE_ADAPTER_WEIGHTS_READER_H_

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/spare_buffers.h"
#include "core/adapter/suspicions.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/input_file.h"

namespace adapterd {

// Bytes are read, digested and checked in pieces of this size, while they are in the cache.
inline constexpr int64_t kReadBytes = 1 << 18;

// Owns the open files. Modules are read side by side, each straight into the buffers that the sink
// gets; a module's tensors lie together in the file, so that reads stay large and in order.
class WeightsReader : public AdapterReader {
 public:
  // `config`: the other file in use, if any.
  WeightsReader(WeightsPlan plan, std::optional<InputFile> config, InputFile weights,
                std::optional<BoundBase> base);

  const std::shared_ptr<const AdapterManifest>& manifest() const override { return manifest_; }
  const SourceIdentity& identity() const override { return identity_; }
  const BoundBase* base() const override { return base_ ? &*base_ : nullptr; }
  absl::StatusOr<std::string> Read(ThreadPool& pool, const Cancellation& cancellation,
                                   ModuleSink* sink, ProblemList& problems) override;
  absl::StatusOr<std::string> WeightsDigest(const Cancellation& cancellation) override;

 private:
  // What reading one tensor tells.
  struct TensorFacts {
    std::string sha256;
    float max_magnitude = 0;
  };
  struct ModuleFacts {
    std::vector<TensorFacts> tensors;  // as planned
  };

  absl::StatusOr<TensorFacts> ReadTensor(const PlannedTensor& tensor, std::span<std::byte> out,
                                         float* decoded, const Cancellation& cancellation) const;
  absl::StatusOr<Tensor> ReadInto(AlignedBuffer buffer, const PlannedTensor& tensor,
                                  const Cancellation& cancellation, SpareBuffers& spares,
                                  TensorFacts& facts) const;
  absl::Status ReadShared(const Cancellation& cancellation, SpareBuffers& spares,
                          ModuleFacts& facts);
  absl::Status DigestModule(size_t module, const Cancellation& cancellation, SpareBuffers& spares,
                            ModuleFacts& facts) const;
  absl::Status ReadModule(size_t module, const Cancellation& cancellation, SpareBuffers& spares,
                          ModuleSink& sink, ModuleFacts& facts) const;
  void Judge(const std::vector<ModuleFacts>& facts, const ModuleFacts& shared,
             ProblemList& problems) const;
  std::string Revision(const std::vector<ModuleFacts>& facts, const ModuleFacts& shared) const;
  absl::Status CheckUnchanged() const;

  std::shared_ptr<const AdapterManifest> manifest_;
  std::vector<PlannedModule> modules_;
  std::vector<size_t> order_;  // of modules, by where they lie in the file
  std::vector<PlannedTensor> shared_;
  StoredTensors shared_tensors_;
  std::optional<InputFile> config_;
  InputFile weights_;
  std::optional<BoundBase> base_;
  SourceIdentity identity_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_WEIGHTS_READER_H_
