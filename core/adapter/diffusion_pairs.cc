#include "core/adapter/diffusion_pairs.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <span>

#include "core/adapter/peft_config.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

const SafetensorsEntry** PlaceOf(DiffusionPart part, DiffusionTensors& tensors) {
  switch (part) {
    case DiffusionPart::kDown:
      return &tensors.down;
    case DiffusionPart::kUp:
      return &tensors.up;
    case DiffusionPart::kUpBias:
      return &tensors.up_bias;
    case DiffusionPart::kMagnitude:
      return &tensors.magnitude;
    default:
      return &tensors.alpha;
  }
}

template <typename Number>
double ValueOf(std::span<const std::byte> bytes) {
  Number number;
  std::memcpy(&number, bytes.data(), sizeof(number));
  return static_cast<double>(number);
}

// nullopt: not a type that holds one number.
std::optional<double> NumberOf(DType dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16: {
      float value = 0;
      ConvertToF32(dtype, bytes.data(), &value, 1);
      return value;
    }
    case DType::kF64:
      return ValueOf<double>(bytes);
    case DType::kI8:
      return ValueOf<int8_t>(bytes);
    case DType::kU8:
      return ValueOf<uint8_t>(bytes);
    case DType::kI16:
      return ValueOf<int16_t>(bytes);
    case DType::kU16:
      return ValueOf<uint16_t>(bytes);
    case DType::kI32:
      return ValueOf<int32_t>(bytes);
    case DType::kU32:
      return ValueOf<uint32_t>(bytes);
    case DType::kI64:
      return ValueOf<int64_t>(bytes);
    case DType::kU64:
      return ValueOf<uint64_t>(bytes);
    default:
      return std::nullopt;
  }
}

constexpr int64_t kMaxNumberBytes = 8;

// One alpha; nullopt: refused.
std::optional<double> ReadAlpha(const InputFile& weights, const SafetensorsEntry& tensor,
                                TensorChecks& checks) {
  const auto refuse = [&](Reason reason, std::string what, std::string expected,
                          std::string actual) {
    checks.Refuse({.reason = reason,
                   .tensor = &tensor,
                   .what = std::move(what),
                   .expected = std::move(expected),
                   .actual = std::move(actual)});
    return std::nullopt;
  };
  if (ElementsOf(tensor) != 1 || tensor.bytes > kMaxNumberBytes) {
    return refuse(Reason::kInvalidAdapter, "is not one number", "[]", ShapeString(tensor.shape));
  }
  std::array<std::byte, kMaxNumberBytes> buffer{};
  const auto bytes = std::span(buffer).first(static_cast<size_t>(tensor.bytes));
  if (const absl::Status read = weights.ReadAt(tensor.offset, bytes); !read.ok()) {
    checks.Refuse(read);
    return std::nullopt;
  }
  const auto value = NumberOf(tensor.dtype, bytes);
  if (!value) {
    return refuse(Reason::kUnsupportedDtype, "has a dtype that no alpha has",
                  "a float or a whole number", std::string(DTypeName(tensor.dtype)));
  }
  if (!std::isfinite(*value)) {
    return refuse(Reason::kNonFiniteWeights, "holds NaN or infinite elements", "a finite number",
                  std::to_string(*value));
  }
  if (std::abs(*value) > kMaxAlpha) {
    return refuse(Reason::kInvalidAdapter, "is too large for an alpha",
                  fmt::format("at most {:g}", kMaxAlpha), fmt::format("{:g}", *value));
  }
  return value;
}

// Plans one pair.
class DiffusionPairPlanner {
 public:
  DiffusionPairPlanner(const std::string& path, const DiffusionTensors& tensors,
                       TensorChecks& checks)
      : path_(path), tensors_(tensors), checks_(checks) {}

  std::optional<PlannedPart> Plan() {
    if (!IsComplete() || !CheckFactors()) return std::nullopt;
    const bool convolution = IsConvolution(*tensors_.down, *tensors_.up);
    PlannedPart part = StartPair(path_, convolution ? ModuleKind::kConv : ModuleKind::kLinear,
                                 *tensors_.down, *tensors_.up);
    if (!AddMagnitude(part) || !AddBias(part)) return std::nullopt;
    return part;
  }

 private:
  void Refuse(const SafetensorsEntry& tensor, std::string what, std::string expected = "",
              std::string actual = "", Reason reason = Reason::kInvalidAdapter) {
    checks_.Refuse({.reason = reason,
                    .tensor = &tensor,
                    .module = path_,
                    .what = std::move(what),
                    .expected = std::move(expected),
                    .actual = std::move(actual)});
  }

  bool IsComplete() {
    if (tensors_.down != nullptr && tensors_.up != nullptr) return true;
    const bool neither = tensors_.down == nullptr && tensors_.up == nullptr;
    const std::string_view missing = neither                    ? "factors"
                                     : tensors_.down == nullptr ? "factor A (down)"
                                                                : "factor B (up)";
    Refuse(tensors_.Any(),
           fmt::format("has no {} beside it: module {} is incomplete", missing, Quoted(path_)));
    return false;
  }

  bool CheckFactors() {
    const SafetensorsEntry& down = *tensors_.down;
    const SafetensorsEntry& up = *tensors_.up;
    const bool convolution = IsConvolution(down, up);
    const auto check = [&](const SafetensorsEntry& tensor, std::string_view shape) {
      return convolution ? checks_.Values(tensor, path_, shape)
                         : checks_.Matrix(tensor, path_, shape);
    };
    const bool usable = check(down, "[rank, in] or [rank, in, kernel...]");
    if (!check(up, "[out, rank] or [out, rank, 1...]") || !usable) return false;
    if (up.shape[1] == down.shape[0]) return true;
    Refuse(up, fmt::format("has another rank than {}", Quoted(down.name)),
           std::to_string(down.shape[0]), std::to_string(up.shape[1]));
    return false;
  }

  // LyCORIS and OneTrainer may take the norms of the inputs, [1, in, ...], and not those of the
  // outputs, [out, 1, ...]; PEFT's of a convolution are [1, out, 1, 1].
  bool AddMagnitude(PlannedPart& part) {
    const SafetensorsEntry* magnitude = tensors_.magnitude;
    if (magnitude == nullptr) return true;
    ModuleInfo& info = part.info;
    const Shape& shape = magnitude->shape;
    const bool of_lycoris = magnitude->name.ends_with(".dora_scale");
    if (of_lycoris && shape.size() > 1 && shape[0] == 1 && shape[1] != 1) {
      Refuse(*magnitude,
             "has a magnitude for each input, not for each output, which is not "
             "supported",
             fmt::format("[{}, 1]", info.out_features), ShapeString(shape),
             Reason::kUnsupportedAdapter);
      return false;
    }
    if (!checks_.Vector(*magnitude, path_, info.out_features)) return false;
    info.has_magnitude = true;
    info.magnitude_dtype = magnitude->dtype;
    info.magnitude_shape = {info.out_features};  // as PEFT has it
    if (!info.kernel.empty()) {
      info.magnitude_shape.assign(2 + info.kernel.size(), 1);
      info.magnitude_shape[1] = info.out_features;
    }
    part.Add(*magnitude, TensorRole::kMagnitude);
    return true;
  }

  bool AddBias(PlannedPart& part) {
    if (tensors_.up_bias == nullptr) return true;
    if (!checks_.Vector(*tensors_.up_bias, path_, part.info.out_features)) return false;
    part.info.has_lora_bias = true;
    part.info.lora_bias_dtype = tensors_.up_bias->dtype;
    part.Add(*tensors_.up_bias, TensorRole::kLoraBias);
    return true;
  }

  const std::string& path_;
  const DiffusionTensors& tensors_;
  TensorChecks& checks_;
};

}  // namespace

const SafetensorsEntry& DiffusionTensors::Any() const {
  for (const SafetensorsEntry* tensor : {down, up, magnitude, up_bias}) {
    if (tensor != nullptr) return *tensor;
  }
  return *alpha;
}

DiffusionModules SortDiffusionTensors(const SafetensorsHeader& header,
                                      DiffusionKey (*parse)(std::string_view name),
                                      TensorChecks& checks) {
  DiffusionModules modules;
  for (const SafetensorsEntry& tensor : header.tensors) {
    const auto refuse = [&](Reason reason, std::string_view module, std::string what) {
      checks.Refuse(
          {.reason = reason, .tensor = &tensor, .module = module, .what = std::move(what)});
    };
    if (const std::string_view fault = NameFault(tensor.name); !fault.empty()) {
      refuse(Reason::kInvalidAdapter, "", std::string(fault));
      continue;
    }
    DiffusionKey key = parse(tensor.name);
    if (key.part == DiffusionPart::kRefused) {
      refuse(Reason::kUnsupportedAdapter, key.module, fmt::format("is a part of {}", key.why));
      continue;
    }
    if (key.part == DiffusionPart::kUnknown) {
      refuse(Reason::kInvalidAdapter, "",
             "is not explained by any rule of its format; ignoring it could change the result");
      continue;
    }
    const SafetensorsEntry*& place =
        *PlaceOf(key.part, modules[{std::move(key.component), key.module}]);
    if (place != nullptr) {
      refuse(Reason::kInvalidAdapter, key.module,
             fmt::format("is the same tensor as {}", Quoted(place->name)));
      continue;
    }
    place = &tensor;
  }
  return modules;
}

AlphaValues ReadAlphas(const InputFile& weights, const DiffusionModules& modules,
                       TensorChecks& checks) {
  AlphaValues values;
  for (const auto& [key, tensors] : modules) {
    if (tensors.alpha == nullptr) continue;
    const auto value = ReadAlpha(weights, *tensors.alpha, checks);
    if (value) values.emplace(tensors.alpha->name, *value);
  }
  return values;
}

std::optional<PlannedPart> PlanDiffusionPair(const std::string& path,
                                             const DiffusionTensors& tensors,
                                             const AlphaValues& alphas, ZeroAlpha zero,
                                             TensorChecks& checks) {
  std::optional<PlannedPart> part = DiffusionPairPlanner(path, tensors, checks).Plan();
  if (!part) return std::nullopt;
  ModuleInfo& info = part->info;
  const auto rank = static_cast<double>(info.rank);
  info.alpha = rank;
  if (tensors.alpha != nullptr) {
    const auto found = alphas.find(tensors.alpha->name);
    if (found == alphas.end()) return std::nullopt;  // refused already
    if (found->second != 0 || zero == ZeroAlpha::kIsZero) info.alpha = found->second;
  }
  info.scale = info.alpha / rank;
  return part;
}

}  // namespace adapterd
