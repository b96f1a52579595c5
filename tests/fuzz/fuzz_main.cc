// libFuzzer's entry for the target that the function ADAPTERD_FUZZ_TARGET gives.
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  std::atexit([] { adapterd::fuzz::PrintReached(adapterd::fuzz::ADAPTERD_FUZZ_TARGET()); });
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  adapterd::fuzz::ADAPTERD_FUZZ_TARGET().run({reinterpret_cast<const char*>(data), size});
  return 0;
}
