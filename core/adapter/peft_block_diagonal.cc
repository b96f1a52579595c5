#include "core/adapter/peft_block_diagonal.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/module_index.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

bool AnyIn(const std::vector<std::string>& texts, std::string_view name) {
  return std::any_of(texts.begin(), texts.end(), [name](const std::string& text) {
    return name.find(text) != std::string_view::npos;
  });
}

}  // namespace

std::optional<BlockFactor> BlockFactorOf(const BlockDiagonals& config, std::string_view path,
                                         const SafetensorsEntry& tensor, TensorChecks& checks) {
  const std::string_view target = TargetOf(path);
  const bool a = AnyIn(config.of_a, target);
  const bool b = AnyIn(config.of_b, target);
  const auto refuse = [&](Reason reason, std::string_view what) {
    checks.Refuse({.reason = reason,
                   .tensor = &tensor,
                   .module = path,
                   .what = fmt::format("belongs to module {}, {}", Quoted(path), what)});
    return std::nullopt;
  };
  if (a != AnyIn(config.of_a, path) || b != AnyIn(config.of_b, path)) {
    return refuse(Reason::kUnsupportedAdapter,
                  "for which use_bdlora names a part of the path before its last component");
  }
  if (a && b) {
    return refuse(Reason::kInvalidAdapter, "both of whose factors use_bdlora calls block-diagonal");
  }
  if (!a && !b && config.match_strict) {
    return refuse(Reason::kInvalidAdapter, "of whose factors use_bdlora calls none block-diagonal");
  }
  return a ? BlockFactor::kA : b ? BlockFactor::kB : BlockFactor::kNone;
}

bool ExpandBlocks(BlockFactor factor, int64_t blocks, PlannedPart& part, TensorChecks& checks) {
  if (factor == BlockFactor::kNone) return true;
  const TensorRole role = factor == BlockFactor::kA ? TensorRole::kLoraA : TensorRole::kLoraB;
  PlannedTensor& stored =
      *std::find_if(part.tensors.tensors.begin(), part.tensors.tensors.end(),
                    [role](const PlannedTensor& tensor) { return tensor.role == role; });
  if (stored.shape[0] % blocks != 0) {
    SafetensorsEntry named;
    named.name = stored.name;
    checks.Refuse({.tensor = &named,
                   .module = part.info.path,
                   .what = "does not hold a whole number of rows for each block",
                   .expected = fmt::format("a multiple of {} rows", blocks),
                   .actual = ShapeString(stored.shape)});
    return false;
  }
  // At most as many blocks as rows, so that this is below the elements of the file.
  if (factor == BlockFactor::kA) part.info.in_features *= blocks;
  stored.revision_role = fmt::format("{}_blocks:{}", RoleName(role), blocks);
  part.tensors.fold = [role, blocks](const ModuleInfo& /*info*/, StoredTensors tensors,
                                     const StoredTensors& /*shared*/) {
    Tensor& whole = tensors[static_cast<size_t>(role)];
    whole = BlockDiagonal(whole, blocks);
    return FoldNothing(std::move(tensors));
  };
  return true;
}

Tensor BlockDiagonal(const Tensor& stored, int64_t blocks) {
  const MatrixView from = AsMatrix(stored);
  const int64_t block_rows = from.rows / blocks;
  AlignedBuffer buffer(from.bytes() * blocks);
  std::memset(buffer.data(), 0, buffer.size());
  std::byte* to = buffer.data();
  for (int64_t row = 0; row < from.rows; ++row, to += blocks * from.row_bytes()) {
    std::memcpy(to + row / block_rows * from.row_bytes(), from.data + row * from.row_bytes(),
                from.row_bytes());
  }
  return Tensor(stored.dtype(), {from.rows, blocks * from.cols}, std::move(buffer));
}

}  // namespace adapterd
