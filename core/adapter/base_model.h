// A base model's checkpoint and what its config.json says.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_tensors.h"
#include "core/adapter/problems.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// Open for as long as an adapter is checked or loaded against it: headers and config are read,
// weights stay on the disk. Owns its files. Immutable; any thread.
class BaseModel final : public BaseTensors {
 public:
  // Opens the folder `source` below a root; config.json may be missing. Adds problems with
  // `field`, the request's that names the folder; nullptr when there is an error among them: those
  // of SourceRoots::OpenFolder, Checkpoint::Open and ParseBaseGeometry, and SOURCE_NOT_FOUND when
  // `source` is a file.
  static std::unique_ptr<const BaseModel> Open(const SourceRoots& roots, const std::string& source,
                                               ProblemList& problems,
                                               const std::string& field = "base_checkpoint");

  const std::string& source() const override { return source_; }
  std::string_view field() const override { return field_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  const BaseGeometry& geometry() const override { return geometry_; }
  // SHA-256, 64 hex digits, over config.json's bytes and over name, dtype and shape of every
  // tensor: the same however the tensors are spread over files, and whatever their numbers are.
  const std::string& fingerprint() const { return fingerprint_; }

  const std::vector<CheckpointTensor>& tensors() const override { return checkpoint_.tensors(); }
  std::string FileOf(const CheckpointTensor& tensor) const override {
    return checkpoint_.files()[tensor.file].name();
  }
  absl::Status ReadRows(const CheckpointTensor& tensor, int64_t row_elements, int64_t first_row,
                        std::span<std::byte> out) const override {
    return checkpoint_.ReadRows(tensor, row_elements, first_row, out);
  }
  // Of all files in use.
  std::vector<std::pair<std::string, FileIdentity>> identity() const override;
  absl::Status CheckUnchanged() const override;

 private:
  BaseModel(std::string source, std::string field, Checkpoint checkpoint,
            std::optional<InputFile> config, BaseGeometry geometry, std::string fingerprint)
      : source_(std::move(source)),
        field_(std::move(field)),
        checkpoint_(std::move(checkpoint)),
        config_(std::move(config)),
        geometry_(std::move(geometry)),
        fingerprint_(std::move(fingerprint)) {}

  const std::string source_;
  const std::string field_;
  const Checkpoint checkpoint_;
  const std::optional<InputFile> config_;
  const BaseGeometry geometry_;
  const std::string fingerprint_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_
