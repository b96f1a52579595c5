#!/usr/bin/env bash
# Makes the image's base from Debian's own archive, for where no registry is at hand: what debian:bookworm-slim is, which
# is to say essential packages and apt, without manuals and translations.
#
#   scripts/base_image.sh TAG      prints the image's identity, which pins it: BASE=$(scripts/base_image.sh TAG) ./dev image
#
# Needs mmdebstrap, and docker with a running daemon or buildah. As root, or where user namespaces are allowed.
set -euo pipefail

[[ $# == 1 ]] || { echo "usage: scripts/base_image.sh TAG" >&2; exit 2; }
tag=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the slim images leave out; licences stay.
slim=()
for option in path-exclude=/usr/share/{doc,info,lintian,locale,man}/'*' path-include=/usr/share/doc/'*'/copyright; do
  slim+=("--dpkgopt=$option")
done
# Perl comes only with usrmerge, which has nothing to do where usr-is-merged is.
# shellcheck disable=SC2016  # mmdebstrap gives hooks the folder
mmdebstrap --quiet --variant=minbase --include=usr-is-merged "${slim[@]}" \
  --customize-hook='chroot "$1" apt-get --yes --purge remove perl-modules-5.36' \
  --customize-hook='chroot "$1" apt-get --yes --purge remove libgdbm6 libgdbm-compat4' \
  bookworm "$work/base.tar"

if docker version >/dev/null 2>&1; then
  docker import --change 'CMD ["bash"]' "$work/base.tar" "$tag"
else
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$work/base.tar" / >/dev/null
  buildah config --cmd bash "$container"
  buildah commit --quiet --rm "$container" "$tag"
fi
