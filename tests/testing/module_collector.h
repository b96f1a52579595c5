// Takes the modules of an adapter and keeps them.
#ifndef ADAPTERD_TESTS_TESTING_MODULE_COLLECTOR_H_
#define ADAPTERD_TESTS_TESTING_MODULE_COLLECTOR_H_

#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/adapter/adapter_reader.h"
#include "core/tensor/convert.h"

namespace adapterd {

// Any thread may Take; the rest is for after the reading.
class ModuleCollector : public ModuleSink {
 public:
  absl::Status Take(size_t module, ModuleTensors& tensors) override {
    absl::MutexLock lock(&mutex_);
    if (!modules_.emplace(module, std::move(tensors)).second) {
      throw std::logic_error("a module came twice");
    }
    return absl::OkStatus();
  }

  const ModuleTensors& at(size_t module) const {
    absl::MutexLock lock(&mutex_);
    return modules_.at(module);
  }
  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return modules_.size();
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<size_t, ModuleTensors> modules_ ABSL_GUARDED_BY(mutex_);
};

// The elements of a tensor, widened.
inline std::vector<float> FloatsOf(const Tensor& tensor) {
  const auto count = static_cast<int64_t>(tensor.bytes().size()) / FloatBytes(tensor.dtype());
  std::vector<float> values(count);
  ConvertToF32(tensor.dtype(), tensor.bytes().data(), values.data(), count);
  return values;
}

// `values` rounded to `dtype`.
inline Tensor TensorOf(DType dtype, const Shape& shape, const std::vector<float>& values) {
  AlignedBuffer buffer(*ByteCount(dtype, shape));
  ConvertFromF32(values.data(), dtype, buffer.data(), static_cast<int64_t>(values.size()));
  return Tensor(dtype, shape, std::move(buffer));
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_MODULE_COLLECTOR_H_
