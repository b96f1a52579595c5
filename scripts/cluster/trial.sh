#!/usr/bin/env bash
# The chart's whole life on the cluster of node.sh: what an operator does with it, each step checked.
#
#   scripts/cluster/node.sh TOOLS IMAGE_ARCHIVE scripts/cluster/trial.sh FORMER_CHART IMAGE
#
# FORMER_CHART is the chart of an earlier release, IMAGE the name of the image in the archive.
set -euo pipefail

[[ $# == 2 ]] || { echo "usage: trial.sh FORMER_CHART IMAGE" >&2; exit 2; }
former=$1 image=$2
cd "$(dirname "$0")/../.."
chart=helm/adapterd namespace=ml python=/usr/bin/python3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() {
  echo "trial: $*" >&2
  kubectl --namespace $namespace get pods,events >&2 || true
  exit 1
}

step() { printf '\n[%3d s] %s\n' $SECONDS "$*"; }
kube() { kubectl --namespace $namespace "$@"; }
release() { helm --namespace $namespace "$@"; }
pods() { kube get pods --selector app.kubernetes.io/instance=adapterd "$@"; }

stubs() {
  mkdir "$work/stubs"
  # shellcheck disable=SC2046  # no file of ours has a space in its name
  protoc -I proto --python_out="$work/stubs" --grpc_python_out="$work/stubs" \
    --plugin="protoc-gen-grpc_python=$(command -v grpc_python_plugin)" $(find proto -name '*.proto')
}

begin_calls() { # NAME TARGET
  "$python" scripts/cluster/calls.py "$work/stubs" "$work/$1" "$2" &
  calls[$1]=$!
}

# A server's last moment: gRPC closes the connection, and cuts off a call that crosses that. Who calls on one connection and
# does not retry may lose one call with each pod that goes; who does as clients.md says must lose none.
end_calls() { # NAME ALLOWED
  kill "${calls[$1]}"
  wait "${calls[$1]}" || die "calls.py failed"
  "$python" - "$work/$1" "$@" <<'END' || die "a call was lost or answered wrongly"
import json, sys
(result,) = json.load(open(sys.argv[1])).values()
failed = sum(result["errors"].values())
print(f"{sys.argv[2]}: {result['calls']} calls, {result['wrong']} wrong, {failed} failed, slowest {result['slowest_ms']} ms")
for error, count in result["errors"].items():
    print(f"  {count} x {error}")
at_close = all(error.startswith(("UNAVAILABLE", "CANCELLED")) for error in result["errors"])
sys.exit(not (result["calls"] > 100 and not result["wrong"] and at_close and failed <= int(sys.argv[3])))
END
}

smoke() { # helm test, which removes its pod when all went well
  release test adapterd --timeout 60s >"$work/smoke" 2>&1 ||
    { cat "$work/smoke"; kube logs adapterd-smoke || true; die "helm test failed"; }
  grep '^Phase' "$work/smoke"
}

all_ready() { # REPLICAS, when those that go are gone
  local ready end=$((SECONDS + 60))
  until (($(pods --output name | wc -l) == $1)); do
    ((SECONDS < end)) || die "$1 pods were expected"
    sleep 0.5
  done
  ready=$(pods -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[0].restartCount}{"\n"}{end}')
  [[ $(grep -cx 'True 0' <<<"$ready") == "$1" ]] || die "not $1 pods that are ready and never restarted, but: $ready"
  echo "$1 pods ready, no restarts"
}

nothing_left() { # of the release, whatever its kind
  local kinds
  kinds=$(kubectl api-resources --namespaced --verbs list --output name | grep -vE '^(events|endpoints$)' | paste -sd,)
  kube wait --for delete pod --selector app.kubernetes.io/instance=adapterd --timeout 90s >/dev/null 2>&1 || true
  sleep 1 # the garbage collector's
  local left
  left=$(kube get "$kinds" --selector app.kubernetes.io/instance=adapterd --output name
    kube get "$kinds" --output name | grep adapterd || true)
  [[ -z $left ]] || die "left behind: $left"
  echo "nothing of the release is left, of $(tr ',' '\n' <<<"$kinds" | wc -l) kinds of objects"
}

step "A namespace under the restricted Pod Security Standard, with the toy adapter in a ConfigMap"
kubectl create namespace $namespace >/dev/null
kubectl label namespace $namespace pod-security.kubernetes.io/enforce=restricted >/dev/null
kube create configmap toy --from-file examples/adapters/toy >/dev/null
stubs
cat >"$work/values.yaml" <<END
replicaCount: 2
image: {repository: ${image%:*}, tag: "${image##*:}", pullPolicy: Never}
adapters: {configMap: toy, load: [toy=toy]}
probes: {startup: {periodSeconds: 1}}
resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 256Mi}}
END

step "helm install of the former chart"
release install adapterd "$former" --values "$work/values.yaml" --wait --timeout 120s | grep -E '^(STATUS|REVISION)'
all_ready 2

declare -A calls
step "Calls begin, on one connection and without retries. helm upgrade to this chart"
begin_calls one-connection "$(kube get service adapterd -o 'jsonpath={.spec.clusterIP}'):50051"
cat >>"$work/values.yaml" <<END
podDisruptionBudget: {enabled: true}
networkPolicy: {enabled: true}
autoscaling: {enabled: false}
metrics: {dashboards: {enabled: true}}
END
release upgrade adapterd $chart --values "$work/values.yaml" --wait --timeout 180s | grep -E '^(STATUS|REVISION)'
all_ready 2

step "helm test. Calls as clients.md says begin, too: the former chart had no headless service"
begin_calls round-robin "dns:///adapterd-headless.$namespace.svc.cluster.local:50051"
smoke

step "What Prometheus would read"
metrics=$(curl --silent --fail "http://adapterd.$namespace.svc.cluster.local:9464/metrics")
grep -E '^adapterd_(build_info|adapters\{state="ready"|adapters_loaded)' <<<"$metrics" || grep -cE '^adapterd_' <<<"$metrics"

step "helm upgrade that changes the pods: a rolling update to 3 replicas"
release upgrade adapterd $chart --values "$work/values.yaml" --set replicaCount=3,server.logLevel=warning --wait --timeout 180s |
  grep -E '^(STATUS|REVISION)'
all_ready 3

step "A pod is deleted"
kube delete "$(pods --output name | head -n 1)" >/dev/null
kube rollout status deployment/adapterd --timeout 120s
all_ready 3

step "helm rollback to this chart's first revision"
release rollback adapterd 2 --wait --timeout 180s
all_ready 2
end_calls round-robin 0

step "helm rollback to the former chart"
release rollback adapterd 1 --wait --timeout 180s
all_ready 2
[[ -z $(kube get pdb --output name) ]] || die "the rollback left the disruption budget"
end_calls one-connection 10 # pods that went

step "helm uninstall"
release uninstall adapterd --wait --timeout 90s
nothing_left

step "A StatefulSet, its volume, and an adapter that is loaded by RPC"
mkdir -p "$work/volume"
chown 65532:65532 "$work/volume"
kubectl create -f - >/dev/null <<END
apiVersion: v1
kind: PersistentVolume
metadata: {name: by-hand}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  hostPath: {path: $work/volume}
END
cat >"$work/persistent.yaml" <<END
image: {repository: ${image%:*}, tag: "${image##*:}", pullPolicy: Never}
adapters: {configMap: toy}
persistence: {enabled: true, size: 1Gi, storageClass: "-", retentionPolicy: {whenDeleted: Delete}}
probes: {startup: {periodSeconds: 1}}
resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 256Mi}}
END
release install adapterd $chart --values "$work/persistent.yaml" --wait --timeout 120s | grep -E '^STATUS'
smoke
call() { grpcurl -plaintext "${@:2}" "adapterd.$namespace.svc.cluster.local:50051" "adapterd.v1.AdapterService/$1"; }
call LoadAdapter -d '{"name": "toy", "source": "toy"}' >/dev/null
kube delete pod adapterd-0 >/dev/null
kube wait --for condition=Ready pod/adapterd-0 --timeout 60s
call ListAdapters | grep -q '"name": "toy"' || die "the adapter is gone with its pod"
echo "the adapter is there after its pod was deleted"
release uninstall adapterd --wait --timeout 90s
nothing_left
kubectl delete pv by-hand >/dev/null

step "TLS from a secret, and an access policy: helm test shows a token"
host=adapterd.$namespace.svc
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=adapterd -addext "subjectAltName=DNS:$host,DNS:$host.cluster.local" \
  -keyout "$work/tls.key" -out "$work/tls.crt" 2>/dev/null
kube create secret generic adapterd-tls --type kubernetes.io/tls --from-file "$work/tls.crt" --from-file "$work/tls.key" \
  --from-file "ca.crt=$work/tls.crt" >/dev/null
openssl rand -hex 32 >"$work/token"
hash=$(tr -d '\n' <"$work/token" | sha256sum | cut -d' ' -f1)
echo "{\"tokens\": [{\"subject\": \"helm-test\", \"role\": \"admin\", \"sha256\": \"$hash\"}]}" >"$work/policy.json"
kube create secret generic adapterd-policy --from-file "$work/policy.json" >/dev/null
kube create secret generic adapterd-token --from-file "$work/token" >/dev/null
release install adapterd $chart --values "$work/values.yaml" --set tls.existingSecret=adapterd-tls \
  --set auth.existingSecret=adapterd-policy,test.tokenSecret=adapterd-token --wait --timeout 120s | grep -E '^STATUS'
all_ready 2
openssl s_client -connect "$host.cluster.local:50051" -alpn h2 -CAfile "$work/tls.crt" -verify_return_error </dev/null 2>/dev/null |
  grep -aE 'Verif(y return code|ication)|ALPN' | sort -u
smoke
if call ListAdapters >/dev/null 2>&1; then die "plain text was answered"; fi
denied=$(grpcurl -cacert "$work/tls.crt" -authority "$host" "$host.cluster.local:50051" adapterd.v1.AdapterService/ListAdapters 2>&1 || true)
[[ $denied == *Unauthenticated* ]] || die "without a token: $denied"
echo "plain text and calls without a token are refused"
release uninstall adapterd --wait --timeout 90s
kube delete secret adapterd-tls adapterd-policy adapterd-token >/dev/null
nothing_left
