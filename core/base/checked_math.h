// Arithmetic on sizes that come from outside: nothing wraps.
#ifndef ADAPTERD_CORE_BASE_CHECKED_MATH_H_
#define ADAPTERD_CORE_BASE_CHECKED_MATH_H_

#include <concepts>
#include <optional>

namespace adapterd {

template <std::integral T>
std::optional<T> CheckedAdd(T a, T b) {
  T result;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

template <std::integral T>
std::optional<T> CheckedMul(T a, T b) {
  T result;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// REQUIRES: multiple > 0, value >= 0 and value + multiple does not overflow.
template <std::integral T>
constexpr T RoundUp(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <std::integral T>
constexpr T CeilDiv(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_CHECKED_MATH_H_
