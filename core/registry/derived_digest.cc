#include "core/registry/derived_digest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cstdint>
#include <span>

#include "core/base/sha256.h"

namespace adapterd {
namespace {

std::string LineOf(const ModuleInfo& module, const ModuleExtras& extras) {
  const uint64_t scale = std::bit_cast<uint64_t>(extras.embedding_scale.value_or(0));
  std::string line = fmt::format(
      "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{:016x}\t{}", module.path,
      static_cast<int>(module.kind), module.in_features, module.out_features, module.rank,
      module.experts, fmt::join(module.kernel.begin(), module.kernel.end(), "x"), module.parameter,
      fmt::join(module.token_ids, ","), extras.embedding_scale.has_value(), scale,
      extras.dora ? static_cast<int64_t>(extras.dora->base_bias.size()) : int64_t{-1});
  // Only where there are any: digests that were written before stay as they are.
  if (module.rope_heads > 0) line += fmt::format("\theads {}", module.rope_heads);
  return line + "\n";
}

}  // namespace

std::string DerivedDigest(const AdapterManifest& manifest,
                          const std::vector<ModuleExtras>& extras) {
  Sha256 digest;
  digest.Update(std::string_view("adapterd-derived-v1\n"));
  for (size_t i = 0; i < manifest.modules.size(); ++i) {
    digest.Update(LineOf(manifest.modules[i], extras[i]));
    if (!extras[i].dora) continue;
    digest.Update(std::as_bytes(std::span(extras[i].dora->gain)));
    digest.Update(std::as_bytes(std::span(extras[i].dora->base_bias)));
  }
  return digest.FinishHex();
}

}  // namespace adapterd
