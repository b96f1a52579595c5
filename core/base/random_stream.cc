#include "core/base/random_stream.h"

#include <string>

#include "core/base/sha256.h"

namespace adapterd {

RandomStream RandomStream::For(uint64_t seed, std::string_view purpose) {
  Sha256 digest;
  digest.Update("adapterd-random-v1\n");
  digest.Update(std::to_string(seed));
  digest.Update("\n");
  digest.Update(purpose);
  return RandomStream(std::stoull(digest.FinishHex().substr(0, 16), nullptr, 16));
}

}  // namespace adapterd
