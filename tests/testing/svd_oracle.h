// Singular values and vectors by another road than the program's: one-sided Jacobi rotations in F64
// (Hestenes 1958; Demmel and Veselic 1992), slow and simple.
#ifndef ADAPTERD_TESTS_TESTING_SVD_ORACLE_H_
#define ADAPTERD_TESTS_TESTING_SVD_ORACLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace adapterd {

struct OracleSvd {
  std::vector<double> values;              // descending
  std::vector<std::vector<double>> left;   // unit vectors [rows]; zeros of a zero value
  std::vector<std::vector<double>> right;  // unit vectors [cols]

  // [rows x cols] of the first `rank` triplets.
  std::vector<double> Truncated(size_t rank) const {
    const size_t rows = left[0].size();
    const size_t cols = right[0].size();
    std::vector<double> sum(rows * cols);
    for (size_t k = 0; k < std::min(rank, values.size()); ++k) {
      for (size_t i = 0; i < rows; ++i) {
        for (size_t j = 0; j < cols; ++j) {
          sum[i * cols + j] += values[k] * left[k][i] * right[k][j];
        }
      }
    }
    return sum;
  }
};

inline double DotOf(const std::vector<double>& x, const std::vector<double>& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// Turns two columns until they are orthogonal; false when they are.
inline bool Rotate(std::vector<double>& x, std::vector<double>& y, std::vector<double>& vx,
                   std::vector<double>& vy) {
  const double xx = DotOf(x, x);
  const double yy = DotOf(y, y);
  const double xy = DotOf(x, y);
  if (std::abs(xy) <= 1e-15 * std::sqrt(xx * yy) || xy == 0) return false;
  const double zeta = (yy - xx) / (2 * xy);
  const double t = (zeta >= 0 ? 1 : -1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
  const double c = 1 / std::sqrt(1 + t * t);
  const double s = c * t;
  const auto turn = [&](std::vector<double>& p, std::vector<double>& q) {
    for (size_t i = 0; i < p.size(); ++i) {
      const double before = p[i];
      p[i] = c * before - s * q[i];
      q[i] = s * before + c * q[i];
    }
  };
  turn(x, y);
  turn(vx, vy);
  return true;
}

inline OracleSvd SvdOracle(const std::vector<double>& matrix, int64_t rows, int64_t cols) {
  std::vector<std::vector<double>> u(cols, std::vector<double>(rows));
  std::vector<std::vector<double>> v(cols, std::vector<double>(cols));
  for (int64_t j = 0; j < cols; ++j) {
    v[j][j] = 1;
    for (int64_t i = 0; i < rows; ++i) u[j][i] = matrix[i * cols + j];
  }
  bool turned = true;
  for (int sweep = 0; turned && sweep < 60; ++sweep) {
    turned = false;
    for (int64_t p = 0; p < cols; ++p) {
      for (int64_t q = p + 1; q < cols; ++q) turned |= Rotate(u[p], u[q], v[p], v[q]);
    }
  }
  std::vector<size_t> order(cols);
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> norms(cols);
  for (int64_t j = 0; j < cols; ++j) norms[j] = std::sqrt(DotOf(u[j], u[j]));
  std::ranges::stable_sort(order, [&](size_t x, size_t y) { return norms[x] > norms[y]; });
  OracleSvd svd;
  for (const size_t j : order) {
    if (norms[j] > 0) {
      for (double& value : u[j]) value /= norms[j];
    }
    svd.values.push_back(norms[j]);
    svd.left.push_back(u[j]);
    svd.right.push_back(v[j]);
  }
  return svd;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_SVD_ORACLE_H_
