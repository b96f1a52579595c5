#include "core/compute/base_product.h"

#include <algorithm>
#include <cstring>

#include "core/base/checked_math.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/dot.h"
#include "core/compute/nf4_rows.h"
#include "core/compute/packed_matrix.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"
#include "core/tensor/transpose.h"

namespace adapterd {
namespace {

// Outputs that one call computes: few enough for their weights to stay in the second cache while
// all rows of the input go by.
constexpr int64_t kBlockOutputs = 64;
constexpr int64_t kBlockBytes = 2 << 20;
// Of the input that a kernel takes at once, and what their number is rounded up to.
constexpr int64_t kPanelRows = 64;
constexpr int64_t kPanelStep = 16;
// Up to here loops of our own take no longer than kernels, which compute kPanelStep rows at least.
// Those of BF16 do so as fast as weights in place come from memory.
constexpr int64_t kFewRows = 4;

// One run of the input on its way to its sums.
struct Product {
  Kernels::Impl& kernels;
  const BaseRun& run;
  MatrixView input;  // rows of the run
  float* sums;
  Nf4Rows nf4;  // of the weight, for which the input is shuffled; unless none fit

  const StoredWeight& weight() const { return run.weight; }
  int64_t in() const { return input.cols; }
  int64_t out() const { return run.weight.out_features(); }
};

// Whether weights are used where they lie when they have this type.
bool IsInPlace(const StoredWeight& weight, DType type) {
  const MatrixView* dense = weight.dense();
  return dense != nullptr && dense->dtype == type && weight.layout == WeightLayout::kOutIn &&
         weight.replaced.empty() &&
         reinterpret_cast<uintptr_t>(dense->data) % FloatBytes(type) == 0;
}

// The type that products multiply in: BF16 where nothing is lost by it.
ComputeType TypeFor(const Product& product) {
  const StoredWeight& weight = product.weight();
  const bool is_narrow =
      weight.nf4() != nullptr || (weight.dense()->dtype == DType::kBF16 && weight.replaced.empty());
  return is_narrow && product.input.dtype == DType::kBF16 && product.kernels.has_fast_bf16()
             ? ComputeType::kBF16
             : ComputeType::kF32;
}

int64_t BlockOutputs(const Product& product) {
  int64_t outputs = kBlockOutputs;
  while (outputs > kPanelStep &&
         outputs * product.in() * static_cast<int64_t>(sizeof(float)) > kBlockBytes) {
    outputs /= 2;
  }
  return outputs;
}

// The weights of `count` outputs in F32: in place, or in the calling thread's scratch.
const float* RowsF32(const StoredWeight& weight, int64_t first, int64_t count) {
  if (IsInPlace(weight, DType::kF32)) {
    return reinterpret_cast<const float*>(weight.dense()->Rows(first, count).data);
  }
  auto* rows =
      Scratch::OfThisThread().Get<float>(Scratch::kWeightF32, count * weight.in_features());
  weight.ReadOutputs(first, count, rows);
  return rows;
}

// Outputs whose weights are best read at once: a row at a time stays in the first cache; what lies
// in columns is read side by side.
int64_t ReadStep(const StoredWeight& weight, int64_t count) {
  return weight.layout == WeightLayout::kOutIn ? 1 : count;
}

// What kernels multiply for `count` outputs; `rest`, unless it is null, is multiplied too.
struct KernelRows {
  const void* rows = nullptr;
  const void* rest = nullptr;
};

KernelRows RowsFor(const Product& product, ComputeType type, int64_t first, int64_t count) {
  const StoredWeight& weight = product.weight();
  if (type == ComputeType::kF32) return {RowsF32(weight, first, count)};
  if (IsInPlace(weight, DType::kBF16)) return {weight.dense()->Rows(first, count).data};
  const int64_t in = weight.in_features();
  auto* upper = Scratch::OfThisThread().Get<std::byte>(Scratch::kWeightBF16, 4 * count * in);
  std::byte* lower = upper + 2 * count * in;
  if (product.nf4) {
    for (int64_t i = 0; i < count; ++i) {
      product.nf4.split(*weight.nf4(), (first + i) * in, in, upper + 2 * i * in,
                        lower + 2 * i * in);
    }
    return {upper, lower};
  }
  const bool is_dense = weight.dense() != nullptr;
  const int64_t step = ReadStep(weight, count);
  for (int64_t i = 0; i < count; i += step) {
    const float* wide = RowsF32(weight, first + i, step);
    if (is_dense) {
      ConvertFromF32(wide, DType::kBF16, upper + 2 * i * in, step * in);
    } else {
      FastestDotLoops().split(wide, step * in, upper + 2 * i * in, lower + 2 * i * in);
    }
  }
  return {upper, is_dense ? nullptr : lower};
}

// The bias of `count` outputs; zeros when there is none.
struct BlockBias {
  BlockBias(const MatrixView& bias, int64_t first, int64_t count) {
    if (bias.data == nullptr) return;
    ConvertToF32(bias.dtype, bias.data + first * FloatBytes(bias.dtype), values, count);
  }

  float values[kBlockOutputs] = {};
};

// By our own loops; `input` is the product's, in F32.
void DotOutputs(const Product& product, const float* input, int64_t first, int64_t count) {
  const BlockBias bias(product.run.bias, first, count);
  const auto dot = FastestDotLoops().dot;
  const int64_t in = product.in();
  const int64_t step = ReadStep(product.weight(), count);
  for (int64_t i = 0; i < count; i += step) {
    const float* rows = product.nf4 ? nullptr : RowsF32(product.weight(), first + i, step);
    for (int64_t j = i; j < i + step; ++j) {
      for (int64_t row = 0; row < product.input.rows; ++row) {
        const float* x = input + row * in;
        const float sum = product.nf4
                              ? product.nf4.dot(*product.weight().nf4(), (first + j) * in, in, x)
                              : dot(rows + (j - i) * in, x, in);
        product.sums[row * product.out() + first + j] = sum + bias.values[j];
      }
    }
  }
}

// By kernels, which multiply the rows of the weight as they lie in memory with the transposed
// input: no weight is ever packed.
absl::Status MultiplyOutputs(const Product& product, const PackedMatrix& input, int64_t first,
                             int64_t count) {
  const MatrixPlan& plan = input.plan();
  const BlockBias bias(product.run.bias, first, count);
  const KernelRows weights = RowsFor(product, plan.type, first, count);
  auto* tile = Scratch::OfThisThread().Get<float>(Scratch::kSums, count * plan.chunk);
  MatmulShape shape = {plan.type, count, plan.k, plan.chunk, plan.panel};
  for (const PackedMatrix::Chunk& chunk : input.chunks()) {
    shape.accumulate = false;
    RETURN_IF_ERROR(product.kernels.Run(shape, weights.rows, chunk.weights, tile));
    if (weights.rest != nullptr) {
      shape.accumulate = true;
      RETURN_IF_ERROR(product.kernels.Run(shape, weights.rest, chunk.weights, tile));
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < plan.chunk; ++j) tile[i * plan.chunk + j] += bias.values[i];
    }
    const int64_t rows = std::min(plan.chunk, product.input.rows - chunk.first_column);
    constexpr int64_t kBytes = sizeof(float);
    Transpose<uint32_t>(
        reinterpret_cast<const std::byte*>(tile), plan.chunk * kBytes, count, rows,
        reinterpret_cast<std::byte*>(product.sums + chunk.first_column * product.out() + first),
        product.out() * kBytes);
  }
  return absl::OkStatus();
}

// Both in the calling thread's scratch, which other threads read until it returns.
const float* InputF32(const Product& product) {
  Scratch& scratch = Scratch::OfThisThread();
  const int64_t elements = product.input.rows * product.in();
  auto* input = scratch.Get<float>(Scratch::kInputF32, elements);
  ConvertToF32(product.input.dtype, product.input.data, input, elements);
  if (!product.nf4) return input;
  auto* shuffled = scratch.Get<float>(Scratch::kInputBF16, elements);
  Shuffle(input, elements, shuffled);
  return shuffled;
}

MatrixView ShuffledBF16(const MatrixView& input) {
  Scratch& scratch = Scratch::OfThisThread();
  const int64_t elements = input.rows * input.cols;
  auto* aligned = scratch.Get<uint16_t>(Scratch::kInputF32, elements);
  std::memcpy(aligned, input.data, input.bytes());
  auto* shuffled = scratch.Get<uint16_t>(Scratch::kInputBF16, elements);
  Shuffle(aligned, elements, shuffled);
  return {input.dtype, input.rows, input.cols, reinterpret_cast<const std::byte*>(shuffled)};
}

// Panels of equal width that waste the least.
absl::StatusOr<PackedMatrix> PackInput(const Product& product) {
  const ComputeType type = TypeFor(product);
  const int64_t panels = CeilDiv(product.input.rows, kPanelRows);
  const int64_t width = RoundUp(CeilDiv(product.input.rows, panels), kPanelStep);
  const MatrixPlan plan = {type, product.in(), panels * width,
                           product.kernels.has_panels(type) ? width : 0, width};
  const bool shuffles = type == ComputeType::kBF16 && product.nf4;
  return PackedMatrix::Transposed(plan, shuffles ? ShuffledBF16(product.input) : product.input);
}

// Whether other threads are worth what waking them up costs.
bool IsWorthSharing(double bytes, double flops) {
  constexpr double kBytes = 10e3;  // a microsecond, from memory
  constexpr double kFlops = 180e3;
  constexpr double kMicroseconds = 200;
  return bytes / kBytes + flops / kFlops > kMicroseconds;
}

absl::Status ForEachBlock(ThreadPool& pool, const Product& product,
                          const Cancellation& cancellation,
                          absl::FunctionRef<absl::Status(int64_t, int64_t)> body) {
  const int64_t outputs = BlockOutputs(product);
  const int64_t blocks = CeilDiv(product.out(), outputs);
  const auto run = [&](int64_t i) {
    return body(i * outputs, std::min(outputs, product.out() - i * outputs));
  };
  const double flops = 2.0 * static_cast<double>(product.input.rows) *
                       static_cast<double>(product.in()) * static_cast<double>(product.out());
  if (IsWorthSharing(static_cast<double>(product.weight().bytes()), flops)) {
    return ParallelFor(pool, blocks, cancellation, run);
  }
  return RunInTurn(blocks, cancellation, run);
}

bool IsFew(const Product& product) {
  const bool is_in_place = TypeFor(product) == ComputeType::kBF16 && !product.weight().nf4();
  return product.input.rows <= (is_in_place ? 0 : kFewRows);
}

absl::Status MultiplyRun(ThreadPool& pool, const Product& product,
                         const Cancellation& cancellation) {
  if (product.input.rows == 0) return absl::OkStatus();
  if (IsFew(product)) {
    const float* input = InputF32(product);
    return ForEachBlock(pool, product, cancellation, [&](int64_t first, int64_t count) {
      DotOutputs(product, input, first, count);
      return absl::OkStatus();
    });
  }
  ASSIGN_OR_RETURN(const PackedMatrix input, PackInput(product));
  return ForEachBlock(pool, product, cancellation, [&](int64_t first, int64_t count) {
    return MultiplyOutputs(product, input, first, count);
  });
}

Nf4Rows Nf4RowsOf(const StoredWeight& weight) {
  const bool has_rows =
      weight.nf4() != nullptr && weight.layout == WeightLayout::kOutIn && weight.replaced.empty();
  return has_rows ? RowsOf(*weight.nf4()) : Nf4Rows();
}

absl::Status LookUpRun(ThreadPool& pool, const BaseRun& run, TokenIds ids, float* sums,
                       const Cancellation& cancellation) {
  constexpr int64_t kIds = 64;
  const int64_t width = run.weight.cols();
  const auto scale = static_cast<float>(run.scale);
  const auto look_up = [&](int64_t block) {
    const int64_t first = block * kIds;
    for (int64_t i = first; i < std::min(first + kIds, run.rows); ++i) {
      float* row = sums + i * width;
      run.weight.ReadRow(ids[i], 0, width, row);
      if (scale == 1) continue;
      for (int64_t j = 0; j < width; ++j) row[j] *= scale;
    }
    return absl::OkStatus();
  };
  const int64_t blocks = CeilDiv(run.rows, kIds);
  constexpr double kElementBytes = 8;  // read and written
  const double elements = static_cast<double>(run.rows) * static_cast<double>(width);
  return IsWorthSharing(kElementBytes * elements, 0)
             ? ParallelFor(pool, blocks, cancellation, look_up)
             : RunInTurn(blocks, cancellation, look_up);
}

}  // namespace

absl::Status MultiplyBase(const Kernels& kernels, ThreadPool& pool, const ProjectionInput& input,
                          std::span<const BaseRun> runs, float* sums,
                          const Cancellation& cancellation) {
  int64_t row = 0;
  for (const BaseRun& run : runs) {
    float* of_run = sums + row * run.weight.out_features();
    if (const auto* ids = std::get_if<TokenIds>(&input)) {
      RETURN_IF_ERROR(LookUpRun(pool, run, ids->subspan(row, run.rows), of_run, cancellation));
    } else {
      const MatrixView rows = std::get<MatrixView>(input).Rows(row, run.rows);
      RETURN_IF_ERROR(MultiplyRun(pool, {kernels.impl(), run, rows, of_run, Nf4RowsOf(run.weight)},
                                  cancellation));
    }
    row += run.rows;
  }
  return absl::OkStatus();
}

}  // namespace adapterd
