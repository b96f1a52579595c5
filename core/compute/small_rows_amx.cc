// AMX: registers that are tiles of 16 rows, and an instruction that multiplies 32 BF16 of each.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "core/base/checked_math.h"
#include "core/compute/small_rows.h"
#include "core/tensor/convert.h"

// For lambdas, too: what is not compiled for the same CPU is not inlined.
#define ADAPTERD_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bf16")))

namespace adapterd {
namespace {

constexpr int64_t kMaxRows = 16;
constexpr int64_t kColumns = 16;   // of sums in a tile
constexpr int64_t kDepth = 32;     // rows of weights in a tile, which lie in pairs
constexpr int64_t kRowBytes = 64;  // of any tile
constexpr int64_t kBytes = 2;      // of a BF16
constexpr int kSumTiles = 4;
constexpr int64_t kPanelsAhead = 2;

// Tiles 0 to 3 hold sums, 4 and 5 rows of the source, 6 and 7 weights.
struct alignas(64) TileShapes {
  TileShapes(int64_t rows, int64_t pairs) {
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_source = tile == 4 || tile == 5;
      row_bytes[tile] = static_cast<uint16_t>(is_source ? pairs * 4 : kRowBytes);
      row_count[tile] = static_cast<uint8_t>(tile < 6 ? rows : pairs);
    }
  }

  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t row_count[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Where tiles of the source begin. The last one of a row that ends within it is copied, because
// what follows the row may be no number.
class SourceTiles {
 public:
  explicit SourceTiles(const SmallProduct& product)
      : data_(static_cast<const std::byte*>(product.source)),
        stride_(product.source_stride * kBytes),
        whole_(product.k / kDepth),
        count_(CeilDiv(product.k, kDepth)) {
    if (whole_ == count_) return;
    std::memset(last_, 0, sizeof(last_));
    for (int64_t row = 0; row < product.rows; ++row) {
      std::memcpy(last_[row], data_ + row * stride_ + whole_ * kRowBytes,
                  (product.k - whole_ * kDepth) * kBytes);
    }
  }

  int64_t count() const { return count_; }
  const std::byte* at(int64_t tile) const {
    return tile < whole_ ? data_ + tile * kRowBytes : last_[0];
  }
  int64_t stride(int64_t tile) const { return tile < whole_ ? stride_ : kRowBytes; }

 private:
  const std::byte* data_;
  int64_t stride_;
  int64_t whole_;
  int64_t count_;
  alignas(64) std::byte last_[kMaxRows][kRowBytes];
};

// The weights of up to 64 columns: those of each further 16 begin 64 bytes further.
struct Weights {
  const std::byte* data;
  int64_t stride;  // from pair to pair

  const std::byte* at(int64_t tile) const { return data + tile * (kDepth / 2) * stride; }
};

// Of a rank up to 16, each panel is half zeros. Fetched downwards ahead of time: a CPU that notices
// goes on by itself with what lies below, which is needed, and not with the zeros above.
ADAPTERD_AMX void PrefetchPanel(const SmallProduct& product, const std::byte* panel) {
  const int64_t bytes = CeilDiv(product.k, int64_t{2}) * product.panel * 2 * kBytes;
  for (int64_t at = bytes - kRowBytes; at >= 0; at -= kRowBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(panel + at), _MM_HINT_T0);
  }
}

// Calls body(weights, first column, columns) for up to 64 columns at a time.
template <typename Body>
ADAPTERD_AMX void ForEachPanel(const SmallProduct& product, Body body) {
  const int64_t panel_bytes = product.panel * product.stored_k * kBytes;
  const bool is_half_zeros = product.k * 2 <= product.stored_k;
  for (int64_t first = 0; first < product.n; first += product.panel) {
    const std::byte* panel = product.weights + first / product.panel * panel_bytes;
    if (is_half_zeros && first + kPanelsAhead * product.panel < product.n) {
      PrefetchPanel(product, panel + kPanelsAhead * panel_bytes);
    }
    const int64_t end = std::min(product.panel, product.n - first);
    for (int64_t col = 0; col < end; col += kSumTiles * kColumns) {
      body(Weights{panel + 2 * col * kBytes, product.panel * 2 * kBytes}, first + col,
           std::min(end - col, kSumTiles * kColumns));
    }
  }
}

// Sums in tile 0, and in 1 to 3 for other tiles of the source: one multiplication takes as long as
// four begin.
ADAPTERD_AMX void MultiplyOneColumn(const SourceTiles& source, const Weights& weights) {
  int64_t k = 0;
  for (; k + 4 <= source.count(); k += 4) {
    _tile_loadd(4, source.at(k), source.stride(k));
    _tile_loadd(6, weights.at(k), weights.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, source.at(k + 1), source.stride(k + 1));
    _tile_loadd(7, weights.at(k + 1), weights.stride);
    _tile_dpbf16ps(1, 5, 7);
    _tile_loadd(4, source.at(k + 2), source.stride(k + 2));
    _tile_loadd(6, weights.at(k + 2), weights.stride);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(5, source.at(k + 3), source.stride(k + 3));
    _tile_loadd(7, weights.at(k + 3), weights.stride);
    _tile_dpbf16ps(3, 5, 7);
  }
  for (; k < source.count(); ++k) {
    _tile_loadd(4, source.at(k), source.stride(k));
    _tile_loadd(6, weights.at(k), weights.stride);
    _tile_dpbf16ps(0, 4, 6);
  }
}

// Sums in tiles 0 and 1, and in 2 and 3.
ADAPTERD_AMX void MultiplyTwoColumns(const SourceTiles& source, const Weights& weights) {
  int64_t k = 0;
  for (; k + 2 <= source.count(); k += 2) {
    _tile_loadd(4, source.at(k), source.stride(k));
    _tile_loadd(6, weights.at(k), weights.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights.at(k) + kRowBytes, weights.stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, source.at(k + 1), source.stride(k + 1));
    _tile_loadd(6, weights.at(k + 1), weights.stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, weights.at(k + 1) + kRowBytes, weights.stride);
    _tile_dpbf16ps(3, 5, 7);
  }
  if (k == source.count()) return;
  _tile_loadd(4, source.at(k), source.stride(k));
  _tile_loadd(6, weights.at(k), weights.stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, weights.at(k) + kRowBytes, weights.stride);
  _tile_dpbf16ps(1, 4, 7);
}

// Sums in tiles 0 to 2, or 0 to 3.
template <bool kFour>
ADAPTERD_AMX void MultiplyMoreColumns(const SourceTiles& source, const Weights& weights) {
  for (int64_t k = 0; k < source.count(); ++k) {
    const std::byte* tiles = weights.at(k);
    _tile_loadd(4, source.at(k), source.stride(k));
    _tile_loadd(6, tiles, weights.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles + kRowBytes, weights.stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, tiles + 2 * kRowBytes, weights.stride);
    _tile_dpbf16ps(2, 4, 6);
    if constexpr (kFour) {
      _tile_loadd(7, tiles + 3 * kRowBytes, weights.stride);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
}

// The same of four columns when the source is one tile: it is in tile 4 already.
ADAPTERD_AMX void MultiplyOnce(const Weights& weights) {
  _tile_loadd(6, weights.data, weights.stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, weights.data + kRowBytes, weights.stride);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(6, weights.data + 2 * kRowBytes, weights.stride);
  _tile_dpbf16ps(2, 4, 6);
  _tile_loadd(7, weights.data + 3 * kRowBytes, weights.stride);
  _tile_dpbf16ps(3, 4, 7);
}

ADAPTERD_AMX void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

ADAPTERD_AMX void StoreSums(float* to, int64_t tile_step, int64_t stride) {
  _tile_stored(0, to, stride * 4);
  _tile_stored(1, to + tile_step, stride * 4);
  _tile_stored(2, to + 2 * tile_step, stride * 4);
  _tile_stored(3, to + 3 * tile_step, stride * 4);
}

// The sums of up to 64 columns.
struct alignas(64) Sums {
  float values[kMaxRows][kSumTiles * kColumns];
};

// Adds up the sums of different tiles of the source: columns apart, 2 * apart, ... on those before.
void AddOtherTiles(int64_t rows, int64_t apart, Sums& sums) {
  for (int64_t row = 0; row < rows; ++row) {
    float* values = sums.values[row];
    for (int64_t other = apart; other < kSumTiles * kColumns; other += apart) {
      for (int64_t col = 0; col < apart; ++col) values[col] += values[other + col];
    }
  }
}

// 64 F32 to BF16. The instruction takes subnormals for zeros, but AMX makes none.
ADAPTERD_AMX void Round(const float* values, std::byte* to) {
  for (int64_t at = 0; at < kSumTiles * kColumns; at += 2 * kColumns, to += kRowBytes) {
    const __m512bh narrow =
        _mm512_cvtne2ps_pbh(_mm512_load_ps(values + at + kColumns), _mm512_load_ps(values + at));
    std::memcpy(to, &narrow, sizeof(narrow));
  }
}

// Brings the first `columns` sums of each row to the destination's columns from `first` on.
ADAPTERD_AMX void Finish(const SmallProduct& product, const Sums& sums, int64_t first,
                         int64_t columns) {
  for (int64_t row = 0; row < product.rows; ++row) {
    const float* values = sums.values[row];
    const int64_t at = row * product.destination_stride + first;
    if (product.narrow) {
      std::byte* to = static_cast<std::byte*>(product.destination) + at * kBytes;
      if (columns == kSumTiles * kColumns) {
        Round(values, to);
      } else {
        ConvertFromF32(values, DType::kBF16, to, columns);
      }
      continue;
    }
    float* to = static_cast<float*>(product.destination) + at;
    if (product.accumulate) {
      for (int64_t col = 0; col < columns; ++col) to[col] += values[col];
    } else {
      std::copy_n(values, columns, to);
    }
  }
}

// Up to 64 columns from `first` on.
ADAPTERD_AMX void MultiplyColumns(const SmallProduct& product, const SourceTiles& source,
                                  const Weights& weights, int64_t first, int64_t columns) {
  ZeroSums();
  int64_t apart = kSumTiles * kColumns;
  switch (CeilDiv(columns, kColumns)) {
    case 1:
      MultiplyOneColumn(source, weights);
      apart = kColumns;
      break;
    case 2:
      MultiplyTwoColumns(source, weights);
      apart = 2 * kColumns;
      break;
    case 3:
      MultiplyMoreColumns<false>(source, weights);
      break;
    default:
      if (source.count() == 1) {
        MultiplyOnce(weights);
      } else {
        MultiplyMoreColumns<true>(source, weights);
      }
  }
  Sums sums;
  StoreSums(sums.values[0], kColumns, kSumTiles * kColumns);
  AddOtherTiles(product.rows, apart, sums);
  Finish(product, sums, first, columns);
}

// One row of the source, as pairs of BF16, times 64 columns: quicker than nearly empty tiles.
ADAPTERD_AMX void MultiplyPairs(const uint32_t* pairs, int64_t count, const Weights& weights,
                                float* sums) {
  __m512 parts[kSumTiles] = {};
  for (int64_t pair = 0; pair < count; ++pair) {
    const auto x = (__m512bh)_mm512_set1_epi32(static_cast<int>(pairs[pair]));
    const std::byte* line = weights.data + pair * weights.stride;
#pragma GCC unroll 4
    for (int i = 0; i < kSumTiles; ++i) {
      const auto w = (__m512bh)_mm512_loadu_si512(line + i * kRowBytes);
      parts[i] = _mm512_dpbf16_ps(parts[i], w, x);
    }
  }
  for (int i = 0; i < kSumTiles; ++i) _mm512_store_ps(sums + i * kColumns, parts[i]);
}

// Of one row that fits into a tile.
ADAPTERD_AMX void MultiplyRow(const SmallProduct& product) {
  uint32_t pairs[kDepth / 2] = {};
  std::memcpy(pairs, product.source, product.k * kBytes);
  Sums sums;
  ForEachPanel(product, [&](const Weights& weights, int64_t first, int64_t columns) ADAPTERD_AMX {
    MultiplyPairs(pairs, CeilDiv(product.k, int64_t{2}), weights, sums.values[0]);
    Finish(product, sums, first, columns);
  });
}

}  // namespace

ADAPTERD_AMX void MultiplyRowsAmx(const SmallProduct& product) {
  if (product.rows == 1 && product.k <= kDepth && product.panel % (kSumTiles * kColumns) == 0) {
    return MultiplyRow(product);
  }
  const SourceTiles source(product);
  const TileShapes shapes(product.rows, CeilDiv(std::min(product.k, kDepth), int64_t{2}));
  _tile_loadconfig(&shapes);
  _tile_loadd(4, source.at(0), source.stride(0));
  ForEachPanel(product, [&](const Weights& weights, int64_t first, int64_t columns) ADAPTERD_AMX {
    MultiplyColumns(product, source, weights, first, columns);
  });
  _tile_release();
}

}  // namespace adapterd

#endif
