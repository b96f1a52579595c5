#include "core/compute/kernels.h"

#include "core/compute/onednn.h"
#include "fmt/format.h"

namespace adapterd {

Kernels::Kernels(KernelChoice choice) : impl_(std::make_unique<Impl>(choice)) {}
Kernels::~Kernels() = default;

std::string Kernels::isa() const { return impl_->isa(); }

std::string Kernels::OneDnnVersion() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

std::vector<std::string> Kernels::SlowMatmuls() const { return impl_->SlowMatmuls(); }

ComputeType Kernels::ComputeTypeFor(DType input, DType lora_a, DType lora_b) const {
  const bool all_bf16 = input == DType::kBF16 && lora_a == DType::kBF16 && lora_b == DType::kBF16;
  return all_bf16 && impl_->has_fast_bf16() ? ComputeType::kBF16 : ComputeType::kF32;
}

}  // namespace adapterd
