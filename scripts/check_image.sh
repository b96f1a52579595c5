#!/usr/bin/env bash
# What an image of adapterd must be: small, unprivileged, labelled, with its list of packages, and able to serve.
#
#   scripts/check_image.sh TAG
#
# Needs docker with a running daemon, or buildah (which cannot start it: then only what is written in it is looked at).
set -euo pipefail

[[ $# == 1 ]] || { echo "usage: scripts/check_image.sh TAG" >&2; exit 2; }
tag=$1
most_bytes=170000000
sbom=/usr/share/doc/adapterd/adapterd.spdx.json

die() {
  echo "check_image: $tag: $*" >&2
  exit 1
}

if docker version >/dev/null 2>&1; then
  field() { docker image inspect --format "$1" "$tag"; }
  in_image() { docker run --rm --network none --entrypoint "$1" "$tag" "${@:2}"; }
  bytes=$(field '{{.Size}}') config=.Config
else
  field() { buildah inspect --type image --format "$1" "$tag"; }
  container=$(buildah from --pull-never "$tag")
  trap 'buildah rm "$container" >/dev/null' EXIT
  in_image() { buildah run --isolation chroot "$container" -- "$@"; }
  bytes=$(buildah images --json "$tag" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["size"])') config=.Docker.Config
  [[ $bytes =~ ^[0-9]+$ ]] || bytes=$(in_image du -sbx / 2>/dev/null | cut -f1)
fi

((bytes < most_bytes)) || die "$bytes bytes, but at most $most_bytes are allowed"
[[ $(field "{{$config.User}}") == 65532:65532 ]] || die "does not run as user 65532"
for label in title licenses version revision base.name; do
  [[ -n $(field "{{index $config.Labels \"org.opencontainers.image.$label\"}}") ]] || die "no label $label"
done
packages=$(in_image cat "$sbom" | python3 -c '
import json, sys
packages = [each["name"] for each in json.load(sys.stdin)["packages"]]
missing = {"adapterd", "libc6", "libdnnl2", "libgrpc++1.51", "libssl3"} - set(packages)
sys.exit(f"the list of packages lacks {missing}") if missing else print(len(packages) - 1)')
version=$(in_image adapterd --version)
[[ $version == *"$(field "{{index $config.Labels \"org.opencontainers.image.version\"}}")"* ]] || die "is $version"
# Starts as Kubernetes would start it.
if [[ $config == .Config ]]; then
  docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --entrypoint sh "$tag" -c '
      adapterd --grpc-address 127.0.0.1:50051 --admin-address 127.0.0.1:9464 --log-level warning & server=$!
      for _ in $(seq 100); do adapterd_health 127.0.0.1:50051 2>/dev/null && break; sleep 0.1; done
      adapterd_smoke 127.0.0.1:50051 && kill "$server" && wait "$server"' >/dev/null || die "does not serve"
fi
echo "$tag: $((bytes / 1000000)) MB, user 65532, $packages packages linked, $version"
