// Debian's gRPC hands calls from thread to thread by atomics that ThreadSanitizer does not see.
// Here every call into gRPC's core, and every lock and allocation of its own, is made a meeting
// point: whoever comes by sees all that was written before others did. That hides races between
// threads that meet here, so what can be tested without gRPC is tested without it.
#ifdef __SANITIZE_THREAD__

#include <dlfcn.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/sync.h>
#include <sanitizer/tsan_interface.h>

namespace {

char meeting_point;

class Meet {
 public:
  Meet() { Pass(); }
  ~Meet() { Pass(); }

 private:
  static void Pass() {
    __tsan_release(&meeting_point);
    __tsan_acquire(&meeting_point);
  }
};

template <typename Function>
Function* Real(Function* /*own*/, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// Defines `name` to call the library's own between two meetings.
#define ADAPTERD_MEETS(result, name, parameters, arguments) \
  result name parameters {                                  \
    static auto* const real = Real(&name, #name);           \
    const Meet meet;                                        \
    return real arguments;                                  \
  }

extern "C" {

ADAPTERD_MEETS(void*, gpr_malloc, (size_t size), (size))
ADAPTERD_MEETS(void*, gpr_zalloc, (size_t size), (size))
ADAPTERD_MEETS(void*, gpr_realloc, (void* old, size_t size), (old, size))
ADAPTERD_MEETS(void, gpr_free, (void* memory), (memory))
ADAPTERD_MEETS(void*, gpr_malloc_aligned, (size_t size, size_t alignment), (size, alignment))
ADAPTERD_MEETS(void, gpr_free_aligned, (void* memory), (memory))
ADAPTERD_MEETS(void, gpr_mu_lock, (gpr_mu * mutex), (mutex))
ADAPTERD_MEETS(void, gpr_mu_unlock, (gpr_mu * mutex), (mutex))
ADAPTERD_MEETS(int, gpr_cv_wait, (gpr_cv * condition, gpr_mu* mutex, gpr_timespec until),
               (condition, mutex, until))
ADAPTERD_MEETS(void, gpr_ref, (gpr_refcount * count), (count))
ADAPTERD_MEETS(int, gpr_unref, (gpr_refcount * count), (count))
ADAPTERD_MEETS(grpc_call_error, grpc_call_start_batch,
               (grpc_call * call, const grpc_op* ops, size_t count, void* tag, void* reserved),
               (call, ops, count, tag, reserved))
ADAPTERD_MEETS(void*, grpc_call_arena_alloc, (grpc_call * call, size_t size), (call, size))
ADAPTERD_MEETS(void, grpc_call_ref, (grpc_call * call), (call))
ADAPTERD_MEETS(void, grpc_call_unref, (grpc_call * call), (call))
ADAPTERD_MEETS(grpc_event, grpc_completion_queue_next,
               (grpc_completion_queue * queue, gpr_timespec deadline, void* reserved),
               (queue, deadline, reserved))
ADAPTERD_MEETS(grpc_event, grpc_completion_queue_pluck,
               (grpc_completion_queue * queue, void* tag, gpr_timespec deadline, void* reserved),
               (queue, tag, deadline, reserved))
ADAPTERD_MEETS(int, grpc_byte_buffer_reader_init,
               (grpc_byte_buffer_reader * reader, grpc_byte_buffer* buffer), (reader, buffer))
ADAPTERD_MEETS(void, grpc_byte_buffer_reader_destroy, (grpc_byte_buffer_reader * reader), (reader))
ADAPTERD_MEETS(void, grpc_byte_buffer_destroy, (grpc_byte_buffer * buffer), (buffer))
ADAPTERD_MEETS(size_t, grpc_byte_buffer_length, (grpc_byte_buffer * buffer), (buffer))
ADAPTERD_MEETS(void, grpc_slice_unref, (grpc_slice slice), (slice))
ADAPTERD_MEETS(grpc_slice, grpc_slice_ref, (grpc_slice slice), (slice))
ADAPTERD_MEETS(void, grpc_metadata_array_init, (grpc_metadata_array * array), (array))
ADAPTERD_MEETS(void, grpc_metadata_array_destroy, (grpc_metadata_array * array), (array))

}  // extern "C"

#endif  // __SANITIZE_THREAD__
