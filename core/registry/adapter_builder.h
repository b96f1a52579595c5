// Turns the modules of an adapter, as they are read, into a LoadedAdapter.
#ifndef ADAPTERD_CORE_REGISTRY_ADAPTER_BUILDER_H_
#define ADAPTERD_CORE_REGISTRY_ADAPTER_BUILDER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/adapter/adapter_reader.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/registry/loaded_adapter.h"

namespace adapterd {

// Rows of a base weight are read in blocks of about this size while norms are computed.
inline constexpr int64_t kBaseBlockBytes = 4 << 20;

// One load's. Take from several threads at once, each module on one; the rest from one thread.
class AdapterBuilder : public ModuleSink {
 public:
  // `reservation` holds LoadedAdapter::BytesFor bytes. `kernels` outlives the result.
  AdapterBuilder(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                 std::shared_ptr<const AdapterManifest> manifest, Reservation reservation);

  // Packs the form that inputs of the factors' own dtype need; the factors are then let go.
  absl::Status Take(size_t module, ModuleTensors& tensors) override;

  // What only the base model tells: its embedding scale, and for DoRA the norms of its weights,
  // which are streamed and not kept, and its biases. After the last Take.
  absl::Status BindBase(const BoundBase& base, ThreadPool& pool, const Cancellation& cancellation);

  // Once, last.
  std::shared_ptr<const LoadedAdapter> Build(std::string revision);

 private:
  absl::StatusOr<DoraVectors> ReadDora(size_t module, const BaseTensors& base,
                                       const BaseBinding& binding, ThreadPool& pool,
                                       const Cancellation& cancellation) const;

  const Kernels& kernels_;
  std::shared_ptr<LoadedAdapter> adapter_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_ADAPTER_BUILDER_H_
