// ThreadSanitizer sees only code that it has instrumented, and Debian's libraries are not: to it,
// absl::Mutex and absl::Notification order nothing, and every guarded field is a race. The
// definitions here come before the library's own (also for calls from other libraries), call them,
// and tell ThreadSanitizer what they order. Part of every test of a ThreadSanitizer build.
#ifdef __SANITIZE_THREAD__

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <string>
#include <type_traits>

#include "absl/base/options.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {

// ThreadSanitizer's dynamic annotations; no header declares them.
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);

// Libraries that free what they count references of, with counters that cannot be seen.
const char* __tsan_default_suppressions() {
  return "called_from_lib:libabsl_status.so\n"
         "called_from_lib:libabsl_cord.so\n";
}

}  // extern "C"

namespace {

#define ADAPTERD_TEXT_INNER(x) #x
#define ADAPTERD_TEXT(x) ADAPTERD_TEXT_INNER(x)

// The library's own function: `before` and `after` stand around its inline namespace, which
// differs between releases, in the mangled name.
template <typename Function>
Function* Real(const std::string& before, const std::string& after) {
  const std::string release = ADAPTERD_TEXT(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string symbol = before + std::to_string(release.size()) + release + after;
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, symbol.c_str()));
}

// An unlock evaluates the conditions that other threads wait for. It still holds the lock then, but
// has told ThreadSanitizer already that it lets go.
class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

// Calls the library's own `real` on `object`, which is what `this` is.
template <typename Result, typename Object, typename... Args>
Result Call(Result (*real)(Object*, Args...), Object* object,
            const std::remove_reference_t<Args>&... args) {
  const IgnoreReads ignore;
  return real(object, args...);
}

template <typename Object>
void Before(Object* object) {
  __tsan_release(const_cast<void*>(static_cast<const void*>(object)));
}

template <typename Object>
void After(Object* object) {
  __tsan_acquire(const_cast<void*>(static_cast<const void*>(object)));
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const real = Real<void(Mutex*)>("_ZN4absl", "5Mutex4LockEv");
  Call(real, this);
  After(this);
}

void Mutex::Unlock() {
  static auto* const real = Real<void(Mutex*)>("_ZN4absl", "5Mutex6UnlockEv");
  Before(this);
  Call(real, this);
}

void Mutex::ReaderLock() {
  static auto* const real = Real<void(Mutex*)>("_ZN4absl", "5Mutex10ReaderLockEv");
  Call(real, this);
  After(this);
}

void Mutex::ReaderUnlock() {
  static auto* const real = Real<void(Mutex*)>("_ZN4absl", "5Mutex12ReaderUnlockEv");
  Before(this);
  Call(real, this);
}

bool Mutex::TryLock() {
  static auto* const real = Real<bool(Mutex*)>("_ZN4absl", "5Mutex7TryLockEv");
  const bool locked = Call(real, this);
  if (locked) After(this);
  return locked;
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const real =
      Real<void(Mutex*, const Condition&)>("_ZN4absl", "5Mutex8LockWhenERKNS0_9ConditionE");
  Call(real, this, condition);
  After(this);
}

void Mutex::Await(const Condition& condition) {
  static auto* const real =
      Real<void(Mutex*, const Condition&)>("_ZN4absl", "5Mutex5AwaitERKNS0_9ConditionE");
  Before(this);
  Call(real, this, condition);
  After(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const real = Real<bool(Mutex*, const Condition&, Duration)>(
      "_ZN4absl", "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  Before(this);
  const bool met = Call(real, this, condition, timeout);
  After(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static auto* const real = Real<bool(Mutex*, const Condition&, Time)>(
      "_ZN4absl", "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  Before(this);
  const bool met = Call(real, this, condition, deadline);
  After(this);
  return met;
}

void Notification::Notify() {
  static auto* const real = Real<void(Notification*)>("_ZN4absl", "12Notification6NotifyEv");
  Before(this);
  Call(real, this);
}

void Notification::WaitForNotification() const {
  static auto* const real =
      Real<void(const Notification*)>("_ZNK4absl", "12Notification19WaitForNotificationEv");
  Call(real, this);
  After(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const real = Real<bool(const Notification*, Duration)>(
      "_ZNK4absl", "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = Call(real, this, timeout);
  if (notified) After(this);
  return notified;
}

// Copies of a status share a counted text: whoever frees it comes after all who let go of it.
void Status::UnrefNonInlined(uintptr_t rep) {
  static auto* const real = Real<void(uintptr_t)>("_ZN4absl", "6Status15UnrefNonInlinedEm");
  auto* const shared = reinterpret_cast<void*>(rep);
  Before(shared);
  After(shared);
  real(rep);
}

ABSL_NAMESPACE_END
}  // namespace absl

#endif  // __SANITIZE_THREAD__
