#include "core/base_model/hosted_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {

HostedTensors::HostedTensors(std::string name, std::shared_ptr<const HostedBase> base)
    : name_(std::move(name)), base_(std::move(base)) {
  for (size_t i = 0; i < base_->modules().size(); ++i) {
    const HostedModule& module = base_->modules()[i];
    Add(module.tensor, module.nf4 == nullptr ? module.dtype : DType::kF32, module.shape,
        {i, false});
    if (module.bias.bytes().empty()) continue;
    Add(module.path + ".bias", module.bias.dtype(), module.bias.shape(), {i, true});
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const CheckpointTensor& a, const CheckpointTensor& b) { return a.name < b.name; });
}

void HostedTensors::Add(std::string name, DType dtype, const Shape& shape, Place place) {
  CheckpointTensor tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = shape;
  tensor.bytes = FloatBytes(dtype);
  for (const int64_t dim : shape) tensor.bytes *= dim;  // lies in memory: no overflow
  tensors_.push_back(std::move(tensor));
  places_.emplace(std::move(name), place);
}

size_t HostedTensors::ModuleOf(std::string_view tensor) const {
  return places_.at(std::string(tensor)).module;
}

absl::Status HostedTensors::ReadRows(const CheckpointTensor& tensor, int64_t row_elements,
                                     int64_t first_row, std::span<std::byte> out) const {
  const int64_t width = FloatBytes(tensor.dtype);
  const auto begin = CheckedMul(first_row, row_elements * width);
  const auto wanted = static_cast<int64_t>(out.size());
  if (!begin || *begin < 0 || wanted % width != 0 || *begin > tensor.bytes ||
      wanted > tensor.bytes - *begin) {
    return Error(Reason::kShapeMismatch,
                 fmt::format("tensor {} {}: {} bytes from row {} on are not in it",
                             Quoted(tensor.name), ShapeString(tensor.shape), wanted, first_row))
        .With("tensor", Printable(tensor.name));
  }
  const Place place = places_.at(tensor.name);
  const HostedModule& module = base_->modules()[place.module];
  if (place.is_bias) {
    std::memcpy(out.data(), module.bias.bytes().data() + *begin, out.size());
  } else if (module.nf4 == nullptr) {
    std::memcpy(out.data(), module.weight->bytes().data() + *begin, out.size());
  } else {
    module.nf4->Dequantize(*begin / width, wanted / width, reinterpret_cast<float*>(out.data()));
  }
  return absl::OkStatus();
}

std::vector<std::pair<std::string, FileIdentity>> HostedTensors::identity() const {
  FileIdentity identity;
  identity.inode = base_->instance();
  return {{fmt::format("hosted base {}", name_), identity}};
}

}  // namespace adapterd
