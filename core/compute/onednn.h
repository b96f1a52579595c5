// The border to oneDNN: matmuls looked up by shape. Only this file and its source include oneDNN;
// its exceptions end here. Builds against 2.6 and 3.x.
#ifndef ADAPTERD_CORE_COMPUTE_ONEDNN_H_
#define ADAPTERD_CORE_COMPUTE_ONEDNN_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/compute/kernels.h"
#include "core/compute/small_rows.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace adapterd {

constexpr int64_t ElementBytes(ComputeType type) { return type == ComputeType::kBF16 ? 2 : 4; }

// destination [rows, n] = source [rows, k] x weights [k, n], with F32 sums. All three are dense:
// for anything with gaps oneDNN has only loops that are hundreds of times slower.
struct MatmulShape {
  ComputeType type = ComputeType::kF32;  // of source and weights
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  // How the weights lie in memory. 0: row-major. 16, 32, 48 or 64: panels of that many columns, one
  // after the other; within a panel row after row, BF16 in pairs of rows interleaved by element. k
  // and n are then rounded up with zeros, to PanelRows(type) and to `panel`. oneDNN calls this
  // BA16a64b, and BA16a64b2a for BF16.
  int64_t panel = 0;
  bool accumulate = false;  // adds to what the destination holds
  bool narrow = false;      // the destination is BF16, rounded once, and not F32

  bool operator==(const MatmulShape&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const MatmulShape& s) {
    return H::combine(std::move(h), s.type, s.rows, s.k, s.n, s.panel, s.accumulate, s.narrow);
  }
};

constexpr int64_t PanelRows(ComputeType type) { return type == ComputeType::kBF16 ? 32 : 16; }

// One compiled matmul. Immutable; any number of threads may execute it at once, because its
// scratchpad belongs to the caller.
struct Matmul {
  dnnl::matmul primitive;
  int64_t scratchpad_bytes = 0;
  bool is_slow = false;  // oneDNN's reference loops
};

// Threads: all methods may be called from any thread.
class Kernels::Impl {
 public:
  explicit Impl(KernelChoice choice);

  std::string isa() const;
  bool has_amx() const { return has_amx_; }
  bool has_fast_bf16() const { return has_fast_bf16_; }
  // True when oneDNN has kernels for panels of all widths; otherwise only row-major is fast.
  bool has_panels(ComputeType type) const {
    return type == ComputeType::kBF16 ? has_bf16_panels_ : has_f32_panels_;
  }

  // Our own loops of the type, for products that have no more rows and no higher rank than they
  // take.
  const SmallRows& small_rows(ComputeType type) const {
    return type == ComputeType::kBF16 ? small_bf16_ : small_f32_;
  }

  // Compiles the matmuls unless that has been done: so that no request has to.
  absl::Status Prepare(std::span<const MatmulShape> shapes) ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<std::string> SlowMatmuls() ABSL_LOCKS_EXCLUDED(mutex_);

  // Source and destination need the alignment of their elements; weights, of k x n elements laid
  // out for the panel, that of a cache line.
  absl::Status Run(const MatmulShape& shape, const void* source, const std::byte* weights,
                   void* destination) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct ThreadCache;

  absl::StatusOr<std::shared_ptr<const Matmul>> Find(const MatmulShape& shape)
      ABSL_LOCKS_EXCLUDED(mutex_);

  const uint64_t id_;  // never used twice, unlike `this`
  const dnnl::engine engine_;
  bool has_amx_ = false;
  bool has_fast_bf16_ = false;
  bool has_f32_panels_ = false;
  bool has_bf16_panels_ = false;
  SmallRows small_f32_;
  SmallRows small_bf16_;

  absl::Mutex mutex_;
  absl::flat_hash_map<MatmulShape, std::shared_ptr<const Matmul>> matmuls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_ONEDNN_H_
