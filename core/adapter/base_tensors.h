// The tensors of a base model, wherever they are.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_TENSORS_H_
#define ADAPTERD_CORE_ADAPTER_BASE_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/adapter/base_model_geometry.h"
#include "core/formats/checkpoint.h"

namespace adapterd {

// What an adapter is checked and loaded against: a checkpoint on the disk (BaseModel), or modules
// of one in memory. Immutable; any thread.
class BaseTensors {
 public:
  virtual ~BaseTensors() = default;

  virtual const std::string& source() const = 0;  // what errors call it
  virtual std::string_view field() const = 0;     // of AdapterSpec, that named it
  virtual const BaseGeometry& geometry() const = 0;

  // By name, bytewise; files and offsets mean nothing but to the object itself.
  virtual const std::vector<CheckpointTensor>& tensors() const = 0;
  // The file that a tensor of tensors() is in; empty: none.
  virtual std::string FileOf(const CheckpointTensor& tensor) const = 0;
  // As Checkpoint::ReadRows.
  virtual absl::Status ReadRows(const CheckpointTensor& tensor, int64_t row_elements,
                                int64_t first_row, std::span<std::byte> out) const = 0;

  // Names and states of all that was read, in a fixed order.
  virtual std::vector<std::pair<std::string, FileIdentity>> identity() const = 0;
  // SOURCE_CHANGED when any of it moved on since it was opened.
  virtual absl::Status CheckUnchanged() const = 0;

  // nullptr when there is none. Costs a binary search.
  const CheckpointTensor* Find(std::string_view name) const { return FindTensor(tensors(), name); }
};

// Finds a base model that is held in memory; BASE_MODEL_NOT_FOUND.
using HostedBaseFinder =
    std::function<absl::StatusOr<std::shared_ptr<const BaseTensors>>(const std::string& name)>;

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_TENSORS_H_
