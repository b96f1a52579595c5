#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "core/base/checked_math.h"
#include "core/compute/small_rows.h"

namespace adapterd {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kMaxVectors = 4;

__mmask16 FirstLanes(int64_t count) { return static_cast<__mmask16>((uint32_t{1} << count) - 1); }

// The columns of kVectors registers, of which the last keeps `last`. kChains rows of weights have
// sums of their own, because one addition waits for the one before it.
template <int kVectors, int kChains>
[[gnu::target("avx512f")]] void Columns(const SmallProduct& product, const float* weights,
                                        __mmask16 last, float* destination) {
  const auto* source = static_cast<const float*>(product.source);
  const auto mask = [last](int v) { return v + 1 == kVectors ? last : FirstLanes(kLanes); };
  __m512 sums[kChains][kVectors];
#pragma GCC unroll 8
  for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[chain][v] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kChains <= product.k; k += kChains) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      const float* row = weights + (k + chain) * product.panel;
      const __m512 x = _mm512_set1_ps(source[k + chain]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512 w = _mm512_maskz_loadu_ps(mask(v), row + v * kLanes);
        sums[chain][v] = _mm512_fmadd_ps(w, x, sums[chain][v]);
      }
    }
  }
  for (; k < product.k; ++k) {
    const __m512 x = _mm512_set1_ps(source[k]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 w = _mm512_maskz_loadu_ps(mask(v), weights + k * product.panel + v * kLanes);
      sums[0][v] = _mm512_fmadd_ps(w, x, sums[0][v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    __m512 sum = sums[0][v];
#pragma GCC unroll 8
    for (int chain = 1; chain < kChains; ++chain) sum = _mm512_add_ps(sum, sums[chain][v]);
    float* to = destination + v * kLanes;
    if (product.accumulate) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask(v), to));
    _mm512_mask_storeu_ps(to, mask(v), sum);
  }
}

}  // namespace

void MultiplyRowAvx512(const SmallProduct& product) {
  for (int64_t first = 0; first < product.n; first += product.panel) {
    const auto* panel = reinterpret_cast<const float*>(product.weights) + first * product.stored_k;
    const int64_t end = std::min(product.panel, product.n - first);
    for (int64_t col = 0; col < end; col += kMaxVectors * kLanes) {
      const int64_t columns = std::min(end - col, kMaxVectors * kLanes);
      const int64_t vectors = CeilDiv(columns, kLanes);
      const __mmask16 last = FirstLanes(columns - (vectors - 1) * kLanes);
      float* to = static_cast<float*>(product.destination) + first + col;
      switch (vectors) {
        case 1:
          Columns<1, 8>(product, panel + col, last, to);
          break;
        case 2:
          Columns<2, 4>(product, panel + col, last, to);
          break;
        case 3:
          Columns<3, 2>(product, panel + col, last, to);
          break;
        default:
          Columns<kMaxVectors, 2>(product, panel + col, last, to);
      }
    }
  }
}

}  // namespace adapterd

#endif
