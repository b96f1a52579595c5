#include "core/compute/experts.h"

#include <cstring>
#include <utility>

namespace adapterd {
namespace {

struct ExpertSizes {
  int64_t experts;
  int64_t out_features;
  int64_t rank;

  // Of element [o, k] of expert e, in words.
  int64_t Joined(int64_t e, int64_t o, int64_t k) const { return (o * rank + k) * experts + e; }
  int64_t Split(int64_t e, int64_t o, int64_t k) const { return (e * out_features + o) * rank + k; }
};

// One row of the joined tensor after the other: it stays in the cache while it is taken apart.
template <typename Word, bool kSplit>
void Copy(const ExpertSizes& sizes, const std::byte* from, std::byte* to) {
  constexpr int64_t kBytes = sizeof(Word);
  for (int64_t o = 0; o < sizes.out_features; ++o) {
    for (int64_t e = 0; e < sizes.experts; ++e) {
      for (int64_t k = 0; k < sizes.rank; ++k) {
        const int64_t joined = sizes.Joined(e, o, k) * kBytes;
        const int64_t split = sizes.Split(e, o, k) * kBytes;
        std::memcpy(to + (kSplit ? split : joined), from + (kSplit ? joined : split), kBytes);
      }
    }
  }
}

template <bool kSplit>
AlignedBuffer Regroup(const ExpertSizes& sizes, DType dtype, const std::byte* from) {
  AlignedBuffer to(sizes.experts * sizes.out_features * sizes.rank * FloatBytes(dtype));
  if (FloatBytes(dtype) == 2) {
    Copy<uint16_t, kSplit>(sizes, from, to.data());
  } else {
    Copy<uint32_t, kSplit>(sizes, from, to.data());
  }
  return to;
}

}  // namespace

Tensor SplitExpertsB(const MatrixView& b, int64_t experts) {
  const ExpertSizes sizes = {experts, b.rows, b.cols / experts};
  return {
      b.dtype, {experts, sizes.out_features, sizes.rank}, Regroup<true>(sizes, b.dtype, b.data)};
}

Tensor JoinExpertsB(const Tensor& split) {
  const ExpertSizes sizes = {split.shape()[0], split.shape()[1], split.shape()[2]};
  return {split.dtype(),
          {sizes.out_features, sizes.rank * sizes.experts},
          Regroup<false>(sizes, split.dtype(), split.bytes().data())};
}

}  // namespace adapterd
