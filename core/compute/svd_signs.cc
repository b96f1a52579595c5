#include "core/compute/svd_signs.h"

#include <Eigen/Dense>
#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// LAPACK's, by the conventions of gfortran: lengths of texts come last.
extern "C" void sgesdd_(const char* job, const int* rows, const int* cols, float* matrix,
                        const int* stride, float* values, float* left, const int* left_stride,
                        float* right, const int* right_stride, float* work, const int* work_size,
                        int* indices, int* info, size_t job_length);

using Eigen::MatrixXf;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

absl::StatusOr<MatrixXf> LeftVectors(MatrixXf matrix) {
  const auto rows = static_cast<int>(matrix.rows());
  const auto cols = static_cast<int>(matrix.cols());
  const int side = std::min(rows, cols);
  MatrixXf left(rows, side);
  MatrixXf right(side, cols);
  std::vector<float> values(static_cast<size_t>(side));
  std::vector<int> indices(static_cast<size_t>(8 * side));
  std::vector<float> work(1);
  int work_size = -1;  // tells in work[0] how much it wants
  int info = 0;
  for (int pass = 0; pass < 2 && info == 0; ++pass) {
    sgesdd_("S", &rows, &cols, matrix.data(), &rows, values.data(), left.data(), &rows,
            right.data(), &side, work.data(), &work_size, indices.data(), &info, 1);
    work_size = static_cast<int>(work[0]);
    work.resize(static_cast<size_t>(work_size));
  }
  if (info == 0) return left;
  return Error(Reason::kInternal, "the singular values of a delta did not converge");
}

absl::StatusOr<MatrixXf> LeftVectorsAsTorch(const Eigen::Map<const RowMajor>& matrix) {
  const Eigen::Index rows = matrix.rows();
  const Eigen::Index cols = matrix.cols();
  if (cols > rows) {
    const Eigen::HouseholderQR<MatrixXf> qr(MatrixXf(matrix.transpose()));
    const MatrixXf upper = qr.matrixQR().topRows(rows).triangularView<Eigen::Upper>();
    // With a column more than rows it is reduced to a lower bidiagonal matrix.
    MatrixXf lower = MatrixXf::Zero(rows, rows + 1);
    lower.leftCols(rows) = upper.transpose();
    return LeftVectors(std::move(lower));
  }
  if (2 * rows < 3 * cols) return LeftVectors(matrix);
  const Eigen::HouseholderQR<MatrixXf> qr((MatrixXf(matrix)));
  const MatrixXf upper = qr.matrixQR().topRows(cols).triangularView<Eigen::Upper>();
  ASSIGN_OR_RETURN(const MatrixXf small, LeftVectors(upper));
  MatrixXf left = MatrixXf::Zero(rows, cols);
  left.topRows(cols) = small;
  left.applyOnTheLeft(qr.householderQ());
  return left;
}

}  // namespace

absl::Status TurnAsLapack(const MatrixView& matrix, TruncatedSvd& svd) {
  const auto* values = reinterpret_cast<const float*>(matrix.data);
  ASSIGN_OR_RETURN(const MatrixXf left, LeftVectorsAsTorch({values, matrix.rows, matrix.cols}));
  const auto rank = static_cast<int64_t>(svd.values.size());
  const auto floats = [](const Tensor& tensor) {
    return reinterpret_cast<const float*>(tensor.bytes().data());
  };
  RowMajor b = Eigen::Map<const RowMajor>(floats(svd.lora_b), matrix.rows, rank);
  RowMajor a = Eigen::Map<const RowMajor>(floats(svd.lora_a), rank, matrix.cols);
  for (int64_t i = 0; i < rank; ++i) {
    if (left.col(i).dot(b.col(i)) >= 0) continue;
    b.col(i) *= -1;
    a.row(i) *= -1;
  }
  const auto store = [](const RowMajor& factor) {
    AlignedBuffer buffer(static_cast<size_t>(factor.size()) * sizeof(float));
    Eigen::Map<RowMajor>(reinterpret_cast<float*>(buffer.data()), factor.rows(), factor.cols()) =
        factor;
    return Tensor(DType::kF32, {factor.rows(), factor.cols()}, std::move(buffer));
  };
  svd.lora_b = store(b);
  svd.lora_a = store(a);
  return absl::OkStatus();
}

}  // namespace adapterd
