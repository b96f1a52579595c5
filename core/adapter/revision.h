// The content digest of an adapter.
//
// Revision = SHA-256 of "adapterd-revision-v1\n" followed by one line a tensor role, sorted
// bytewise:
//   path TAB role TAB scale TAB dtype TAB dims TAB sha256 LF
// scale: the 16 hex digits of the double; dims joined by "x"; sha256: of the tensor's bytes as
// stored. Equal content gives equal revisions whatever folder, key order, prefix or dtype of alpha
// it came in.
#ifndef ADAPTERD_CORE_ADAPTER_REVISION_H_
#define ADAPTERD_CORE_ADAPTER_REVISION_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor/dtype.h"

namespace adapterd {

// Collects lines in any order. Not thread-safe.
class RevisionBuilder {
 public:
  // `role` is "lora_a" or "lora_b"; `sha256` the hex digest of the tensor's bytes.
  void Add(std::string_view path, std::string_view role, double scale, DType dtype,
           std::span<const int64_t> shape, std::string_view sha256) {
    Add(path, role, scale, DTypeName(dtype), shape, sha256);
  }
  // Of elements that are stored in a form which is no DType ("Q8_0").
  void Add(std::string_view path, std::string_view role, double scale, std::string_view dtype,
           std::span<const int64_t> shape, std::string_view sha256);

  // 64 lower-case hex digits.
  std::string Finish();

 private:
  std::vector<std::string> lines_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_REVISION_H_
