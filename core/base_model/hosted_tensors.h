// A base model in memory as what adapters are checked and loaded against.
#ifndef ADAPTERD_CORE_BASE_MODEL_HOSTED_TENSORS_H_
#define ADAPTERD_CORE_BASE_MODEL_HOSTED_TENSORS_H_

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "core/adapter/base_tensors.h"
#include "core/base_model/hosted_base.h"

namespace adapterd {

// The weights and biases as they were loaded, whatever is merged into them; quantised ones
// dequantised, in F32. Keeps the base model alive. Immutable; any thread.
class HostedTensors final : public BaseTensors {
 public:
  HostedTensors(std::string name, std::shared_ptr<const HostedBase> base);

  const std::string& source() const override { return name_; }
  std::string_view field() const override { return "hosted_base"; }
  const BaseGeometry& geometry() const override { return base_->geometry(); }
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }
  std::string FileOf(const CheckpointTensor&) const override { return ""; }
  absl::Status ReadRows(const CheckpointTensor& tensor, int64_t row_elements, int64_t first_row,
                        std::span<std::byte> out) const override;
  // One entry, which no other base model ever has, not even one that is loaded in its place.
  std::vector<std::pair<std::string, FileIdentity>> identity() const override;
  absl::Status CheckUnchanged() const override { return absl::OkStatus(); }

  // The module whose weight or bias a tensor of tensors() is.
  size_t ModuleOf(std::string_view tensor) const;

 private:
  struct Place {
    size_t module = 0;
    bool is_bias = false;
  };
  void Add(std::string name, DType dtype, const Shape& shape, Place place);

  const std::string name_;
  const std::shared_ptr<const HostedBase> base_;
  std::vector<CheckpointTensor> tensors_;
  absl::flat_hash_map<std::string, Place> places_;  // by the tensor's name
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_HOSTED_TENSORS_H_
