#include "core/base_model/load_base.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/base_model/base_plan.h"
#include "core/compute/nf4.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Between two looks at the cancellation.
constexpr int64_t kReadBytes = 16 << 20;

absl::StatusOr<Tensor> ReadTensor(const Checkpoint& checkpoint, const CheckpointTensor& tensor,
                                  const Cancellation& cancellation) {
  AlignedBuffer buffer(static_cast<size_t>(tensor.bytes));
  const int64_t element_bytes = FloatBytes(tensor.dtype);
  for (int64_t first = 0; first < tensor.bytes; first += kReadBytes) {
    RETURN_IF_ERROR(cancellation.Check());
    const int64_t count = std::min(kReadBytes, tensor.bytes - first);
    RETURN_IF_ERROR(
        checkpoint.ReadRows(tensor, 1, first / element_bytes, buffer.span().subspan(first, count)));
  }
  return Tensor(tensor.dtype, tensor.shape, std::move(buffer));
}

absl::Status CheckFinite(const CheckpointTensor& tensor, const Tensor& read) {
  constexpr int64_t kBlock = 4096;
  float values[kBlock];
  const int64_t width = FloatBytes(tensor.dtype);
  const int64_t elements = tensor.bytes / width;
  for (int64_t first = 0; first < elements; first += kBlock) {
    const int64_t count = std::min(kBlock, elements - first);
    ConvertToF32(tensor.dtype, read.bytes().data() + first * width, values, count);
    if (std::all_of(values, values + count, [](float value) { return std::isfinite(value); })) {
      continue;
    }
    return Error(Reason::kNonFiniteWeights,
                 fmt::format("tensor {} holds NaN or infinities, which NF4 cannot hold",
                             Quoted(tensor.name)))
        .With("tensor", Printable(tensor.name));
  }
  return absl::OkStatus();
}

// One load. Threads: reads modules at the same time.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, MemoryBudget& budget, const Cancellation& cancellation)
      : checkpoint_(checkpoint), budget_(budget), cancellation_(cancellation) {}

  absl::Status Read(BaseModulePlan& planned) const {
    HostedModule& module = planned.module;
    if (planned.bias != nullptr) {
      ASSIGN_OR_RETURN(module.bias, ReadTensor(checkpoint_, *planned.bias, cancellation_));
    }
    if (planned.tied_to) return absl::OkStatus();
    if (planned.nf4_block) return Quantise(planned);
    ASSIGN_OR_RETURN(Tensor weight, ReadTensor(checkpoint_, *planned.weight, cancellation_));
    module.weight = std::make_shared<const Tensor>(std::move(weight));
    return absl::OkStatus();
  }

 private:
  // What is read for it counts in the budget for as long as it is there.
  absl::Status Quantise(BaseModulePlan& planned) const {
    HostedModule& module = planned.module;
    ASSIGN_OR_RETURN(const Reservation meanwhile,
                     budget_.Reserve(planned.weight->bytes, MemoryKind::kBaseModels));
    ASSIGN_OR_RETURN(const Tensor weight, ReadTensor(checkpoint_, *planned.weight, cancellation_));
    RETURN_IF_ERROR(CheckFinite(*planned.weight, weight));
    module.nf4 = std::make_shared<const Nf4Matrix>(
        MatrixView{weight.dtype(), module.rows, module.cols, weight.bytes().data()},
        *planned.nf4_block);
    module.quantization_error = module.nf4->error();
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  MemoryBudget& budget_;
  const Cancellation& cancellation_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<HostedBase>> LoadHostedBase(const BaseLoadRequest& request,
                                                           const SourceRoots& roots,
                                                           MemoryBudget& budget, ThreadPool& pool,
                                                           const Cancellation& cancellation) {
  ProblemList problems;
  const std::unique_ptr<const BaseModel> base =
      BaseModel::Open(roots, request.source, problems, "source");
  RETURN_IF_ERROR(problems.ToStatus());
  ASSIGN_OR_RETURN(BasePlan plan, PlanBase(*base, request));
  ASSIGN_OR_RETURN(Reservation reservation, budget.Reserve(plan.bytes, MemoryKind::kBaseModels));
  const Loader loader(base->checkpoint(), budget, cancellation);
  RETURN_IF_ERROR(ParallelFor(pool, static_cast<int64_t>(plan.modules.size()), cancellation,
                              [&](int64_t i) { return loader.Read(plan.modules[i]); }));
  RETURN_IF_ERROR(base->CheckUnchanged());
  std::vector<HostedModule> modules;
  modules.reserve(plan.modules.size());
  for (BaseModulePlan& planned : plan.modules) {
    if (planned.tied_to) planned.module.weight = plan.modules[*planned.tied_to].module.weight;
  }
  for (BaseModulePlan& planned : plan.modules) modules.push_back(std::move(planned.module));
  return std::make_shared<HostedBase>(request.source, base->fingerprint(), base->geometry(),
                                      std::move(modules), std::move(reservation));
}

}  // namespace adapterd
