#!/usr/bin/env bash
# A real Kubernetes of one node on this machine, for as long as a command runs in it.
#
#   scripts/cluster/node.sh TOOLS_DIR IMAGE_ARCHIVE COMMAND [ARGUMENT...]
#
# API server, controllers, scheduler, kubelet, kube-proxy and CoreDNS of TOOLS_DIR/bin, etcd and containerd of Debian. All of
# it, and the command, runs in mount, network and process namespaces of its own: it opens no port of the machine, and ends
# with the command, however that ends. What it writes is in one temporary folder. The command has KUBECONFIG and a resolver
# that knows the cluster's names. IMAGE_ARCHIVE is what `docker save` writes. Needs root.
set -euo pipefail

readonly CGROUP=/adapterd-cluster
readonly NODE=10.88.0.1 PODS=10.244.0.0/16 SERVICES=10.96.0.0/16

die() {
  echo "node: $*" >&2
  exit 1
}

cgroup_roots() { # of the unified hierarchy, or of every controller's own
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then echo /sys/fs/cgroup; else find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d; fi
}

# --- outside: namespaces, and what is left when they are gone -------------------------------------

if [[ ${1:-} != --inside ]]; then
  (($# >= 3)) || die "usage: scripts/cluster/node.sh TOOLS_DIR IMAGE_ARCHIVE COMMAND [ARGUMENT...]"
  ((EUID == 0)) || die "only root can make namespaces, mounts and cgroups"
  work=$(mktemp -d) status=0
  unshare --mount --net --pid --ipc --fork --kill-child --mount-proc bash "$0" --inside "$work" "$@" || status=$?
  while read -r root; do
    [[ ! -d $root$CGROUP ]] || find "$root$CGROUP" -depth -type d -exec rmdir {} + ||
      echo "node: $root$CGROUP could not be removed" >&2
  done < <(cgroup_roots)
  rm -rf --one-file-system "$work"
  exit $status
fi

# --- inside ---------------------------------------------------------------------------------------

work=$2 tools=$3 image=$4
shift 4
export PATH=$tools/bin:$PATH KUBECONFIG=$work/kubeconfig
logs=$work/logs
mkdir "$logs"

start() { # PROGRAM [ARGUMENT...]: in the background; its log is shown when the cluster does not come up
  "$@" >"$logs/${1##*/}" 2>&1 </dev/null &
}

until_true() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { tail -n 25 "$logs"/* >&2; die "waited in vain for: $*"; }
    sleep 0.2
  done
}

file_systems() {
  mount --make-rshared / # pods' volumes reach the kubelet and containerd alike
  local folder
  for folder in /run /var/log /var/lib/cni; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
  done
  # The kubelet insists on some settings of the machine: it finds them, in files of ours, and can change no others.
  for folder in /proc/sys/vm /proc/sys/kernel; do
    mount --bind "$folder" "$folder"
    mount -o remount,bind,ro "$folder"
  done
  local setting file
  mkdir "$work/settings"
  for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$work/settings/$(basename "${setting%=*}")
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
  done
  echo -e "nameserver $NODE\nsearch svc.cluster.local cluster.local\noptions ndots:5" >"$work/resolv.conf"
  mount --bind "$work/resolv.conf" "$(realpath -m /etc/resolv.conf)"
  while read -r folder; do
    mkdir -p "$folder$CGROUP"
  done < <(cgroup_roots)
}

network() {
  ip link set lo up
  ip link add node0 type bridge # no other kernel module than the pods' network needs
  ip address add "$NODE/24" dev node0
  ip link set node0 up
  ip route add default dev node0
  sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
  mkdir "$work/cni"
  cat >"$work/cni/10-bridge.conflist" <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}}]}
END
}

control_plane() {
  openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
  local token
  token=$(openssl rand -hex 16)
  echo "$token,admin,1,system:masters" >"$work/tokens"
  start etcd --data-dir "$work/etcd" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  start kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir "$work/pki" --bind-address "$NODE" \
    --advertise-address "$NODE" --secure-port 6443 --service-cluster-ip-range $SERVICES \
    --service-account-key-file "$work/accounts.key" --service-account-signing-key-file "$work/accounts.key" \
    --service-account-issuer https://kubernetes.default.svc --token-auth-file "$work/tokens" \
    --authorization-mode Node,RBAC --allow-privileged=true --kubelet-preferred-address-types InternalIP
  until_true 60 test -s "$work/pki/apiserver.crt"
  kubectl config set-cluster here --server "https://$NODE:6443" --certificate-authority "$work/pki/apiserver.crt" >/dev/null
  kubectl config set-credentials admin --token "$token" >/dev/null
  kubectl config set-context here --cluster here --user admin >/dev/null
  kubectl config use-context here >/dev/null
  until_true 120 kubectl get --raw /readyz
  start kube-controller-manager --kubeconfig "$KUBECONFIG" --service-account-private-key-file "$work/accounts.key" \
    --root-ca-file "$work/pki/apiserver.crt" --leader-elect=false
  start kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false
}

# A program that sleeps, from which pods have their network.
pause_image() {
  mkdir "$work/pause"
  echo 'int pause(void); int main(void) { for (;;) pause(); }' | gcc -O1 -static -x c -o "$work/pause/pause" -
  (cd "$work/pause" && tar -cf layer.tar pause &&
    echo "{\"architecture\": \"$(dpkg --print-architecture)\", \"os\": \"linux\", \"config\": {\"Entrypoint\": [\"/pause\"]}," \
      "\"rootfs\": {\"type\": \"layers\", \"diff_ids\": [\"sha256:$(sha256sum layer.tar | cut -d' ' -f1)\"]}}" >config.json &&
    echo '[{"Config": "config.json", "RepoTags": ["pause:local"], "Layers": ["layer.tar"]}]' >manifest.json &&
    tar -cf "$work/pause.tar" manifest.json config.json layer.tar)
}

containers() {
  cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:local"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$work/cni"
END
  start containerd --config "$work/containerd.toml"
  pause_image
  until_true 30 ctr --address /run/containerd.sock version
  for archive in "$work/pause.tar" "$image"; do
    ctr --address /run/containerd.sock --namespace k8s.io images import "$archive" >"$logs/import" 2>&1 ||
      { cat "$logs/import" >&2; die "containerd cannot import $archive"; }
  done
}

node() {
  cat >"$work/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: $CGROUP
clusterDNS: [$NODE]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd.sock
evictionHard: {memory.available: 50Mi}
failSwapOn: false
featureGates: {KubeletInUserNamespace: true} # which forgives what the machine's settings forbid
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
volumePluginDir: $work/plugins
END
  cat >"$work/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $KUBECONFIG}
clusterCIDR: $PODS
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
mode: iptables
END
  cat >"$work/Corefile" <<END
cluster.local {
  bind $NODE
  kubernetes cluster.local {
    kubeconfig $KUBECONFIG
    ttl 5
  }
}
END
  start kubelet --config "$work/kubelet.yaml" --kubeconfig "$KUBECONFIG" --root-dir "$work/kubelet" --node-ip "$NODE" \
    --hostname-override node
  start kube-proxy --config "$work/proxy.yaml" --hostname-override node
  start coredns -conf "$work/Corefile"
  until_true 60 kubectl get node node
  until_true 120 kubectl wait --for condition=Ready node/node --timeout 1s
  until_true 60 kubectl get serviceaccount default
}

file_systems
network
control_plane
containers
node
echo "ready after $SECONDS s: $(kubectl get node node -o 'jsonpath=Kubernetes {.status.nodeInfo.kubeletVersion}, {.status.nodeInfo.containerRuntimeVersion}')"
status=0
"$@" || status=$?
((status == 0)) || [[ -z ${CLUSTER_LOGS:-} ]] || cp -r "$logs" "$CLUSTER_LOGS"
# Pods first, so that their mounts go in order; the rest goes with the namespaces.
kubectl delete pods --all --all-namespaces --force --grace-period 0 >/dev/null 2>&1 || true
exit $status
