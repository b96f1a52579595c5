#!/usr/bin/env bash
# Checks what adapterd is shipped with: the image, the compose file, the chart, the scripts and the API folder.
#
#   scripts/check_packaging.sh TOOLS_DIR
#
# TOOLS_DIR is what scripts/install_tools.sh filled. A check whose tool is not there is skipped, because not every
# machine can build the tools; with ADAPTERD_REQUIRE_TOOLS=1, as in CI, that is a failure.
set -uo pipefail

[[ $# == 1 ]] || { echo "usage: scripts/check_packaging.sh TOOLS_DIR" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
tools=$(realpath -m "$1")
export PATH=$tools/bin:$tools/venv/bin:$PATH HELM_PLUGINS=$tools/plugins
chart=helm/adapterd
kubernetes=1.30.0  # the oldest that the chart supports
failures=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# check NAME "TOOL..." COMMAND [ARGUMENT...]
check() {
  local name=$1 tool output status
  for tool in $2; do
    # Only TOOLS_DIR counts: another version on the PATH would judge differently.
    [[ -e $tools/bin/$tool || -e $tools/venv/bin/$tool || -e $tools/plugins/$tool || -e $tools/$tool ]] && continue
    echo "SKIP $name ($tool missing: run ./dev tools)"
    [[ ${ADAPTERD_REQUIRE_TOOLS:-} != 1 ]] || failures=$((failures + 1))
    return
  done
  shift 2
  output=$(set -e; "$@" 2>&1)  # not in a condition, which would switch set -e off
  status=$?
  if ((status == 0)); then
    echo "ok $name"
  else
    printf 'FAIL %s\n%s\n' "$name" "$output"
    failures=$((failures + 1))
  fi
}

shell_scripts() {
  local file files=()
  for file in dev .ci/run scripts/*.sh scripts/*/*.sh; do
    [[ ! -f $file ]] || files+=("$file")
  done
  shellcheck "${files[@]}"
}

# Templates are not YAML before they are rendered.
yaml_style() {
  yamllint --strict -d '{extends: default, rules: {document-start: disable, line-length: {max: 120}}}' \
    docker-compose.yml compose proto/*.yaml $chart/{Chart,values}.yaml $chart/{ci,monitoring,tests} tests/packaging
}

# The files that the compose file mounts are there, and Prometheus understands its own.
compose_mounts() {
  local mounted
  while read -r mounted; do
    [[ -e $mounted ]] || { echo "docker-compose.yml mounts $mounted, which is not there"; return 1; }
  done < <(python -c '
import yaml
for service in yaml.safe_load(open("docker-compose.yml"))["services"].values():
    for volume in service.get("volumes", []):
        if volume.startswith("./"):
            print(volume.split(":")[0])')
  promtool check config --syntax-only compose/prometheus.yml
}

monitoring_rules() {
  promtool check rules $chart/monitoring/rules.yaml
  promtool test rules $chart/monitoring/rules_test.yaml
  # Every alert has a test in which it fires, and one in which it does not, and operations.md tells what to do.
  local alert
  while read -r alert; do
    grep -qE "alertname: $alert\\b.*exp_alerts: \[\]" $chart/monitoring/rules_test.yaml ||
      { echo "rules_test.yaml: $alert is never silent"; return 1; }
    grep -qxE " +- alertname: $alert" $chart/monitoring/rules_test.yaml ||
      { echo "rules_test.yaml: $alert never fires"; return 1; }
    grep -qF "\`$alert\`" docs/operations.md || { echo "docs/operations.md: nothing about $alert"; return 1; }
  done < <(sed -n 's/^ *- alert: //p' $chart/monitoring/rules.yaml)
}

chart_readme() {
  python scripts/chart_readme.py --check $chart
}

# What an upgrade cannot change in place must be as it was in the former chart, which the repository's history has.
chart_upgrade() {
  local former=$scratch values fields='
import sys, yaml
for each in yaml.safe_load_all(sys.stdin):
    if each and each["kind"] in ("Deployment", "StatefulSet", "Service"):
        print(each["kind"], each["metadata"]["name"], each["spec"]["selector"])'
  for values in "$former/$chart"/{values.yaml,ci/*.yaml}; do
    # Values that people have must still be good.
    render "$kubernetes" "$values" | python -c "$fields" >"$former/now"
    helm template release "$former/$chart" --kube-version "$kubernetes" --values "$values" |
      python -c "$fields" >"$former/before"
    if grep -vxFf "$former/now" "$former/before"; then echo "$values: changed"; return 1; fi
  done
}

chart_lint() {
  local values
  for values in "$chart"/{values.yaml,ci/*.yaml}; do
    helm lint --strict --quiet --kube-version "$kubernetes" $chart --values "$values"
  done
}

# render VERSION VALUES_FILE: a helm that was built from its module believes in a Kubernetes too old for the chart.
render() {
  helm template release $chart --kube-version "$1" --values "$2"
}

# Everything that the chart renders, by default and with each values file, against the schemas of one version.
chart_schemas() {
  local version=$1 values
  for values in "$chart"/{values.yaml,ci/*.yaml}; do
    render "$version" "$values" |
      kubeconform -strict -summary -kubernetes-version "$version" \
        -schema-location "$tools/schemas/{{.NormalizedKubernetesVersion}}/{{.ResourceKind}}{{.KindSuffix}}.json" \
        -schema-location "$tools/schemas/crds/{{.ResourceKind}}{{.KindSuffix}}.json"
  done
}

# Values that must not render, each for the reason in its first line.
chart_refusals() {
  local values expected output failed=0
  for values in tests/packaging/refused_values/*.yaml; do
    expected=$(sed -n '1s/^# expect: //p' "$values")
    if output=$(render "$kubernetes" "$values" 2>&1); then
      echo "$values: rendered"
      failed=1
    elif [[ -z $expected || $output != *"$expected"* ]]; then
      printf '%s: not refused for "%s" but: %s\n' "$values" "$expected" "$output"
      failed=1
    fi
  done
  return $failed
}

# One release has one version, wherever it is written.
versions_agree() {
  local version
  version=$(sed -n 's/^project(adapterd VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
  [[ -n $version ]]
  grep -qx "ARG VERSION=$version" Dockerfile || { echo "Dockerfile: not $version"; return 1; }
  grep -qx "    image: adapterd:$version" docker-compose.yml || { echo "docker-compose.yml: not $version"; return 1; }
  grep -qx "version: $version" $chart/Chart.yaml || { echo "Chart.yaml: version is not $version"; return 1; }
  grep -qx "appVersion: $version" $chart/Chart.yaml || { echo "Chart.yaml: appVersion is not $version"; return 1; }
}

# What the pages tell people to type exists: commands of ./dev, scripts, services, and charts that render as installed.
documented_commands() {
  local pages=(README.md CONTRIBUTING.md docs/*.md docs/adr/*.md "$chart"/README.md Dockerfile docker-compose.yml)
  local word failed=0 known services arguments
  known=$(./dev help)
  while read -r word; do
    grep -qE "^  $word\b" <<<"$known" || { echo "./dev has no command $word"; failed=1; }
  done < <(grep -hoP '\./dev \K[a-z][a-z-]*' "${pages[@]}" | sort -u)
  while read -r word; do
    [[ -e $word ]] || { echo "$word is not there"; failed=1; }
  done < <(grep -hoP '(?<![\w/])scripts/[a-z_/]+\.(sh|py)' "${pages[@]}" | sort -u)
  services=$(python -c 'import yaml; print(*yaml.safe_load(open("docker-compose.yml"))["services"], sep="\n")')
  while read -r word; do
    grep -qx "$word" <<<"$services" || { echo "docker-compose.yml has no service $word"; failed=1; }
  done < <(grep -hoP 'docker compose run --rm \K[a-z]+' "${pages[@]}" | sort -u)
  while read -r -a arguments; do
    helm template "${arguments[@]}" --kube-version "$kubernetes" >/dev/null || { echo "helm install ${arguments[*]}"; failed=1; }
  done < <(grep -hoP '^    helm install \K.*' "${pages[@]}")
  return $failed
}

# Every flag in the chart and variable in the image is one that the server has: it stops at an unknown flag, but would
# ignore an unknown variable.
flags_exist() {
  local help flag values failed=0
  help=$(build/bin/adapterd --help)
  while read -r flag; do
    grep -qE -- "$flag\b" <<<"$help" || { echo "adapterd has no $flag"; failed=1; }
  done < <(
    for values in "$chart"/ci/*.yaml; do
      render "$kubernetes" "$values" | grep -oP '^ +- "?\K--[a-z-]+'
    done
    grep -oP '^ +ADAPTERD_\K[A-Z_]+(?==)' Dockerfile | tr 'A-Z_' 'a-z-' | sed 's/^/--/'
    grep -oP '^ +command: .*' docker-compose.yml | grep -oP -- '--[a-z-]+'
  )
  return $failed
}

# The image names the package of every library that the binaries link themselves, or they would not start there.
image_libraries() {
  local runtime_stage library package failed=0
  runtime_stage=$(sed '1,/^COPY \. \./d' Dockerfile)
  while read -r library; do
    package=$(dpkg -S "*-linux-gnu/$library" | head -n 1 | cut -d: -f1)
    case $package in
      libc6 | libgcc-s1 | libstdc++6) ;;  # what all the others need themselves
      *) grep -qF -- " $package" <<<"$runtime_stage" || { echo "$library needs the package $package"; failed=1; } ;;
    esac
  done < <(readelf -d build/bin/adapterd{,_health,_smoke} | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u)
  return $failed
}

check hadolint hadolint hadolint Dockerfile
check shellcheck shellcheck shell_scripts
check yamllint yamllint yaml_style
check "compose schema" check-jsonschema \
  check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
check "compose mounts" "promtool python" compose_mounts
check "monitoring rules" promtool monitoring_rules
check "proto lint" buf buf lint proto
check "versions agree" "" versions_agree
check "chart lint" helm chart_lint
check "chart unit tests" "helm unittest" helm unittest --strict $chart
check "chart refusals" helm chart_refusals
check "chart switches" python python scripts/chart_switches.py $chart
check "chart README" python chart_readme
check "documented commands" "helm python" documented_commands
if bash scripts/former_chart.sh "$scratch" 2>/dev/null; then
  check "chart upgrade" "helm python" chart_upgrade
else
  echo "SKIP chart upgrade (a checkout without history)"
fi
for schemas in "$tools"/schemas/v*; do
  version=${schemas##*/v}
  check "chart against Kubernetes $version" "helm kubeconform schemas" chart_schemas "$version"
done
if [[ -x build/bin/adapterd && -x build/bin/adapterd_health ]]; then
  check "flags exist" helm flags_exist
  # Package names are those of the image's Debian.
  grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release && check "image libraries" "" image_libraries
fi

((failures == 0))
