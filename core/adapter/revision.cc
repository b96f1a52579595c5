#include "core/adapter/revision.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>

#include "core/base/sha256.h"

namespace adapterd {

void RevisionBuilder::Add(std::string_view path, std::string_view role, double scale,
                          std::string_view dtype, std::span<const int64_t> shape,
                          std::string_view sha256) {
  lines_.push_back(fmt::format("{}\t{}\t{:016x}\t{}\t{}\t{}\n", path, role,
                               std::bit_cast<uint64_t>(scale), dtype, fmt::join(shape, "x"),
                               sha256));
}

std::string RevisionBuilder::Finish() {
  std::sort(lines_.begin(), lines_.end());
  Sha256 digest;
  digest.Update("adapterd-revision-v1\n");
  for (const std::string& line : lines_) digest.Update(line);
  return digest.FinishHex();
}

}  // namespace adapterd
