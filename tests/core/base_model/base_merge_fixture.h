// A base model in memory and adapters for it, without files.
#ifndef ADAPTERD_TESTS_CORE_BASE_MODEL_BASE_MERGE_FIXTURE_H_
#define ADAPTERD_TESTS_CORE_BASE_MODEL_BASE_MERGE_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base_model/base_merge.h"
#include "core/registry/adapter_builder.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {

// Modules q, k (with a bias), v and up, all [kOut, kIn], and square [kIn, kIn]; BF16.
class BaseMergeFixture : public ::testing::Test {
 protected:
  static constexpr int64_t kIn = 24;
  static constexpr int64_t kOut = 10;
  static constexpr int64_t kRank = 3;
  static constexpr DType kDType = DType::kBF16;

  static std::string PathOf(const std::string& target) { return "model.layers.0." + target; }

  BaseMergeFixture() { base_ = MakeBase(/*nf4_block=*/0); }

  static Tensor TensorOf(DType dtype, const Shape& shape, const std::vector<float>& values) {
    const std::string bytes = BytesOf(dtype, values);
    AlignedBuffer buffer(bytes.size());
    std::memcpy(buffer.data(), bytes.data(), bytes.size());
    return Tensor(dtype, shape, std::move(buffer));
  }

  // `nf4_block` 0: as they are.
  std::shared_ptr<HostedBase> MakeBase(int64_t nf4_block) {
    std::vector<HostedModule> modules;
    int64_t bytes = 0;
    for (const char* target : {"k", "q", "square", "up", "v"}) {
      const int64_t out = std::string_view(target) == "square" ? kIn : kOut;
      HostedModule module;
      module.path = PathOf(target);
      module.tensor = module.path + ".weight";
      module.dtype = kDType;
      module.shape = {out, kIn};
      module.rows = out;
      module.cols = kIn;
      Tensor weight = TensorOf(kDType, module.shape, random_.Floats(kDType, out * kIn));
      if (nf4_block > 0) {
        module.nf4 = std::make_shared<const Nf4Matrix>(AsMatrix(weight), nf4_block);
      } else {
        module.weight = std::make_shared<const Tensor>(std::move(weight));
      }
      if (module.path == PathOf("k")) {
        module.bias = TensorOf(kDType, {kOut}, random_.Floats(kDType, kOut));
      }
      module.memory_bytes = out * kIn * FloatBytes(kDType);
      bytes += module.memory_bytes;
      modules.push_back(std::move(module));
    }
    return std::make_shared<HostedBase>("memory", std::string(64, '0'), BaseGeometry(),
                                        std::move(modules),
                                        *budget_->Reserve(bytes, MemoryKind::kBaseModels));
  }

  struct Options {
    uint32_t seed = 1;
    std::string revision = "revision";
    bool lora_bias = false;
    std::optional<float> bias_value;  // of all its elements; else random
    bool dora = false;
    bool fan_in_fan_out = false;
    bool replicates_layers = false;
    int64_t out_features = kOut;
  };

  // Targets these modules.
  std::shared_ptr<const AdapterHandle> MakeAdapter(const std::vector<std::string>& targets,
                                                   const Options& options) {
    TestRandom random(options.seed);
    auto manifest = std::make_shared<AdapterManifest>();
    manifest->peft.fan_in_fan_out = options.fan_in_fan_out;
    if (options.replicates_layers) manifest->peft.layer_replication = {{0, 1}, {0, 1}};
    std::vector<std::string> paths;
    std::vector<ModuleTensors> tensors;
    for (const std::string& target : targets) {
      ModuleInfo module;
      module.path = PathOf(target);
      module.in_features = kIn;
      module.out_features = options.out_features;
      module.rank = kRank;
      module.scale = 0.5;
      module.has_lora_bias = options.lora_bias;
      module.has_magnitude = options.dora;
      const auto floats = [&](const Shape& shape) {
        return TensorOf(DType::kF32, shape,
                        random.Floats(DType::kF32, ElementCount(shape).value()));
      };
      ModuleTensors& own = tensors.emplace_back();
      own.lora_a = floats({kRank, kIn});
      own.lora_b = floats({options.out_features, kRank});
      if (options.lora_bias) own.lora_bias = floats({options.out_features});
      if (options.bias_value) {
        own.lora_bias = TensorOf(
            DType::kF32, {options.out_features},
            std::vector<float>(static_cast<size_t>(options.out_features), *options.bias_value));
      }
      if (options.dora) own.magnitude = floats({options.out_features});
      paths.push_back(module.path);
      manifest->modules.push_back(std::move(module));
    }
    manifest->index = ModuleIndex(paths);
    AdapterBuilder builder(kernels_, budget_, manifest,
                           *budget_->Reserve(*LoadedAdapter::BytesFor(kernels_, *manifest)));
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_THAT(builder.Take(i, tensors[i]), IsOk());
    auto lease = std::make_shared<const AdapterLease>(builder.Build(options.revision), manifest);
    return std::make_shared<const AdapterHandle>(std::move(lease), std::make_shared<AdapterUsage>(),
                                                 std::make_shared<ReleaseSignal>([] {}));
  }

  using Adapter = BaseMergeRequest::Adapter;

  absl::StatusOr<MergeStats> Merge(std::vector<Adapter> adapters,
                                   std::vector<std::string> modules = {},
                                   bool skip_merged = false) {
    ASSIGN_OR_RETURN(const BaseMergeResult result,
                     MergeIntoBase(base_, {std::move(adapters), std::move(modules), skip_merged},
                                   tools_, Cancellation()));
    return result.stats;
  }
  absl::Status Unmerge(std::vector<BaseUnmergeRequest::Adapter> adapters,
                       std::vector<std::string> modules = {}, bool skip_unmerged = false) {
    return UnmergeFromBase(base_, {std::move(adapters), std::move(modules), skip_unmerged}, tools_,
                           Cancellation());
  }

  ModuleSnapshot Snapshot(const std::string& target) const {
    return base_->Snapshot(base_->index().Find({PathOf(target), "", std::nullopt}).value());
  }
  static std::string BytesOfWeight(const ModuleSnapshot& snapshot) {
    const MatrixView weight = *snapshot.weight();
    return {reinterpret_cast<const char*>(weight.data), static_cast<size_t>(weight.bytes())};
  }
  static std::string BytesOfStored(const ModuleSnapshot& snapshot) {
    const MatrixView weight = snapshot.module->stored();
    return {reinterpret_cast<const char*>(weight.data), static_cast<size_t>(weight.bytes())};
  }

  // What MergeWeight makes of the module's own weight with these adapters in this order.
  std::string Expected(const std::string& target, const std::vector<Adapter>& adapters) {
    const ModuleSnapshot snapshot = Snapshot(target);
    std::vector<PairFactors> factors;
    std::vector<MergeTerm> terms;
    factors.reserve(adapters.size());
    for (const Adapter& adapter : adapters) {
      const AdapterManifest& manifest = adapter.handle->manifest();
      const size_t module = manifest.index.Find({PathOf(target), "", std::nullopt}).value();
      factors.push_back((*adapter.handle)->Factors(module, 0));
      terms.push_back({AsMatrix(factors.back().lora_a), AsMatrix(factors.back().lora_b),
                       adapter.weight * manifest.modules[module].scale});
    }
    std::string merged(static_cast<size_t>(kOut * kIn * FloatBytes(kDType)), '\0');
    EXPECT_THAT(MergeWeight(kernels_, workers_, snapshot.module->stored(), terms, MergeOptions(),
                            {kDType, kOut, kIn, reinterpret_cast<std::byte*>(merged.data())},
                            Cancellation())
                    .status(),
                IsOk());
    return merged;
  }

  TestRandom random_{5};
  const std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(int64_t{1} << 30);
  Kernels kernels_;
  ThreadPool workers_{"compute", 2, PrepareComputeThread};
  const MergeTools tools_{kernels_, workers_, *budget_};
  std::shared_ptr<HostedBase> base_;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_BASE_MODEL_BASE_MERGE_FIXTURE_H_
