// A base model's checkpoint and what its config.json says.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_model_geometry.h"
#include "core/adapter/problems.h"
#include "core/formats/checkpoint.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// Open for as long as an adapter is checked or loaded against it: headers and config are read,
// weights stay on the disk. Owns its files. Immutable; any thread.
class BaseModel {
 public:
  // Opens the folder `source` below a root; config.json may be missing. Adds problems with the
  // field base_checkpoint; nullptr when there is an error among them: those of
  // SourceRoots::OpenFolder, Checkpoint::Open and ParseBaseGeometry, and SOURCE_NOT_FOUND when
  // `source` is a file.
  static std::unique_ptr<const BaseModel> Open(const SourceRoots& roots, const std::string& source,
                                               ProblemList& problems);

  const std::string& source() const { return source_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  const BaseGeometry& geometry() const { return geometry_; }
  // SHA-256, 64 hex digits, over config.json's bytes and over name, dtype and shape of every tensor:
  // the same however the tensors are spread over files, and whatever their numbers are.
  const std::string& fingerprint() const { return fingerprint_; }

  // Names and states of all files in use, in a fixed order.
  std::vector<std::pair<std::string, FileIdentity>> identity() const;
  // SOURCE_CHANGED when any of them moved on since it was opened.
  absl::Status CheckUnchanged() const;

 private:
  BaseModel(std::string source, Checkpoint checkpoint, std::optional<InputFile> config,
            BaseGeometry geometry, std::string fingerprint)
      : source_(std::move(source)),
        checkpoint_(std::move(checkpoint)),
        config_(std::move(config)),
        geometry_(std::move(geometry)),
        fingerprint_(std::move(fingerprint)) {}

  const std::string source_;
  const Checkpoint checkpoint_;
  const std::optional<InputFile> config_;
  const BaseGeometry geometry_;
  const std::string fingerprint_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_H_
