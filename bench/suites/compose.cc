// Compositions in process: everything but writing and loading the result.
#include <fmt/format.h>

#include "bench/data.h"
#include "bench/suite.h"
#include "core/adapter/made_adapter.h"
#include "core/base/status_macros.h"
#include "core/compose/composition.h"

namespace adapterd::bench {
namespace {

constexpr int kInputs = 8;
constexpr int64_t kRank = 16;
constexpr int64_t kHidden = 4096;
constexpr int64_t kIntermediate = 11008;
constexpr float kTrained = 0.05f;

// add_weighted_adapter(combination_type="svd") of eight adapters of rank 16 on one 4096 x 4096
// module, with PEFT 0.21.2 and PyTorch 2.15 on two quiet cores with AMX.
constexpr double kPeftModuleUs = 13.4e6;

constexpr double kMostSeconds = 20;

ModuleInfo Module(int layer, const std::string& target, int64_t in, int64_t out) {
  ModuleInfo module;
  module.path = fmt::format("model.layers.{}.{}", layer, target);
  module.in_features = in;
  module.out_features = out;
  module.rank = kRank;
  module.alpha = 2.0 * kRank;
  return module;
}

// All seven matrices of each layer of a model of 7 billion parameters.
std::vector<ModuleInfo> SevenB(int layers) {
  std::vector<ModuleInfo> modules;
  for (int layer = 0; layer < layers; ++layer) {
    for (const char* target : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      modules.push_back(Module(layer, target, kHidden, kHidden));
    }
    modules.push_back(Module(layer, "gate_proj", kHidden, kIntermediate));
    modules.push_back(Module(layer, "up_proj", kHidden, kIntermediate));
    modules.push_back(Module(layer, "down_proj", kIntermediate, kHidden));
  }
  return modules;
}

// Factors are drawn anew for each call, which counts as what reading them takes.
std::vector<ComposeInput> Inputs(const std::vector<ModuleInfo>& modules) {
  const auto manifest =
      std::make_shared<const AdapterManifest>(ManifestOfPairs(modules, /*use_rslora=*/false));
  std::vector<ComposeInput> inputs;
  for (uint64_t i = 0; i < kInputs; ++i) {
    ComposeInput& input = inputs.emplace_back();
    input.name = fmt::format("a{}", i);
    input.manifest = manifest;
    input.weight = 0.5;
    input.pair = [manifest, i](size_t module) {
      const ModuleInfo& info = manifest->modules[module];
      const uint64_t seed = 2 * (module * kInputs + i);
      return StoredPair{RandomMatrix(DType::kBF16, kRank, info.in_features, kTrained, seed),
                        RandomMatrix(DType::kBF16, info.out_features, kRank, kTrained, seed + 1)};
    };
  }
  return inputs;
}

absl::Status Compose(const ComposeSpec& spec, std::vector<ComposeInput> inputs,
                     const Kernels& kernels, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const auto composition,
                   Composition::Plan(spec, std::move(inputs), kernels, pool));
  for (size_t module = 0; module < composition->manifest()->modules.size(); ++module) {
    for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
      RETURN_IF_ERROR(composition->Take(module, role, Cancellation()).status());
    }
  }
  return absl::OkStatus();
}

// Of inputs that are there already.
absl::Status MeasureModule(SuiteContext& context, const Kernels& kernels, ThreadPool& pool) {
  const std::vector<ModuleInfo> module = {Module(0, "q_proj", kHidden, kHidden)};
  const std::vector<ComposeInput> inputs = Inputs(module);
  const auto compose = [&] {
    return Compose({.method = ComposeMethod::kSvd, .rank = kRank}, inputs, kernels, pool);
  };
  const MeasureOptions options{context.quick ? absl::Seconds(1) : absl::Seconds(5), 5};
  const Contestant contestant{compose};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings, MeasureInTurns(options, {&contestant, 1}));
  context.report.Add(Row{"compose",
                         "SVD of one module",
                         fmt::format("{0}x{0} 8 x r=16", kHidden),
                         "bf16",
                         "PEFT (constant)",
                         {timings[0], Timing::Of(kPeftModuleUs)},
                         {1.0 / 100, std::nullopt}});
  return absl::OkStatus();
}

absl::Status MeasureModel(SuiteContext& context, const Kernels& kernels, ThreadPool& pool,
                          const ComposeSpec& spec, const std::string& name, int layers,
                          std::optional<double> at_most) {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(Compose(spec, Inputs(SevenB(layers)), kernels, pool));
  context.report.Add(Figure{"compose", name, fmt::format("7B, {} layers, 8 x r=16", layers),
                            absl::ToDoubleSeconds(absl::Now() - start), "s", std::nullopt,
                            at_most});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunComposeSuite(SuiteContext& context) {
  const Kernels kernels;
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  context.report.Begin("compose", fmt::format("{} threads", context.threads));
  RETURN_IF_ERROR(MeasureModule(context, kernels, pool));
  context.report.Begin(
      "compose", fmt::format("{} threads, once, inputs drawn as they are read", context.threads),
      Report::Columns::kFigures);
  RETURN_IF_ERROR(MeasureModel(context, kernels, pool,
                               {.method = ComposeMethod::kSvd, .rank = kRank}, "SVD", 32,
                               kMostSeconds));
  if (context.quick) return absl::OkStatus();  // the next takes a minute
  return MeasureModel(context, kernels, pool,
                      {.method = ComposeMethod::kTiesSvd, .density = 0.5, .rank = kRank},
                      "TIES_SVD", 1, std::nullopt);
}

}  // namespace adapterd::bench
