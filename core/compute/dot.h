// The elementwise loops of a base product, compiled for what the CPU has. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_DOT_H_
#define ADAPTERD_CORE_COMPUTE_DOT_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace adapterd {

struct DotLoops {
  std::string_view name;
  // Sum of a[i] x b[i], in F32.
  float (*dot)(const float* a, const float* b, int64_t count);
  // values[i] = upper[i] + lower[i] as BF16, good to 2^-16 of the value. REQUIRES: finite values.
  void (*split)(const float* values, int64_t count, std::byte* upper, std::byte* lower);
};

// Those that this CPU runs, the fastest first.
std::vector<DotLoops> DotLoopsVariants();

// The first of them.
const DotLoops& FastestDotLoops();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_DOT_H_
