// Random numbers that are the same on every machine.
#ifndef ADAPTERD_CORE_BASE_RANDOM_STREAM_H_
#define ADAPTERD_CORE_BASE_RANDOM_STREAM_H_

#include <cstdint>
#include <string_view>

namespace adapterd {

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014; Vigna's
// constants, prng.di.unimi.it/splitmix64.c): whole numbers alone, so that no compiler, libm or CPU
// changes a bit. Passes BigCrush; not for secrets. Not thread-safe; costs about a nanosecond a
// number.
class RandomStream {
 public:
  explicit RandomStream(uint64_t state) : state_(state) {}

  // The stream of `seed` for one purpose: what is drawn for one does not depend on what is drawn
  // for others, nor on their order. Its state is the first 16 hex digits of the SHA-256 of
  // "adapterd-random-v1\n", the seed in decimal, "\n" and `purpose`.
  static RandomStream For(uint64_t seed, std::string_view purpose);

  // Uniform in [0, 2^64).
  uint64_t Next() {
    state_ += kStep;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  // As if Next had been called `count` times.
  void Skip(uint64_t count) { state_ += count * kStep; }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

  uint64_t state_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_RANDOM_STREAM_H_
