// What is legal in an adapter but seldom meant.
#ifndef ADAPTERD_CORE_ADAPTER_SUSPICIONS_H_
#define ADAPTERD_CORE_ADAPTER_SUSPICIONS_H_

#include <string_view>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/problems.h"

namespace adapterd {

// Trained scales are between 0.5 and 32.
inline constexpr double kSuspiciousScale = 100;
// Half of what an F16 holds: the next sum may overflow.
inline constexpr float kSuspiciousMagnitude = 32'752;

// The largest magnitude of a module's elements.
struct ModuleMagnitudes {
  float lora_b = 0;
  float any = 0;
};

// Adds one warning for each kind of suspicion, which counts its modules and names the first:
// B all zeros, a scale above kSuspiciousScale, a rank above the smaller side of the weight, values
// above kSuspiciousMagnitude, no base model. `magnitudes` has one entry a module.
void WarnOfSuspicions(const AdapterManifest& manifest,
                      const std::vector<ModuleMagnitudes>& magnitudes, std::string_view file,
                      ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_SUSPICIONS_H_
