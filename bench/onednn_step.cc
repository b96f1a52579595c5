#include "bench/onednn_step.h"

#include <fmt/format.h>

#include <cstring>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "core/compute/kernels.h"
#include "core/tensor/aligned_buffer.h"
#include "core/tensor/convert.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace adapterd::bench {
namespace {

using DataType = dnnl::memory::data_type;
using FormatTag = dnnl::memory::format_tag;

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

DataType TypeOf(DType type) { return type == DType::kBF16 ? DataType::bf16 : DataType::f32; }

FormatTag TagOf(const StepShape& shape) {
  const bool pairs = shape.type == DType::kBF16;
  switch (shape.layout) {
    case StepLayout::kColumns:
      return FormatTag::ba;
    case StepLayout::kAny:
      return FormatTag::any;
    case StepLayout::kPanels16:
      return pairs ? FormatTag::BA16a16b2a : FormatTag::BA16a16b;
    case StepLayout::kPanels32:
      return pairs ? FormatTag::BA16a32b2a : FormatTag::BA16a32b;
    case StepLayout::kPanels48:
      return pairs ? FormatTag::BA16a48b2a : FormatTag::BA16a48b;
    case StepLayout::kPanels64:
      return pairs ? FormatTag::BA16a64b2a : FormatTag::BA16a64b;
    default:
      return FormatTag::ab;
  }
}

bool IsSgemm(const StepShape& shape) {
  return shape.layout == StepLayout::kSgemm || shape.layout == StepLayout::kSgemmTransposed;
}

dnnl::memory::desc Desc(DType type, int64_t rows, int64_t cols, FormatTag tag) {
  return {dnnl::memory::dims{rows, cols}, TypeOf(type), tag};
}

dnnl::matmul::primitive_desc PrimitiveDesc(const StepShape& shape) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (shape.scale != 1) {
    dnnl::post_ops scaled;
#if DNNL_VERSION_MAJOR >= 3
    scaled.append_eltwise(dnnl::algorithm::eltwise_linear, shape.scale, 0);
#else
    scaled.append_eltwise(1, dnnl::algorithm::eltwise_linear, shape.scale, 0);
#endif
    attributes.set_post_ops(scaled);
  }
  const auto source = Desc(shape.type, shape.rows, shape.k, FormatTag::ab);
  const auto weights = Desc(shape.type, shape.k, shape.n, TagOf(shape));
  const auto destination = Desc(shape.output, shape.rows, shape.n, FormatTag::ab);
#if DNNL_VERSION_MAJOR >= 3
  return {Engine(), source, weights, destination, attributes, /*allow_empty=*/true};
#else
  return {dnnl::matmul::desc(source, weights, destination), attributes, Engine(),
          /*allow_empty=*/true};
#endif
}

// [n, k] in the step's type, with zeros around.
AlignedBuffer Padded(const StepShape& shape, const MatrixView& transposed) {
  const int64_t row_bytes = shape.k * FloatBytes(shape.type);
  AlignedBuffer padded(shape.n * row_bytes);
  std::memset(padded.data(), 0, padded.size());
  for (int64_t row = 0; row < transposed.rows; ++row) {
    const std::byte* from = transposed.data + row * transposed.row_bytes();
    std::byte* to = padded.data() + row * row_bytes;
    if (transposed.dtype == shape.type) {
      std::memcpy(to, from, transposed.row_bytes());
    } else {
      ConvertToF32(transposed.dtype, from, reinterpret_cast<float*>(to), transposed.cols);
    }
  }
  return padded;
}

void Reorder(dnnl::memory& from, dnnl::memory& to) {
  dnnl::stream stream(Engine());
  dnnl::reorder(from, to).execute(stream, from, to);
  stream.wait();
}

}  // namespace

std::span<const StepLayout> AllStepLayouts() {
  static constexpr StepLayout kAll[] = {
      StepLayout::kRows,     StepLayout::kColumns,  StepLayout::kAny,
      StepLayout::kPanels16, StepLayout::kPanels32, StepLayout::kPanels48,
      StepLayout::kPanels64, StepLayout::kSgemm,    StepLayout::kSgemmTransposed};
  return kAll;
}

const char* StepLayoutName(StepLayout layout) {
  static constexpr const char* kNames[] = {"ab",  "ba",  "any",   "16b",   "32b",
                                           "48b", "64b", "sgemm", "sgemmT"};
  return kNames[static_cast<int>(layout)];
}

struct OneDnnStep::Compiled {
  // Weights as the descriptor wants them.
  void Fill(const dnnl::memory::desc& wanted, const MatrixView& transposed) {
    AlignedBuffer padded = Padded(shape, transposed);
    dnnl::memory from(Desc(shape.type, shape.k, shape.n, FormatTag::ba), Engine(), padded.data());
    bytes = AlignedBuffer(wanted.get_size());
    weights = dnnl::memory(wanted, Engine(), bytes.data());
    Reorder(from, weights);
  }

  StepShape shape;
  AlignedBuffer bytes;
  dnnl::memory weights;
  dnnl::matmul primitive;  // null for sgemm
  int64_t scratchpad_bytes = 0;
};

// What the primitive is executed with.
struct OneDnnStep::Bound {
  explicit Bound(const Compiled& compiled)
      : stream(Engine()),
        scratchpad_bytes(compiled.scratchpad_bytes),
        source(Desc(compiled.shape.type, compiled.shape.rows, compiled.shape.k, FormatTag::ab),
               Engine(), nullptr),
        destination(
            Desc(compiled.shape.output, compiled.shape.rows, compiled.shape.n, FormatTag::ab),
            Engine(), nullptr),
        scratchpad({dnnl::memory::dims{compiled.scratchpad_bytes}, DataType::u8, FormatTag::a},
                   Engine(), scratchpad_bytes.data()) {}

  dnnl::stream stream;
  AlignedBuffer scratchpad_bytes;
  dnnl::memory source;
  dnnl::memory destination;
  dnnl::memory scratchpad;
};

absl::StatusOr<std::unique_ptr<OneDnnStep>> OneDnnStep::Create(const StepShape& shape,
                                                               const MatrixView& transposed) {
  PrepareComputeThread();  // the number of threads is compiled in
  try {
    auto compiled = std::make_shared<Compiled>();
    compiled->shape = shape;
    if (IsSgemm(shape)) {
      if (shape.type != DType::kF32 || shape.output != DType::kF32) {
        return absl::UnimplementedError("sgemm is for F32");
      }
      const bool is_transposed = shape.layout == StepLayout::kSgemmTransposed;
      compiled->Fill(
          Desc(shape.type, shape.k, shape.n, is_transposed ? FormatTag::ba : FormatTag::ab),
          transposed);
    } else {
      const auto description = PrimitiveDesc(shape);
      if (!description || std::string_view(description.impl_info_str()).starts_with("ref")) {
        return absl::UnimplementedError("oneDNN has no kernel for this");
      }
      compiled->Fill(description.weights_desc(), transposed);
      compiled->scratchpad_bytes = static_cast<int64_t>(description.scratchpad_desc().get_size());
      compiled->primitive = dnnl::matmul(description);
    }
    return std::unique_ptr<OneDnnStep>(new OneDnnStep(std::move(compiled)));
  } catch (const dnnl::error& error) {
    return absl::UnimplementedError(fmt::format("oneDNN: {}", error.message));
  }
}

OneDnnStep::OneDnnStep(std::shared_ptr<const Compiled> compiled)
    : compiled_(std::move(compiled)), bound_(std::make_unique<Bound>(*compiled_)) {}

OneDnnStep::~OneDnnStep() = default;

std::unique_ptr<OneDnnStep> OneDnnStep::Clone() const {
  return std::unique_ptr<OneDnnStep>(new OneDnnStep(compiled_));
}

void OneDnnStep::Run(const std::byte* source, std::byte* destination) {
  const StepShape& shape = compiled_->shape;
  if (IsSgemm(shape)) {
    const bool is_transposed = shape.layout == StepLayout::kSgemmTransposed;
    dnnl_sgemm('N', is_transposed ? 'T' : 'N', shape.rows, shape.n, shape.k, shape.scale,
               reinterpret_cast<const float*>(source), shape.k,
               reinterpret_cast<const float*>(compiled_->bytes.data()),
               is_transposed ? shape.k : shape.n, 0, reinterpret_cast<float*>(destination),
               shape.n);
    return;
  }
  bound_->source.set_data_handle(const_cast<std::byte*>(source));
  bound_->destination.set_data_handle(destination);
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, bound_->source.get()},
                                       {DNNL_ARG_WEIGHTS, compiled_->weights.get()},
                                       {DNNL_ARG_DST, bound_->destination.get()},
                                       {DNNL_ARG_SCRATCHPAD, bound_->scratchpad.get()}};
  // The C call: the C++ one builds a hash map of its arguments each time.
  dnnl_primitive_execute(compiled_->primitive.get(), bound_->stream.get(), 4, arguments);
}

}  // namespace adapterd::bench
