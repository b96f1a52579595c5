// BD-LoRA of PEFT: one of a pair's factors is block-diagonal and stored without its zeros.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_BLOCK_DIAGONAL_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_BLOCK_DIAGONAL_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_config.h"
#include "core/tensor/tensor.h"

namespace adapterd {

enum class BlockFactor { kNone, kA, kB };

// Which factor of the module is stored in blocks. PEFT looks for the config's texts in the name of
// the module. nullopt, with the reason reported for `tensor`: INVALID_ADAPTER when both factors are
// or, unless the config allows it, none is; UNSUPPORTED_ADAPTER when a text is in the path but not
// in its last component, where versions of PEFT may differ.
std::optional<BlockFactor> BlockFactorOf(const BlockDiagonals& config, std::string_view path,
                                         const SafetensorsEntry& tensor, TensorChecks& checks);

// Gives a pair, started with the shapes in the file, those of its whole factors, and the fold that
// makes them. False: refused, INVALID_ADAPTER when a side is no multiple of the blocks.
bool ExpandBlocks(BlockFactor factor, int64_t blocks, PlannedPart& part, TensorChecks& checks);

// [rows, blocks x cols] of stored [rows, cols], which holds the blocks one below the other: block
// i, rows [i rows / blocks, (i + 1) rows / blocks), goes to the columns from i cols on; all else is
// zero. REQUIRES: rows are a multiple of `blocks`.
Tensor BlockDiagonal(const Tensor& stored, int64_t blocks);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_BLOCK_DIAGONAL_H_
