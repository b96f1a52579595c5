#pragma once
#include <string>
#include <utility>
#include <vector>
#include "absl/status/status.h"
#include "core/formats/input_file.h"
namespace adapterd {
class BaseModel {
 public:
  void AddIdentity(std::vector<std::pair<std::string, FileIdentity>>&) const {}
  absl::Status CheckUnchanged() const { return absl::OkStatus(); }
};
}
