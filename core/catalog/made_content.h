// What was made in this process, on its way into the content store.
#ifndef ADAPTERD_CORE_CATALOG_MADE_CONTENT_H_
#define ADAPTERD_CORE_CATALOG_MADE_CONTENT_H_

#include "absl/status/statusor.h"
#include "core/adapter/made_adapter.h"
#include "core/base/cancellation.h"
#include "core/catalog/content_store.h"

namespace adapterd {

// Writes the adapter as a PEFT folder, asking for one tensor after the other, so that no more than
// what `made` holds is in memory. On the calling thread, which waits for the disk. Errors of
// PeftExport and IncomingContent; CANCELLED. After any error nothing is left on the disk.
absl::StatusOr<StoredContent> StoreMade(ContentStore& store, const MadeAdapter& made,
                                        const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_MADE_CONTENT_H_
