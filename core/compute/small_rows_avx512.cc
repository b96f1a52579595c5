#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "core/base/checked_math.h"
#include "core/compute/small_rows.h"

namespace adapterd {
namespace {

using Half = uint16_t;  // the bits of an F16

constexpr int64_t kLanes = 16;
constexpr int64_t kMaxVectors = 4;
constexpr int64_t kMostRows = 4;  // whose sums fit the registers

[[gnu::target("avx512f,avx512bw,avx512vl")]] inline __m512 Load(__mmask16 mask, const float* from) {
  return _mm512_maskz_loadu_ps(mask, from);
}
[[gnu::target("avx512f,avx512bw,avx512vl")]] inline __m512 Load(__mmask16 mask, const Half* from) {
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, from));
}

__mmask16 FirstLanes(int64_t count) { return static_cast<__mmask16>((uint32_t{1} << count) - 1); }

// The columns of kVectors registers, of which the last keeps `last`. kChains rows of weights have
// sums of their own, because one addition waits for the one before it.
template <int kRows, int kVectors, int kChains, typename Weight>
[[gnu::target("avx512f,avx512bw,avx512vl")]] void Columns(const SmallProduct& product,
                                                          const Weight* weights, __mmask16 last,
                                                          float* destination) {
  const auto* source = static_cast<const float*>(product.source);
  const auto mask = [last](int v) { return v + 1 == kVectors ? last : FirstLanes(kLanes); };
  __m512 sums[kChains][kRows][kVectors];
#pragma GCC unroll 8
  for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[chain][row][v] = _mm512_setzero_ps();
    }
  }
  int64_t k = 0;
  for (; k + kChains <= product.k; k += kChains) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512 w = Load(mask(v), weights + (k + chain) * product.panel + v * kLanes);
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
          const __m512 x = _mm512_set1_ps(source[row * product.source_stride + k + chain]);
          sums[chain][row][v] = _mm512_fmadd_ps(w, x, sums[chain][row][v]);
        }
      }
    }
  }
  for (; k < product.k; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 w = Load(mask(v), weights + k * product.panel + v * kLanes);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const __m512 x = _mm512_set1_ps(source[row * product.source_stride + k]);
        sums[0][row][v] = _mm512_fmadd_ps(w, x, sums[0][row][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __m512 sum = sums[0][row][v];
#pragma GCC unroll 8
      for (int chain = 1; chain < kChains; ++chain) sum = _mm512_add_ps(sum, sums[chain][row][v]);
      float* to = destination + row * product.destination_stride + v * kLanes;
      if (product.accumulate) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask(v), to));
      _mm512_mask_storeu_ps(to, mask(v), sum);
    }
  }
}

template <int kRows, typename Weight>
void Multiply(const SmallProduct& product) {
  constexpr int kPart = kRows == 1 ? 1 : 2;  // more rows are sums of their own already
  for (int64_t first = 0; first < product.n; first += product.panel) {
    const auto* panel = reinterpret_cast<const Weight*>(product.weights) + first * product.stored_k;
    const int64_t end = std::min(product.panel, product.n - first);
    for (int64_t col = 0; col < end; col += kMaxVectors * kLanes) {
      const int64_t columns = std::min(end - col, kMaxVectors * kLanes);
      const int64_t vectors = CeilDiv(columns, kLanes);
      const __mmask16 last = FirstLanes(columns - (vectors - 1) * kLanes);
      float* to = static_cast<float*>(product.destination) + first + col;
      switch (vectors) {
        case 1:
          Columns<kRows, 1, 8 / kPart>(product, panel + col, last, to);
          break;
        case 2:
          Columns<kRows, 2, 4 / kPart>(product, panel + col, last, to);
          break;
        case 3:
          Columns<kRows, 3, 2 / kPart>(product, panel + col, last, to);
          break;
        default:
          Columns<kRows, kMaxVectors, 2 / kPart>(product, panel + col, last, to);
      }
    }
  }
}

SmallProduct Rows(const SmallProduct& product, int64_t first, int64_t count) {
  SmallProduct rows = product;
  rows.rows = count;
  rows.source = static_cast<const float*>(product.source) + first * product.source_stride;
  rows.destination = static_cast<float*>(product.destination) + first * product.destination_stride;
  return rows;
}

void MultiplyByF16(const SmallProduct& product) {
  switch (product.rows) {
    case 1:
      return Multiply<1, Half>(product);
    case 2:
      return Multiply<2, Half>(product);
    case 3:
      return Multiply<3, Half>(product);
    default:
      return Multiply<kMostRows, Half>(product);
  }
}

}  // namespace

void MultiplyRowsAvx512(const SmallProduct& product) {
  if (!product.weights_are_f16) return Multiply<1, float>(product);
  for (int64_t row = 0; row < product.rows; row += kMostRows) {
    MultiplyByF16(Rows(product, row, std::min(kMostRows, product.rows - row)));
  }
}

}  // namespace adapterd

#endif
