#include "core/adapter/fresh_factors.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// True with probability exp(-1/2): von Neumann's game. The length of the falling run that begins
// below 1/2 is even (none counts) with just that probability.
bool ExpMinusHalf(RandomStream& random) {
  uint64_t last = uint64_t{1} << 63;
  bool is_even = true;
  for (uint64_t next; (next = random.Next()) < last; last = next) is_even = !is_even;
  return is_even;
}

// True with probability exp(-x (2k + x) / (2k + 2)), x = fraction / 2^64: step B of Karney's
// algorithm. Each step of the falling run must also win at odds (2k + x) / (2k + 2).
bool WinsGame(RandomStream& random, uint64_t k, uint64_t fraction) {
  using Wide = unsigned __int128;
  const Wide odds = (Wide{2 * k} << 64) + fraction;
  bool is_even = true;
  for (uint64_t last = fraction;;) {
    const uint64_t next = random.Next();
    if (next >= last || Wide{random.Next()} * (2 * k + 2) >= odds) return is_even;
    last = next;
    is_even = !is_even;
  }
}

// Whether all of `count` draws of exp(-1/2) are true.
bool AllExpMinusHalf(RandomStream& random, uint64_t count) {
  while (count > 0 && ExpMinusHalf(random)) --count;
  return count == 0;
}

// Karney, Sampling exactly from the normal distribution, ACM TOMS 42 (2016), algorithm N: compares
// whole numbers alone. A libm's logarithm would not give the same bits everywhere.
float Normal(RandomStream& random) {
  while (true) {
    uint64_t k = 0;
    while (ExpMinusHalf(random)) ++k;
    if (!AllExpMinusHalf(random, k == 0 ? 0 : k * (k - 1))) continue;
    const uint64_t fraction = random.Next();
    uint64_t games = k + 1;
    while (games > 0 && WinsGame(random, k, fraction)) --games;
    if (games > 0) continue;
    const double magnitude = static_cast<double>(k) + static_cast<double>(fraction >> 11) * 0x1p-53;
    return static_cast<float>(random.Next() >> 63 == 0 ? magnitude : -magnitude);
  }
}

}  // namespace

void FillUniform(RandomStream& random, double bound, std::span<float> values) {
  const double step = bound * 0x1p-24;
  for (float& value : values) {
    const auto upper = static_cast<int64_t>(random.Next() >> 40);  // 24 bits
    value = static_cast<float>(static_cast<double>(2 * upper + 1 - (int64_t{1} << 24)) * step);
  }
}

void FillNormal(RandomStream& random, std::span<float> values) {
  for (float& value : values) value = Normal(random);
}

Tensor FreshFactor(const ModuleInfo& module, TensorRole role, uint64_t seed) {
  const bool is_a = role == TensorRole::kLoraA;
  const bool is_embedding = module.kind == ModuleKind::kEmbedding;
  const Shape shape =
      is_a ? Shape{module.rank, module.in_features} : Shape{module.out_features, module.rank};
  const DType dtype = is_a ? module.lora_a_dtype : module.lora_b_dtype;
  const int64_t count = shape[0] * shape[1];
  AlignedBuffer bytes(static_cast<size_t>(count * FloatBytes(dtype)));
  if (is_a == is_embedding) {
    std::memset(bytes.data(), 0, bytes.size());
    return Tensor(dtype, shape, std::move(bytes));
  }
  RandomStream random = RandomStream::For(seed, fmt::format("{}\n{}", RoleName(role), module.path));
  std::vector<float> values(static_cast<size_t>(count));
  if (is_embedding) {
    FillNormal(random, values);
  } else {
    FillUniform(random, 1 / std::sqrt(static_cast<double>(module.in_features)), values);
  }
  ConvertFromF32(values.data(), dtype, bytes.data(), count);
  return Tensor(dtype, shape, std::move(bytes));
}

}  // namespace adapterd
