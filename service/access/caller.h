// Who calls, and what a caller may do.
#ifndef ADAPTERD_SERVICE_ACCESS_CALLER_H_
#define ADAPTERD_SERVICE_ACCESS_CALLER_H_

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace adapterd {

// Each may do what those before it may.
enum class Role { kViewer, kUser, kAdmin };

inline constexpr std::array<std::string_view, 3> kRoleNames = {"viewer", "user", "admin"};

inline std::string_view RoleName(Role role) { return kRoleNames[static_cast<size_t>(role)]; }

inline std::optional<Role> RoleFromName(std::string_view name) {
  for (size_t i = 0; i < kRoleNames.size(); ++i) {
    if (kRoleNames[i] == name) return static_cast<Role>(i);
  }
  return std::nullopt;
}

// The subject of calls that show no credentials.
inline constexpr char kAnonymous[] = "anonymous";

struct Caller {
  std::string subject;  // for logs; secret is nothing of it
  Role role = Role::kViewer;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_CALLER_H_
