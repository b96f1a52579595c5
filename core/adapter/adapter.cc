#include "core/adapter/adapter.h"

#include <set>

namespace adapterd {

int64_t ModuleInfo::parameter_count() const {
  int64_t count = pairs() * rank * (columns() + out_features);
  for (const bool has_vector : {has_lora_bias, has_magnitude, replaces_bias}) {
    if (has_vector) count += out_features;
  }
  if (weight_shape.empty()) return count;
  int64_t weight = 1;
  for (const int64_t dim : weight_shape) weight *= dim;  // lies in a file: no overflow
  return count + weight;
}

int64_t AdapterManifest::parameter_count() const {
  int64_t sum = 0;
  for (const ModuleInfo& module : modules) sum += module.parameter_count();
  return sum;
}

int64_t AdapterManifest::original_parameter_count() const {
  int64_t sum = 0;
  for (const ModuleInfo& module : modules) {
    // A product of what a file claims may pass 2^63 although the factors are small.
    int64_t product = module.pairs();
    if (__builtin_mul_overflow(product, module.columns(), &product) ||
        __builtin_mul_overflow(product, module.out_features, &product) ||
        __builtin_add_overflow(sum, product, &sum)) {
      return INT64_MAX;
    }
  }
  return sum;
}

std::vector<int32_t> AdapterManifest::ranks() const {
  std::set<int32_t> distinct;
  for (const ModuleInfo& module : modules) {
    if (module.pairs() > 0) distinct.insert(static_cast<int32_t>(module.rank));
  }
  return {distinct.begin(), distinct.end()};
}

std::vector<std::string> AdapterManifest::target_modules() const {
  std::set<std::string, std::less<>> distinct;
  for (const ModuleInfo& module : modules) distinct.emplace(TargetOf(module.path));
  return {distinct.begin(), distinct.end()};
}

int32_t AdapterManifest::layer_count() const {
  std::set<int32_t> distinct;
  for (const ModuleInfo& module : modules) {
    if (const auto layer = LayerOf(module.path)) distinct.insert(*layer);
  }
  return static_cast<int32_t>(distinct.size());
}

}  // namespace adapterd
