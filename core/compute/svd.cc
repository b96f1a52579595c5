#include "core/compute/svd.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using Eigen::VectorXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMajor>;

// Steps between two restarts, and vectors in a block beyond those that are wanted.
constexpr int kSteps = 6;
constexpr int64_t kSpareVectors = 8;
// Far beyond what any delta needs: 8 cycles are usual.
constexpr int kMaxCycles = 300;
// Passes of orthogonalisation, and the cosine that is small enough: some roundings of F32.
constexpr int kMaxPasses = 8;
constexpr float kOrthogonal = 1e-6F;
// Rows of D that a thread multiplies at once, which stay in its cache meanwhile.
constexpr int64_t kRowsAtOnce = 32;
// D^T W has a sum for each part of the rows.
constexpr int64_t kParts = 8;

// U [rows, k], S [k], V [cols, k]
struct Triplets {
  MatrixXf u;
  VectorXd values;
  MatrixXf v;
};

absl::Status NotFinite() {
  return Error(Reason::kNonFiniteResult, "a delta does not fit into F32");
}

// Divides by the largest magnitude, so that no square over- or underflows. Returns it.
double Normalize(MatrixXf& matrix) {
  const float largest = matrix.cwiseAbs().maxCoeff();
  if (largest == 0) return 1;
  matrix /= largest;
  return largest;
}

MatrixXd UpperPart(const Eigen::HouseholderQR<Eigen::Ref<MatrixXf>>& qr, int64_t side) {
  MatrixXf upper = qr.matrixQR().topRows(side).triangularView<Eigen::Upper>();
  return upper.cast<double>();
}

MatrixXf Expand(const Eigen::HouseholderQR<Eigen::Ref<MatrixXf>>& qr, const MatrixXd& small) {
  MatrixXf result = MatrixXf::Zero(qr.rows(), small.cols());
  result.topRows(small.rows()) = small.cast<float>();
  result.applyOnTheLeft(qr.householderQ());
  return result;
}

// Of left right^T, whose columns go together. Overwrites both.
absl::StatusOr<Triplets> SvdOfProduct(MatrixXf& left, MatrixXf& right, int64_t rank) {
  if (!left.allFinite() || !right.allFinite()) return NotFinite();
  const int64_t left_side = std::min(left.rows(), left.cols());
  const int64_t right_side = std::min(right.rows(), right.cols());
  const double size = Normalize(left) * Normalize(right);
  const Eigen::HouseholderQR<Eigen::Ref<MatrixXf>> left_qr(left);
  const Eigen::HouseholderQR<Eigen::Ref<MatrixXf>> right_qr(right);
  const MatrixXd core = UpperPart(left_qr, left_side) * UpperPart(right_qr, right_side).transpose();
  const Eigen::BDCSVD<MatrixXd> svd(core, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const int64_t kept = std::min({rank, left_side, right_side});
  return Triplets{Expand(left_qr, svd.matrixU().leftCols(kept)),
                  size * svd.singularValues().head(kept),
                  Expand(right_qr, svd.matrixV().leftCols(kept))};
}

TruncatedSvd ToFactors(Triplets triplets) {
  const int64_t rows = triplets.u.rows();
  const int64_t cols = triplets.v.rows();
  const int64_t rank = triplets.values.size();
  AlignedBuffer a(rank * cols * sizeof(float));
  AlignedBuffer b(rank * rows * sizeof(float));
  for (int64_t i = 0; i < rank; ++i) {
    Eigen::Index largest = 0;
    triplets.u.col(i).cwiseAbs().maxCoeff(&largest);
    const float sign = triplets.u(largest, i) < 0 ? -1.0F : 1.0F;
    triplets.u.col(i) *= sign * static_cast<float>(triplets.values[i]);
    triplets.v.col(i) *= sign;
  }
  Eigen::Map<MatrixXf>(reinterpret_cast<float*>(a.data()), cols, rank) = triplets.v;
  Eigen::Map<RowMajor>(reinterpret_cast<float*>(b.data()), rows, rank) = triplets.u;
  return {Tensor(DType::kF32, {rank, cols}, std::move(a)),
          Tensor(DType::kF32, {rows, rank}, std::move(b)),
          {triplets.values.begin(), triplets.values.end()}};
}

// A matrix that is only ever applied to blocks of vectors, on several threads.
class Operator {
 public:
  Operator(ThreadPool& pool, Rows matrix, const Cancellation& cancellation)
      : pool_(pool), matrix_(matrix), cancellation_(cancellation) {}

  int64_t rows() const { return matrix_.rows(); }
  int64_t cols() const { return matrix_.cols(); }

  // D x
  absl::StatusOr<MatrixXf> Apply(const MatrixXf& x) const {
    MatrixXf result(rows(), x.cols());
    RETURN_IF_ERROR(
        ParallelFor(pool_, CeilDiv(rows(), kRowsAtOnce), cancellation_, [&](int64_t block) {
          const int64_t first = block * kRowsAtOnce;
          const int64_t count = std::min(kRowsAtOnce, rows() - first);
          result.middleRows(first, count).noalias() = matrix_.middleRows(first, count) * x;
          return absl::OkStatus();
        }));
    return result;
  }

  // D^T x
  absl::StatusOr<MatrixXf> ApplyTransposed(const MatrixXf& x) const {
    const int64_t part_rows = CeilDiv(rows(), kParts);
    std::vector<MatrixXf> sums(CeilDiv(rows(), part_rows));
    RETURN_IF_ERROR(
        ParallelFor(pool_, static_cast<int64_t>(sums.size()), cancellation_, [&](int64_t part) {
          const int64_t first = part * part_rows;
          const int64_t count = std::min(part_rows, rows() - first);
          sums[part].noalias() =
              matrix_.middleRows(first, count).transpose() * x.middleRows(first, count);
          return absl::OkStatus();
        }));
    for (size_t part = 1; part < sums.size(); ++part) sums[0] += sums[part];
    return std::move(sums[0]);
  }

 private:
  ThreadPool& pool_;
  const Rows matrix_;
  const Cancellation& cancellation_;
};

// Orthonormal columns that span those of `block`, orthogonal to the first `known` of `basis`. Where
// the block has no more directions to give, QR makes some up, which may lie in the basis: hence the
// test instead of the two passes that are otherwise enough.
MatrixXf Orthonormal(MatrixXf block, const MatrixXf& basis, int64_t known) {
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    const auto before = basis.leftCols(known);
    const MatrixXf overlap = before.transpose() * block;
    const bool is_orthonormal = pass > 0;
    if (is_orthonormal && (known == 0 || overlap.cwiseAbs().maxCoeff() <= kOrthogonal)) break;
    block -= before * overlap;
    const Eigen::HouseholderQR<MatrixXf> qr(block);
    block = qr.householderQ() * MatrixXf::Identity(block.rows(), block.cols());
  }
  return block;
}

// V and D V of the Krylov space that begins with `start`, whose columns are orthonormal.
absl::StatusOr<std::pair<MatrixXf, MatrixXf>> Krylov(const Operator& matrix, MatrixXf start) {
  const int64_t width = start.cols();
  const int64_t steps = std::min<int64_t>(kSteps, matrix.cols() / width);
  MatrixXf basis(matrix.cols(), steps * width);
  MatrixXf images(matrix.rows(), steps * width);
  MatrixXf block = std::move(start);
  for (int64_t step = 0; step < steps; ++step) {
    basis.middleCols(step * width, width) = block;
    ASSIGN_OR_RETURN(MatrixXf image, matrix.Apply(block));
    images.middleCols(step * width, width) = image;
    if (step + 1 == steps) break;
    ASSIGN_OR_RETURN(block, matrix.ApplyTransposed(image));
    block = Orthonormal(std::move(block), basis, (step + 1) * width);
  }
  return std::make_pair(std::move(basis), std::move(images));
}

absl::StatusOr<bool> HasConverged(const Operator& matrix, const Triplets& found, int64_t rank) {
  ASSIGN_OR_RETURN(MatrixXf rest, matrix.ApplyTransposed(found.u.leftCols(rank)));
  const double allowed = kSvdTolerance * found.values[0];
  for (int64_t i = 0; i < rank; ++i) {
    rest.col(i) -= static_cast<float>(found.values[i]) * found.v.col(i);
    if (rest.col(i).cast<double>().norm() > allowed) return false;
  }
  return true;
}

absl::StatusOr<Triplets> LanczosSvd(const Operator& matrix, int64_t rank) {
  const int64_t width = 2 * rank + kSpareVectors;
  uint32_t state = 1;  // any numbers will do, as long as they are the same each time
  MatrixXf start = MatrixXf::NullaryExpr(matrix.cols(), width, [&state] {
    state = state * 1664525 + 1013904223;
    return static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31F;
  });
  start = Orthonormal(std::move(start), MatrixXf(matrix.cols(), 0), 0);
  for (int cycle = 0; cycle < kMaxCycles; ++cycle) {
    ASSIGN_OR_RETURN(auto space, Krylov(matrix, std::move(start)));
    auto& [basis, images] = space;
    // D restricted to the space.
    ASSIGN_OR_RETURN(Triplets found, SvdOfProduct(images, basis, width));
    ASSIGN_OR_RETURN(const bool converged, HasConverged(matrix, found, rank));
    if (converged) {
      return Triplets{found.u.leftCols(rank), found.values.head(rank), found.v.leftCols(rank)};
    }
    start = Orthonormal(std::move(found.v), MatrixXf(matrix.cols(), 0), 0);
  }
  return Error(Reason::kInternal, "the singular values of a delta did not converge");
}

}  // namespace

absl::StatusOr<TruncatedSvd> LowRankSvd(std::span<const MergeTerm> terms, int64_t rank) {
  int64_t sum = 0;
  for (const MergeTerm& term : terms) sum += term.a.rows;
  MatrixXf left(terms[0].b.rows, sum);
  MatrixXf right(terms[0].a.cols, sum);
  std::vector<float> row(sum);
  int64_t first = 0;
  for (const MergeTerm& term : terms) {
    const int64_t own = term.a.rows;
    ConvertToF32(term.a.dtype, term.a.data, right.col(first).data(), own * term.a.cols);
    for (int64_t i = 0; i < term.b.rows; ++i) {
      ConvertToF32(term.b.dtype, term.b.Rows(i, 1).data, row.data(), own);
      for (int64_t j = 0; j < own; ++j) {
        left(i, first + j) = static_cast<float>(term.factor * row[j]);
      }
    }
    first += own;
  }
  ASSIGN_OR_RETURN(Triplets found, SvdOfProduct(left, right, rank));
  return ToFactors(std::move(found));
}

absl::StatusOr<TruncatedSvd> DenseSvd(ThreadPool& pool, const MatrixView& matrix, int64_t rank,
                                      const Cancellation& cancellation) {
  const Rows rows(reinterpret_cast<const float*>(matrix.data), matrix.rows, matrix.cols);
  const int64_t side = std::min(matrix.rows, matrix.cols);
  rank = std::min(rank, side);
  if (!rows.allFinite()) return NotFinite();
  if (side > kDirectSvdSide && (2 * rank + kSpareVectors) * kSteps <= side) {
    ASSIGN_OR_RETURN(Triplets found, LanczosSvd(Operator(pool, rows, cancellation), rank));
    return ToFactors(std::move(found));
  }
  RETURN_IF_ERROR(cancellation.Check());
  MatrixXf identity = MatrixXf::Identity(side, side);
  MatrixXf other = matrix.rows <= matrix.cols ? MatrixXf(rows.transpose()) : MatrixXf(rows);
  const bool is_wide = matrix.rows <= matrix.cols;
  ASSIGN_OR_RETURN(Triplets found,
                   SvdOfProduct(is_wide ? identity : other, is_wide ? other : identity, rank));
  return ToFactors(std::move(found));
}

}  // namespace adapterd
