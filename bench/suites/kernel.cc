// ApplyProjection in process.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>

#include "bench/copy.h"
#include "bench/data.h"
#include "bench/naive.h"
#include "bench/suite.h"
#include "bench/verify.h"
#include "core/base/status_macros.h"
#include "core/compute/projection.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int64_t kMaxNaiveRows = 64;  // beyond, the loops take longer than they teach
constexpr absl::Duration kTime = absl::Seconds(1);
constexpr absl::Duration kQuickTime = absl::Milliseconds(100);

// One shape, packed as a server holds it.
class Case {
 public:
  static absl::StatusOr<std::unique_ptr<Case>> Create(SuiteContext& context, DType dtype,
                                                      int64_t rows, int64_t rank) {
    std::unique_ptr<Case> result(new Case(context, dtype, rows, rank));
    const Factors& factors = result->factors_;
    const ComputeType type = result->kernels_.ComputeTypeFor(dtype, dtype, dtype);
    ASSIGN_OR_RETURN(result->pair_,
                     PackedPair::Pack(result->kernels_, factors.a_view(), factors.b_view(), type));
    result->BuildTarget();
    return result;
  }

  absl::Status Run() {
    RETURN_IF_ERROR(Ours());
    RETURN_IF_ERROR(VerifyProjection(AsMatrix(input_), factors_, output_.read()));
    if (input_.shape()[0] <= kMaxNaiveRows) RETURN_IF_ERROR(AgainstNaive());
    return AgainstCopy();
  }

 private:
  Case(SuiteContext& context, DType dtype, int64_t rows, int64_t rank)
      : context_(context),
        pool_("bench", context.threads, PrepareComputeThread),
        factors_(dtype, kFeatures, rank),
        input_(RandomMatrix(dtype, rows, kFeatures, 1, 3)),
        output_(dtype, rows, kFeatures),
        copy_bytes_(
            (2 * AsMatrix(input_).bytes() + factors_.a_view().bytes() + factors_.b_view().bytes()) /
            2),
        copy_source_(DType::kBF16, 1, copy_bytes_ / 2),
        copy_destination_(DType::kBF16, 1, copy_bytes_ / 2) {}

  void BuildTarget() {
    target_.segments = {{input_.shape()[0], {{pair_.get(), factors_.scale}}}};
    target_.output = output_.view();
  }

  absl::Status Ours() {
    return ApplyProjection(kernels_, pool_, AsMatrix(input_), {&target_, 1}, cancellation_);
  }

  absl::Status Compare(std::string reference, absl::FunctionRef<absl::Status()> call) {
    const MeasureOptions options{context_.quick ? kQuickTime : kTime};
    ASSIGN_OR_RETURN(const Comparison comparison, MeasureAlternating(
                                                      options, [this] { return Ours(); }, call));
    context_.report.Add(
        {"kernel",
         "ApplyProjection",
         fmt::format("m={} d={} r={}", input_.shape()[0], kFeatures, factors_.a_view().rows),
         LowerName(input_.dtype()),
         std::move(reference),
         comparison,
         {}});
    return absl::OkStatus();
  }

  absl::Status AgainstNaive() {
    OutputMatrix output(input_.dtype(), input_.shape()[0], kFeatures);
    const auto naive = [&] {
      NaiveProjection(AsMatrix(input_), factors_.a_view(), factors_.b_view(),
                      static_cast<float>(factors_.scale), output.view());
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(naive());
    RETURN_IF_ERROR(VerifyProjection(AsMatrix(input_), factors_, output.read()));
    return Compare("naive loops, 1 thread", naive);
  }

  // Half of the bytes are read and half written, so that it moves as many as the projection must.
  absl::Status AgainstCopy() {
    const int threads = CopyThreads(pool_, copy_bytes_);
    return Compare(fmt::format("memcpy, same bytes, {} thread{}", threads, threads > 1 ? "s" : ""),
                   [this] {
                     return ParallelCopy(pool_, copy_source_.read().data,
                                         copy_destination_.view().data, copy_bytes_);
                   });
  }

  SuiteContext& context_;
  Kernels kernels_;
  ThreadPool pool_;
  Factors factors_;
  Tensor input_;
  OutputMatrix output_;
  const int64_t copy_bytes_;
  OutputMatrix copy_source_;
  OutputMatrix copy_destination_;
  std::unique_ptr<const PackedPair> pair_;
  ProjectionTarget target_;
  Cancellation cancellation_;
};

}  // namespace

absl::Status RunKernelSuite(SuiteContext& context) {
  context.report.Begin("kernel", fmt::format("{} threads, adapter hot in the caches; memcpy moves "
                                             "as many bytes as input, A, B and output have",
                                             context.threads));
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rank : {16, 64}) {
      for (const int64_t rows : {1, 16, 64, 512}) {
        ASSIGN_OR_RETURN(const auto each, Case::Create(context, dtype, rows, rank));
        RETURN_IF_ERROR(each->Run());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
