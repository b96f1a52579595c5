// MergeAdapter in process: a module of a base model in memory gets a merged weight beside its own.
#include "core/base_model/base_merge.h"

#include <fmt/format.h>

#include <cstring>

#include "bench/copy.h"
#include "bench/data.h"
#include "bench/suites/merge.h"
#include "bench/verify.h"
#include "core/base/status_macros.h"
#include "core/registry/adapter_builder.h"

namespace adapterd::bench {
namespace {

constexpr char kPath[] = "model.layers.0.self_attn.q_proj";
constexpr int64_t kBudget = int64_t{1} << 30;
// Beside the copy there are the factors to unpack, and statistics.
constexpr Bars kBars{2, 1.5};

Tensor CopyOf(const Tensor& tensor) {
  AlignedBuffer buffer(tensor.bytes().size());
  std::memcpy(buffer.data(), tensor.bytes().data(), buffer.size());
  return Tensor(tensor.dtype(), tensor.shape(), std::move(buffer));
}

absl::StatusOr<std::shared_ptr<HostedBase>> MakeBase(const Tensor& weight, MemoryBudget& budget) {
  HostedModule module;
  module.path = kPath;
  module.tensor = std::string(kPath) + ".weight";
  module.dtype = weight.dtype();
  module.shape = weight.shape();
  module.rows = weight.shape()[0];
  module.cols = weight.shape()[1];
  module.weight = std::make_shared<const Tensor>(CopyOf(weight));
  module.memory_bytes = module.stored().bytes();
  ASSIGN_OR_RETURN(Reservation reservation,
                   budget.Reserve(module.memory_bytes, MemoryKind::kBaseModels));
  std::vector<HostedModule> modules;
  modules.push_back(std::move(module));
  return std::make_shared<HostedBase>("", "", BaseGeometry(), std::move(modules),
                                      std::move(reservation));
}

absl::StatusOr<std::shared_ptr<const AdapterHandle>> MakeAdapter(
    const Kernels& kernels, const Factors& factors, const std::shared_ptr<MemoryBudget>& budget) {
  ModuleInfo module;
  module.path = kPath;
  module.in_features = factors.a.shape()[1];
  module.out_features = factors.b.shape()[0];
  module.rank = factors.a.shape()[0];
  module.scale = factors.scale;
  module.lora_a_dtype = factors.a.dtype();
  module.lora_b_dtype = factors.b.dtype();
  auto manifest = std::make_shared<AdapterManifest>();
  manifest->modules = {module};
  manifest->index = ModuleIndex({module.path});
  ASSIGN_OR_RETURN(const int64_t bytes, LoadedAdapter::BytesFor(kernels, *manifest));
  ASSIGN_OR_RETURN(Reservation reservation, budget->Reserve(bytes));
  AdapterBuilder builder(kernels, budget, manifest, std::move(reservation));
  ModuleTensors tensors;
  tensors.lora_a = CopyOf(factors.a);
  tensors.lora_b = CopyOf(factors.b);
  RETURN_IF_ERROR(builder.Take(0, tensors));
  auto lease = std::make_shared<const AdapterLease>(builder.Build("bench"), manifest);
  return std::make_shared<const AdapterHandle>(std::move(lease), std::make_shared<AdapterUsage>(),
                                               std::make_shared<ReleaseSignal>([] {}));
}

}  // namespace

absl::Status MeasureBaseMerge(SuiteContext& context, const MergeCase& merge_case,
                              const MeasureOptions& options) {
  const std::shared_ptr<MemoryBudget> budget = MemoryBudget::Create(kBudget);
  const MatrixView weight = AsMatrix(merge_case.weight);
  ASSIGN_OR_RETURN(const auto base, MakeBase(merge_case.weight, *budget));
  ASSIGN_OR_RETURN(const auto adapter, MakeAdapter(merge_case.kernels, merge_case.factors, budget));
  const MergeTools tools{merge_case.kernels, merge_case.pool, *budget};
  const BaseMergeRequest request{{{"a", 1, adapter}}, {}, false};
  const auto take_out = [&] { return UnmergeFromBase(base, {}, tools, Cancellation()); };
  const auto merge = [&]() -> absl::Status {
    RETURN_IF_ERROR(MergeIntoBase(base, request, tools, Cancellation()).status());
    return take_out();
  };
  // Both take new memory from the system and give it back.
  const auto copy = [&] {
    AlignedBuffer buffer(static_cast<size_t>(weight.bytes()));
    return ParallelCopy(merge_case.pool, weight.data, buffer.data(), weight.bytes());
  };
  RETURN_IF_ERROR(MergeIntoBase(base, request, tools, Cancellation()).status());
  RETURN_IF_ERROR(VerifyMerge(weight, merge_case.factors, *base->Snapshot(0).weight()));
  RETURN_IF_ERROR(take_out());
  ASSIGN_OR_RETURN(const Comparison comparison, MeasureAlternating(options, merge, copy));
  context.report.Add(
      {"merge", "MergeAdapter, UnmergeAdapter",
       fmt::format("{}x{} r={}", weight.rows, weight.cols, merge_case.factors.a.shape()[0]), "bf16",
       fmt::format("memcpy of W to new memory, {} threads",
                   CopyThreads(merge_case.pool, weight.bytes())),
       comparison, kBars});
  return absl::OkStatus();
}

}  // namespace adapterd::bench
