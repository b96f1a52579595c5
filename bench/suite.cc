#include "bench/suite.h"

namespace adapterd::bench {

std::span<const Suite> AllSuites() {
  static constexpr Suite kSuites[] = {
      {"kernel",
       "ApplyProjection in process, against oneDNN's best, a roofline, naive loops and PyTorch",
       RunKernelSuite},
      {"segments", "64 rows that name 64 adapters, against reading those", RunSegmentsSuite},
      {"load",
       "AdapterRegistry::Load of files in the page cache, against reading and digesting them",
       RunLoadSuite},
      {"merge", "MergeWeight in process, against memcpy of the weight", RunMergeSuite},
      {"forward", "a base model's product in 4 bits, against the same in BF16", RunForwardSuite},
      {"compose", "one adapter of eight by SVD: a 7B model's, and one module against PEFT",
       RunComposeSuite},
      {"rpc", "a server over loopback TCP and a Unix socket, against raw echoes of the same bytes",
       RunRpcSuite},
      {"overload", "three times as many requests as a server can serve", RunOverloadSuite},
      {"fleet", "a server that knows ten thousand adapters and has memory for a thousand",
       RunFleetSuite},
  };
  return kSuites;
}

}  // namespace adapterd::bench
