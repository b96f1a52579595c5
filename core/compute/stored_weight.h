// A base model's weight, however it is held, as the rows that products take. For compute and for
// those who fill in what it reads.
#ifndef ADAPTERD_CORE_COMPUTE_STORED_WEIGHT_H_
#define ADAPTERD_CORE_COMPUTE_STORED_WEIGHT_H_

#include <cstdint>
#include <span>
#include <variant>

#include "core/compute/merge.h"
#include "core/compute/nf4.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// Row `row` of a weight has the values of row `by` of its replacement.
struct ReplacedRow {
  int64_t row = 0;
  int64_t by = 0;
};

// Views what it names. Token ids of embeddings are rows, which are kInOut.
struct StoredWeight {
  std::variant<MatrixView, const Nf4Matrix*> stored;  // row-major
  WeightLayout layout = WeightLayout::kOutIn;
  std::span<const ReplacedRow> replaced = {};  // ascending by row
  MatrixView replacement = {};                 // with the weight's columns

  const MatrixView* dense() const { return std::get_if<MatrixView>(&stored); }
  const Nf4Matrix* nf4() const {
    const auto* quantised = std::get_if<const Nf4Matrix*>(&stored);
    return quantised == nullptr ? nullptr : *quantised;
  }
  int64_t rows() const { return dense() != nullptr ? dense()->rows : nf4()->rows(); }
  int64_t cols() const { return dense() != nullptr ? dense()->cols : nf4()->cols(); }
  int64_t out_features() const { return layout == WeightLayout::kOutIn ? rows() : cols(); }
  int64_t in_features() const { return layout == WeightLayout::kOutIn ? cols() : rows(); }
  // What is read of memory for one product.
  int64_t bytes() const { return dense() != nullptr ? dense()->bytes() : nf4()->bytes(); }

  // The weights of row `row`, columns [first, first + count), in F32.
  void ReadRow(int64_t row, int64_t first, int64_t count, float* to) const;

  // The weights that lead to outputs [first, first + count): `count` rows of in_features, in F32.
  void ReadOutputs(int64_t first, int64_t count, float* to) const;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_STORED_WEIGHT_H_
