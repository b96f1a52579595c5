#include "core/registry/load_checks.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

// A write within one tick of the file system's clock does not move ctime again, so a file that
// changed this shortly before it was read proves nothing by an unchanged ctime. Coarse file systems
// tick in seconds, and show it by times without a fraction.
constexpr absl::Duration kFineTick = absl::Milliseconds(100);
constexpr absl::Duration kCoarseTick = absl::Seconds(3);

}  // namespace

bool ProvesUnchanged(const SourceIdentity& identity, absl::Time opened_at) {
  for (const auto& [name, file] : identity.files) {
    const bool coarse = file.changed_ns % 1'000'000'000 == 0;
    const absl::Time changed = absl::FromUnixNanos(file.changed_ns);
    if (changed + (coarse ? kCoarseTick : kFineTick) > opened_at) return false;
  }
  return true;
}

absl::Status CheckDigest(const LoadRequest& request, AdapterReader& reader,
                         const Cancellation& cancellation, ContentDigest& digest) {
  if (request.expected_digest.empty() || request.expected_digest == digest.revision) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(digest.weights_sha256, reader.WeightsDigest(cancellation));
  if (request.expected_digest == digest.weights_sha256) return absl::OkStatus();
  return Error(Reason::kDigestMismatch,
               fmt::format("adapter \"{}\" has revision {} (weights file {}), not the expected "
                           "digest {}",
                           request.name, digest.revision, digest.weights_sha256,
                           request.expected_digest))
      .With("expected", request.expected_digest)
      .With("actual", digest.revision);
}

absl::Status CheckSuccession(const LoadRequest& request, const LoadedState& current) {
  if (request.successor_of.empty() && request.etag.empty()) return absl::OkStatus();
  if (current.info == nullptr) return NotFound(request.name);
  if (!request.etag.empty() && request.etag != current.etag) {
    return EtagMismatch(request.name, request.etag, current.etag);
  }
  if (!request.successor_of.empty() && request.successor_of != current.info->revision) {
    return RevisionMismatch(request.name, request.successor_of, current.info->revision);
  }
  return absl::OkStatus();
}

absl::Status IsThereWithOther(const std::string& what, const LoadRequest& request,
                              const std::string& revision, const LoadedState& current) {
  const std::string& actual = current.info->revision;
  return Error(Reason::kAdapterExists,
               fmt::format("adapter \"{}\" is loaded with other {} (revision {}); set replace to "
                           "swap it",
                           request.name, what, actual))
      .With("adapter", request.name)
      .With("expected", revision)
      .With("actual", actual);
}

absl::StatusOr<Comparison> Compare(const LoadRequest& request, const std::string& revision,
                                   const AdapterManifest& manifest, const LoadedState& current) {
  const bool same_content =
      revision == current.info->revision &&
      request.source.base_checkpoint == current.info->source.base_checkpoint &&
      request.source.hosted_base == current.info->source.hosted_base &&
      request.source.head_counts == current.info->source.head_counts &&
      manifest.base_model == current.info->description.base_model;
  const bool same_options = request.keep_options ||
                            (request.pinned == current.pinned && request.labels == current.labels);
  if (same_content && same_options) return Comparison::kSame;
  if (!request.replace) {
    return IsThereWithOther(same_content ? "options" : "content", request, revision, current);
  }
  if (request.owner != current.owner) {
    return Error(Reason::kAdapterExists,
                 fmt::format("adapter \"{}\" belongs to {}", request.name,
                             current.owner == AdapterOwner::kFolder ? "the watched folder"
                                                                    : "clients of the API"))
        .With("adapter", request.name);
  }
  return same_content ? Comparison::kOtherOptions : Comparison::kOtherContent;
}

bool HasSameBase(const LoadRequest& request, const AdapterReader& reader,
                 const LoadedState& current) {
  if (request.source.base_checkpoint != current.info->source.base_checkpoint ||
      request.source.hosted_base != current.info->source.hosted_base ||
      request.source.head_counts != current.info->source.head_counts) {
    return false;
  }
  return !request.source.has_base() || reader.identity() == current.identity;
}

std::string PublicId(std::string id_template, const std::string& name,
                     const std::string& base_model) {
  const auto substitute = [&id_template](const std::string& key, const std::string& value) {
    for (size_t at = 0; (at = id_template.find(key, at)) != std::string::npos; at += value.size()) {
      id_template.replace(at, key.size(), value);
    }
  };
  substitute("{name}", name);  // first: a name holds no braces, a base model may
  substitute("{base}", base_model);
  return id_template;
}

}  // namespace adapterd
