#!/usr/bin/env bash
# Brings docker-compose.yml up for real and looks whether everything in it works; nothing stays.
#
#   scripts/compose_trial.sh
#
# Needs docker with a running daemon and the compose plugin, and the image of ./dev image. Where Prometheus' image cannot be
# pulled, Debian's package takes its place under its name; where Grafana's cannot, Grafana is left out.
set -euo pipefail
cd "$(dirname "$0")/.."

compose() { docker compose --project-name adapterd-trial "$@"; }

die() {
  echo "compose_trial: $*" >&2
  compose ps --all >&2
  compose logs --tail 20 >&2
  exit 1
}

have_image() { docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" >/dev/null 2>&1; }
image_of() { compose config --format json | python3 -c "import json, sys; print(json.load(sys.stdin)['services']['$1']['image'])"; }
ask() { curl --silent --show-error --fail --max-time 10 "$@"; }

debian_prometheus() { # with the entry point, the folders and the wget of the real image
  docker build --quiet --network host --tag "$1" - >/dev/null <<'END'
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget && mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
END
}

services=(adapterd prometheus)
prometheus=$(image_of prometheus)
have_image "$prometheus" || { echo "$prometheus: Debian's package instead"; debian_prometheus "$prometheus"; }
if have_image "$(image_of grafana)"; then services+=(grafana); else echo "grafana: no image, left out"; fi

trap 'compose down --volumes --remove-orphans >/dev/null 2>&1' EXIT
compose up --detach --wait --wait-timeout 120 "${services[@]}" || die "not healthy"
compose ps --format '{{.Service}}: {{.Status}}'

echo "smoke: $(compose run --rm smoke 2>&1 | tail -n 1)"
[[ $(ask http://127.0.0.1:9464/readyz) ]] || die "the admin port does not answer"

deadline=$((SECONDS + 60))
until value=$(ask 'http://127.0.0.1:9090/api/v1/query' --data-urlencode 'query=up{job="adapterd"}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["result"][0]["value"][1])' 2>/dev/null) && [[ $value == 1 ]]; do
  ((SECONDS < deadline)) || die "Prometheus does not scrape adapterd"
  sleep 1
done
applied='adapterd_apply_rows_total >= 1'
until [[ $(ask 'http://127.0.0.1:9090/api/v1/query' --data-urlencode "query=$applied") == *'"value"'* ]]; do
  ((SECONDS < deadline)) || die "Prometheus does not have what smoke did"
  sleep 1
done
series=$(ask 'http://127.0.0.1:9090/api/v1/query' --data-urlencode 'query=count({job="adapterd"})')
rules=$(ask 'http://127.0.0.1:9090/api/v1/rules')
python3 - "$series" "$rules" <<'END' || die "a rule has an error"
import json, sys
series, rules = (json.loads(text)["data"] for text in sys.argv[1:])
rules = [rule for group in rules["groups"] for rule in group["rules"]]
errors = [rule["name"] for rule in rules if rule.get("lastError")]
print(f"prometheus: up, {series['result'][0]['value'][1]} series of adapterd, {len(rules)} rules, errors: {errors or 'none'}")
sys.exit(bool(errors or not rules))
END

begin=$SECONDS
compose stop adapterd >/dev/null 2>&1
code=$(docker inspect --format '{{.State.ExitCode}}' "$(compose ps --all --quiet adapterd)")
[[ $code == 0 ]] || die "adapterd ended with $code"
echo "adapterd: stopped with code 0 after $((SECONDS - begin)) s"
compose down --volumes --remove-orphans >/dev/null 2>&1
left=$(docker ps --all --quiet --filter label=com.docker.compose.project=adapterd-trial
  docker volume ls --quiet --filter label=com.docker.compose.project=adapterd-trial)
[[ -z $left ]] || die "left behind: $left"
echo "nothing is left"
