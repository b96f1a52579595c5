// The numbers that a tool wrote beside its adapter, and those of the adapter as it was read.
#ifndef ADAPTERD_TESTS_CORE_ADAPTER_FIXTURE_NUMBERS_H_
#define ADAPTERD_TESTS_CORE_ADAPTER_FIXTURE_NUMBERS_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/formats/safetensors.h"
#include "core/tensor/convert.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

// A tensor of a safetensors file, as doubles.
struct Doubles {
  DType dtype = DType::kF32;
  Shape shape;
  std::vector<double> values;

  double at(int64_t row, int64_t col) const { return values[row * shape[1] + col]; }
};

inline Doubles Widen(DType dtype, const Shape& shape, std::span<const std::byte> bytes) {
  const auto count = static_cast<int64_t>(bytes.size()) / FloatBytes(dtype);
  std::vector<float> floats(count);
  ConvertToF32(dtype, bytes.data(), floats.data(), count);
  return {dtype, shape, {floats.begin(), floats.end()}};
}

// The float tensors of a safetensors file below the fixtures; none when there is no such file.
inline std::map<std::string, Doubles> ReadNumbers(const std::string& file_name) {
  std::map<std::string, Doubles> tensors;
  const auto path = std::filesystem::path(ADAPTERD_FIXTURES) / file_name;
  if (!std::filesystem::exists(path)) return tensors;
  const std::string file = ReadFile(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  const auto header = ParseSafetensorsHeader(std::string_view(file).substr(8, header_bytes),
                                             static_cast<int64_t>(file.size()), file_name);
  for (const SafetensorsEntry& tensor : header.value().tensors) {
    if (!IsComputeFloat(tensor.dtype)) continue;
    const auto bytes = std::as_bytes(std::span(file)).subspan(tensor.offset, tensor.bytes);
    tensors[tensor.name] = Widen(tensor.dtype, tensor.shape, bytes);
  }
  return tensors;
}

// What rounding to `dtype` may change, relatively.
inline double Epsilon(DType dtype) {
  if (dtype == DType::kF32) return 0x1p-24;
  return dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// A pair of a module, its scale, and B's own bias when it has one.
struct WidePair {
  Doubles a;
  Doubles b;
  double scale = 1;
  std::vector<double> bias;
};

inline Doubles Rows(const Doubles& from, int64_t first, int64_t count) {
  const auto begin = from.values.begin() + first * from.shape[1];
  return {from.dtype, {count, from.shape[1]}, {begin, begin + count * from.shape[1]}};
}

// Of a module whose tensors were read. Experts lie one after the other.
inline WidePair PairOf(const ModuleInfo& module, const ModuleTensors& tensors, int64_t pair) {
  const auto widen = [](const Tensor& tensor) {
    return Widen(tensor.dtype(), tensor.shape(), tensor.bytes());
  };
  const int64_t columns = module.columns();
  Doubles a = widen(tensors.lora_a);
  Doubles b = widen(tensors.lora_b);
  a.shape = {module.pairs() * module.rank, columns};  // a kernel's places are columns
  b.shape = {module.pairs() * module.out_features, module.rank};
  return {Rows(a, pair * module.rank, module.rank),
          Rows(b, pair * module.out_features, module.out_features), module.scale,
          module.has_lora_bias ? widen(tensors.lora_bias).values : std::vector<double>()};
}

// PEFT computes scale * (B A) in F32 and rounds it to the dtype of the factors: a sum of `rank`
// products and two roundings more, each of at most half a unit. Factors that were folded (E,
// lambda) add a rounding on either side. `transposed`: delta is [in, out].
inline void ExpectDelta(const WidePair& pair, std::span<const double> delta, DType dtype,
                        bool transposed) {
  const int64_t rank = pair.a.shape[0];
  const int64_t inputs = pair.a.shape[1];
  const int64_t outputs = pair.b.shape[0];
  ASSERT_EQ(static_cast<int64_t>(delta.size()), inputs * outputs);
  for (int64_t out = 0; out < outputs; ++out) {
    for (int64_t in = 0; in < inputs; ++in) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < rank; ++k) {
        const double product = pair.b.at(out, k) * pair.a.at(k, in);
        sum += product;
        magnitude += std::abs(product);
      }
      const double tolerance =
          std::abs(pair.scale) * (static_cast<double>(rank + 6) * 0x1p-24 * magnitude +
                                  2 * Epsilon(dtype) * std::abs(sum)) +
          (dtype == DType::kF16 ? 0x1p-24 : 0);  // subnormals
      const double found = transposed ? delta[in * outputs + out] : delta[out * inputs + in];
      ASSERT_NEAR(found, pair.scale * sum, tolerance) << "at " << out << ", " << in;
    }
  }
}

// The same for outputs: y - y_base = scale * ((x A^T) B^T + bias). Sums over `in` in F32; the
// low-rank rows, the delta, the base output and the result are each rounded to the dtype of the
// layer.
inline void ExpectOutput(const WidePair& pair, const Doubles& x, const Doubles& y_base,
                         const Doubles& y) {
  const int64_t in = pair.a.shape[1];
  const int64_t out = pair.b.shape[0];
  const double epsilon = static_cast<double>(in) * 0x1p-24 + 4 * Epsilon(y.dtype);
  for (int64_t row = 0; row < static_cast<int64_t>(x.values.size()) / in; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = pair.bias.empty() ? 0 : pair.bias[o];
      double magnitude = std::abs(sum);
      for (int64_t k = 0; k < pair.a.shape[0]; ++k) {
        for (int64_t i = 0; i < in; ++i) {
          const double product = pair.b.at(o, k) * pair.a.at(k, i) * x.values[row * in + i];
          sum += product;
          magnitude += std::abs(product);
        }
      }
      const double base = y_base.values[row * out + o];
      const double with = y.values[row * out + o];
      const double tolerance =
          epsilon * (std::abs(pair.scale) * magnitude + std::abs(base) + std::abs(with));
      ASSERT_NEAR(with - base, pair.scale * sum, tolerance) << "at " << row << ", " << o;
    }
  }
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_ADAPTER_FIXTURE_NUMBERS_H_
