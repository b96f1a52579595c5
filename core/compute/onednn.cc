#include "core/compute/onednn.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <optional>
#include <string_view>

#include "core/base/status_macros.h"
#include "core/tensor/aligned_buffer.h"
#include "fmt/format.h"

#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
extern "C" void omp_set_num_threads(int);  // clang has no omp.h without its own runtime
#endif

namespace adapterd {
namespace {

using DataType = dnnl::memory::data_type;
using FormatTag = dnnl::memory::format_tag;

// A compiled matmul takes about 100 KB. Shapes come from the adapters that clients load, so both
// caches are emptied when they are full. That costs little: oneDNN itself keeps the 1024 used last.
constexpr size_t kMaxMatmuls = 1024;
constexpr size_t kMaxMatmulsPerThread = 1024;

bool Includes(dnnl::cpu_isa isa, dnnl::cpu_isa part) {
  return (static_cast<unsigned>(isa) & static_cast<unsigned>(part)) == static_cast<unsigned>(part);
}

// AVX512_BF16's dot product does twice the FP32 rate on AMD and half of it on Intel, where only AMX
// makes BF16 pay.
bool HasFastBf16(dnnl::cpu_isa isa) {
  if (Includes(isa, dnnl::cpu_isa::avx512_core_amx)) return true;
#if defined(__x86_64__)
  return Includes(isa, dnnl::cpu_isa::avx512_core_bf16) && __builtin_cpu_is("amd") != 0;
#else
  return false;
#endif
}

DataType TypeOf(ComputeType type) {
  return type == ComputeType::kBF16 ? DataType::bf16 : DataType::f32;
}

DataType DestinationType(const MatmulShape& shape) {
  return shape.narrow ? DataType::bf16 : DataType::f32;
}

FormatTag PanelTag(ComputeType type, int64_t panel) {
  const bool bf16 = type == ComputeType::kBF16;
  switch (panel) {
    case 16:
      return bf16 ? FormatTag::BA16a16b2a : FormatTag::BA16a16b;
    case 32:
      return bf16 ? FormatTag::BA16a32b2a : FormatTag::BA16a32b;
    case 48:
      return bf16 ? FormatTag::BA16a48b2a : FormatTag::BA16a48b;
    default:
      return bf16 ? FormatTag::BA16a64b2a : FormatTag::BA16a64b;
  }
}

dnnl::memory::desc RowMajor(DataType type, int64_t rows, int64_t cols) {
  return {dnnl::memory::dims{rows, cols}, type, FormatTag::ab};
}

dnnl::memory::desc WeightsDesc(ComputeType type, int64_t k, int64_t n, int64_t panel) {
  if (panel == 0) return RowMajor(TypeOf(type), k, n);
  return {dnnl::memory::dims{k, n}, TypeOf(type), PanelTag(type, panel)};
}

dnnl::matmul::primitive_desc PrimitiveDesc(const dnnl::engine& engine, const MatmulShape& shape) {
  dnnl::primitive_attr attributes;
  // The library's own scratchpad would be shared by all threads that run the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (shape.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const auto source = RowMajor(TypeOf(shape.type), shape.rows, shape.k);
  const auto weights = WeightsDesc(shape.type, shape.k, shape.n, shape.panel);
  const auto destination = RowMajor(DestinationType(shape), shape.rows, shape.n);
#if DNNL_VERSION_MAJOR >= 3
  return {engine, source, weights, destination, attributes, /*allow_empty=*/true};
#else
  return {dnnl::matmul::desc(source, weights, destination), attributes, engine,
          /*allow_empty=*/true};
#endif
}

std::string_view Implementation(const dnnl::matmul::primitive_desc& description) {
  return description.impl_info_str();
}

// By C calls, which 2.x and 3.x have alike: oneDNN shares descriptions between threads under locks
// that ThreadSanitizer does not see, and so only oneDNN may look into them.
int64_t ScratchpadBytes(const dnnl::matmul::primitive_desc& description) {
  return static_cast<int64_t>(dnnl_memory_desc_get_size(
      dnnl_primitive_desc_query_md(description.get(), dnnl_query_scratchpad_md, 0)));
}

// oneDNN accepts any layout, but only its "brg" kernels are fast on panels.
bool PanelsAreFast(const dnnl::engine& engine, ComputeType type) {
  constexpr int64_t kRows = 16;
  constexpr int64_t kK = 64;
  for (const int64_t panel : {16, 32, 48, 64}) {
    const MatmulShape shape = {type, kRows, kK, panel, panel, /*accumulate=*/true};
    const auto description = PrimitiveDesc(engine, shape);
    if (!description || !Implementation(description).starts_with("brg")) return false;
  }
  return true;
}

absl::Status FromError(const dnnl::error& error, std::string_view what) {
  return absl::InternalError(fmt::format("oneDNN could not {}: {} (status {})", what, error.message,
                                         static_cast<int>(error.status)));
}

std::string ToString(const MatmulShape& s) {
  return fmt::format("{} [{}, {}] x [{}, {}]", s.type == ComputeType::kBF16 ? "BF16" : "F32",
                     s.rows, s.k, s.k, s.n);
}

absl::StatusOr<std::shared_ptr<const Matmul>> Compile(const dnnl::engine& engine,
                                                      const MatmulShape& shape) {
  PrepareComputeThread();  // the number of threads is compiled in
  try {
    const auto description = PrimitiveDesc(engine, shape);
    if (!description) {
      return absl::InternalError(fmt::format("oneDNN has no matmul for {}", ToString(shape)));
    }
    return std::make_shared<const Matmul>(Matmul{dnnl::matmul(description),
                                                 ScratchpadBytes(description),
                                                 Implementation(description).starts_with("ref")});
  } catch (const dnnl::error& error) {
    return FromError(error, fmt::format("compile {}", ToString(shape)));
  }
}

std::atomic<uint64_t> next_id{1};

}  // namespace

void PrepareComputeThread() {
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
  omp_set_num_threads(1);
#endif
}

// A thread's own view of the matmuls it has run: no lock, and oneDNN's argument objects, which cost
// a quarter of a microsecond each, are made once.
struct Kernels::Impl::ThreadCache {
  struct Bound {
    std::shared_ptr<const Matmul> matmul;
    dnnl::memory source;
    dnnl::memory weights;
    dnnl::memory destination;
    dnnl::memory scratchpad;
  };

  // The calling thread's cache, emptied when another Impl was the last to use it.
  static ThreadCache& For(const Impl& impl) {
    thread_local std::optional<ThreadCache> cache;
    if (!cache.has_value() || cache->owner != impl.id_) {
      PrepareComputeThread();
      cache.reset();
      cache.emplace(ThreadCache{impl.id_, impl.engine_, dnnl::stream(impl.engine_), {}, {}});
    }
    return *cache;
  }

  auto Bind(const MatmulShape& shape, std::shared_ptr<const Matmul> matmul) {
    if (bound.size() >= kMaxMatmulsPerThread) bound.clear();
    const auto source = RowMajor(TypeOf(shape.type), shape.rows, shape.k);
    const auto weights = WeightsDesc(shape.type, shape.k, shape.n, shape.panel);
    const auto destination = RowMajor(DestinationType(shape), shape.rows, shape.n);
    const auto scratchpad_bytes = RowMajor(DataType::u8, 1, matmul->scratchpad_bytes);
    Bound made = {std::move(matmul), dnnl::memory(source, engine, nullptr),
                  dnnl::memory(weights, engine, nullptr),
                  dnnl::memory(destination, engine, nullptr),
                  dnnl::memory(scratchpad_bytes, engine, nullptr)};
    return bound.insert_or_assign(shape, std::move(made)).first;
  }

  void* Scratchpad(int64_t bytes) {
    if (static_cast<int64_t>(scratchpad.size()) < bytes) scratchpad = AlignedBuffer(bytes);
    return scratchpad.data();
  }

  uint64_t owner;
  dnnl::engine engine;  // declared first: everything below belongs to it
  dnnl::stream stream;
  absl::flat_hash_map<MatmulShape, Bound> bound;
  AlignedBuffer scratchpad;
};

Kernels::Impl::Impl(KernelChoice choice) : id_(next_id++), engine_(dnnl::engine::kind::cpu, 0) {
  PrepareComputeThread();
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  has_amx_ = Includes(isa, dnnl::cpu_isa::avx512_core_amx);
  has_fast_bf16_ = HasFastBf16(isa);
  has_f32_panels_ = PanelsAreFast(engine_, ComputeType::kF32);
  has_bf16_panels_ = has_fast_bf16_ && PanelsAreFast(engine_, ComputeType::kBF16);
#if defined(__x86_64__)
  if (choice == KernelChoice::kOneDnn) return;
  if (Includes(isa, dnnl::cpu_isa::avx512_core)) small_f32_ = {MultiplyRowsAvx512, 1, 16, 64};
  if (has_amx_ && has_bf16_panels_) small_bf16_ = {MultiplyRowsAmx, 16, 0, 64};
#endif
}

std::string Kernels::Impl::isa() const {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  switch (isa) {
    case dnnl::cpu_isa::sse41:
      return "SSE41";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2_VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX512_CORE";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX512_CORE_VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX512_CORE_BF16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AVX512_CORE_AMX";
    default:
      return fmt::format("ISA_{:#x}", static_cast<unsigned>(isa));
  }
}

absl::StatusOr<std::shared_ptr<const Matmul>> Kernels::Impl::Find(const MatmulShape& shape) {
  {
    absl::ReaderMutexLock lock(&mutex_);
    if (const auto found = matmuls_.find(shape); found != matmuls_.end()) return found->second;
  }
  // Outside the lock; two threads may compile the same shape once, and one result is kept.
  ASSIGN_OR_RETURN(std::shared_ptr<const Matmul> made, Compile(engine_, shape));
  absl::MutexLock lock(&mutex_);
  if (matmuls_.size() >= kMaxMatmuls) matmuls_.clear();
  return matmuls_.emplace(shape, std::move(made)).first->second;
}

absl::Status Kernels::Impl::Prepare(std::span<const MatmulShape> shapes) {
  {
    // Nearly always all of them are there: one lock, because many threads pack at once.
    absl::ReaderMutexLock lock(&mutex_);
    const auto is_known = [this](const MatmulShape& shape) {
      mutex_.AssertReaderHeld();
      return matmuls_.contains(shape);
    };
    if (std::ranges::all_of(shapes, is_known)) return absl::OkStatus();
  }
  for (const MatmulShape& shape : shapes) RETURN_IF_ERROR(Find(shape).status());
  return absl::OkStatus();
}

std::vector<std::string> Kernels::Impl::SlowMatmuls() {
  std::vector<std::string> slow;
  absl::ReaderMutexLock lock(&mutex_);
  for (const auto& [shape, matmul] : matmuls_) {
    if (matmul->is_slow) slow.push_back(ToString(shape));
  }
  return slow;
}

absl::Status Kernels::Impl::Run(const MatmulShape& shape, const void* source,
                                const std::byte* weights, void* destination) {
  try {
    ThreadCache& cache = ThreadCache::For(*this);
    auto found = cache.bound.find(shape);
    if (found == cache.bound.end()) {
      ASSIGN_OR_RETURN(std::shared_ptr<const Matmul> matmul, Find(shape));
      found = cache.Bind(shape, std::move(matmul));
    }
    const ThreadCache::Bound& bound = found->second;
    bound.source.set_data_handle(const_cast<void*>(source));
    bound.weights.set_data_handle(const_cast<std::byte*>(weights));
    bound.destination.set_data_handle(destination);
    bound.scratchpad.set_data_handle(cache.Scratchpad(bound.matmul->scratchpad_bytes));
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, bound.source.get()},
                                         {DNNL_ARG_WEIGHTS, bound.weights.get()},
                                         {DNNL_ARG_DST, bound.destination.get()},
                                         {DNNL_ARG_SCRATCHPAD, bound.scratchpad.get()}};
    // The C call: the C++ one builds a hash map of reference-counted arguments each time.
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(bound.matmul->primitive.get(), cache.stream.get(), 4, arguments),
        "could not execute a primitive");
    return absl::OkStatus();
  } catch (const dnnl::error& error) {
    return FromError(error, fmt::format("run {}", ToString(shape)));
  }
}

}  // namespace adapterd
