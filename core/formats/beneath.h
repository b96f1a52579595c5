// Opening by path without ever leaving a folder.
#ifndef ADAPTERD_CORE_FORMATS_BENEATH_H_
#define ADAPTERD_CORE_FORMATS_BENEATH_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {

// Who resolves the path. Both follow symlinks that stay below the folder, both refuse absolute ones
// even when they point back inside, and neither can be raced out of the folder.
enum class BeneathStrategy {
  kAutomatic,  // openat2, and the walk where the kernel or a seccomp filter forbids that
  kOpenat2,    // openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS), Linux 5.6
  kWalk,       // component by component with O_NOFOLLOW; links are read and walked by us
};

// `path` without empty and "." components and trailing slashes; "." when nothing is left.
// PATH_OUTSIDE_ROOT when it is absolute or has a ".." component, even one that would stay inside:
// nobody needs such a source, and a check of the text alone holds whatever the disk looks like.
absl::StatusOr<std::string> NormalizeBelow(std::string_view path);

// What `path` leads to below `folder`, as an O_PATH descriptor: it pins the file and says what it
// is (fstat) without opening it, so FIFOs and devices notice nothing. PATH_OUTSIDE_ROOT: a symlink
// is absolute or climbs above `folder`. SOURCE_NOT_FOUND: nothing there, a loop of symlinks, or a
// folder that may not be searched. SOURCE_UNAVAILABLE: the disk or the system fails. REQUIRES:
// `path` is normalized.
absl::StatusOr<ScopedFd> OpenBeneath(int folder, const std::string& path,
                                     BeneathStrategy strategy = BeneathStrategy::kAutomatic);

inline constexpr int kMaxFolderEntries = 100'000;  // a folder is listed in memory

// Names of all entries of `folder` (a descriptor, O_PATH will do) but "." and "..", sorted. `path`
// is what errors call it: SOURCE_NOT_FOUND when it has more than kMaxFolderEntries or may not be
// read, SOURCE_UNAVAILABLE.
absl::StatusOr<std::vector<std::string>> ListFolder(const ScopedFd& folder, std::string_view path);

// The status for `error` (an errno) on `path`, as OpenBeneath gives it.
absl::Status PathError(int error, std::string_view path);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_BENEATH_H_
