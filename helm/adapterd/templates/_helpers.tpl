{{- define "adapterd.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Selectors are immutable: nothing that changes with a chart upgrade may be in here. */ -}}
{{- define "adapterd.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "adapterd.labels" -}}
{{ include "adapterd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* The labels and more of the values', as {context, labels}; the chart's own win, because selectors are among them. */ -}}
{{- define "adapterd.labelsAnd" -}}
{{ merge (include "adapterd.labels" (index . 0) | fromYaml) (index . 1) | toYaml }}
{{- end -}}

{{- define "adapterd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "adapterd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* An image of the values, as {image, default tag}. */ -}}
{{- define "adapterd.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 1) $image.tag }}
{{- end -}}
{{- end -}}

{{- /* What makes every pod offer the same adapters; empty when nothing does. */ -}}
{{- define "adapterd.sharedAdapters" -}}
{{- with .Values.adapters -}}
{{- if or .load .existingClaim .configMap .image.repository -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "adapterd.drainSeconds" -}}
{{ add .Values.preStopSleepSeconds (.Values.server.drainTimeout | trimSuffix "s") }}
{{- end -}}

{{- define "adapterd.gracePeriod" -}}
{{ .Values.terminationGracePeriodSeconds | default (add 15 (include "adapterd.drainSeconds" .)) }}
{{- end -}}

{{- define "adapterd.args" -}}
{{- /* The server refuses plain text beyond loopback unless told; metrics and the kubelet's probes stay plain text. */ -}}
{{- if .Values.tls.existingSecret }}
- --admin-insecure
- --tls-cert=/etc/adapterd/tls/tls.crt
- --tls-key=/etc/adapterd/tls/tls.key
{{- if .Values.tls.requireClientCertificates }}
- --tls-client-ca=/etc/adapterd/tls/ca.crt
{{- end }}
{{- else }}
- --insecure
{{- end }}
{{- if .Values.auth.existingSecret }}
- --access-policy=/etc/adapterd/auth/policy.json
{{- end }}
{{- with .Values.server }}
- --log-format={{ .logFormat }}
- --log-level={{ .logLevel }}
- --drain-timeout={{ .drainTimeout }}
{{- with .memoryBudget }}
- --memory-budget={{ . }}
{{- end }}
{{- with .maxMessageSize }}
- --max-message-size={{ . }}
{{- end }}
{{- with .maxInflightBytes }}
- --max-inflight-bytes={{ . }}
{{- end }}
{{- with .maxUploadBytes }}
- --max-upload-bytes={{ . }}
{{- end }}
{{- with .keepRevisions }}
- --keep-revisions={{ . }}
{{- end }}
{{- with .threads }}
- --threads={{ . }}
{{- end }}
{{- end }}
{{- if .Values.persistence.enabled }}
- --data-dir=/var/lib/adapterd
{{- end }}
{{- if .Values.models.existingClaim }}
- --model-root=/models
{{- end }}
{{- if .Values.adapters.watch }}
- --watch-adapters=/adapters
{{- end }}
{{- range .Values.adapters.load }}
- {{ printf "--load=%s" . | quote }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* The kubelet's gRPC probes speak no TLS. */ -}}
{{- define "adapterd.readyProbe" -}}
{{- if .Values.tls.existingSecret -}}
httpGet:
  port: metrics
  path: /readyz
{{- else -}}
grpc:
  port: 50051
  service: adapterd.v1.ProjectionService
{{- end -}}
{{- end -}}

{{- define "adapterd.liveProbe" -}}
{{- if .Values.tls.existingSecret -}}
httpGet:
  port: metrics
  path: /healthz
{{- else -}}
grpc:
  port: 50051
  service: ""
{{- end -}}
{{- end -}}

{{- /* What the values' schema cannot say, because it concerns several values at once. */ -}}
{{- define "adapterd.validate" -}}
{{- $adapters := .Values.adapters -}}
{{- if gt (len (compact (list $adapters.existingClaim $adapters.configMap $adapters.image.repository))) 1 -}}
{{- fail "set only one of adapters.existingClaim, adapters.configMap and adapters.image.repository" -}}
{{- end -}}
{{- if and .Values.tls.requireClientCertificates (not .Values.tls.existingSecret) -}}
{{- fail "tls.requireClientCertificates needs tls.existingSecret" -}}
{{- end -}}
{{- if and $adapters.image.repository (not (or $adapters.image.tag $adapters.image.digest)) -}}
{{- fail "adapters.image needs a tag or a digest" -}}
{{- end -}}
{{- $auto := .Values.autoscaling -}}
{{- $replicas := ternary $auto.maxReplicas .Values.replicaCount $auto.enabled | int -}}
{{- if and (gt $replicas 1) (not (include "adapterd.sharedAdapters" .)) -}}
{{- fail (printf "%s is %d, but nothing makes the replicas offer the same adapters: an adapter loaded by RPC exists only in the pod that answered. Set adapters.load, adapters.existingClaim, adapters.configMap or adapters.image, or use one replica" (ternary "autoscaling.maxReplicas" "replicaCount" $auto.enabled) $replicas) -}}
{{- end -}}
{{- if and (gt $replicas 1) .Values.persistence.enabled .Values.persistence.existingClaim -}}
{{- fail "persistence.existingClaim is for one replica: only one process can use a data directory" -}}
{{- end -}}
{{- if $auto.enabled -}}
{{- if gt (int $auto.minReplicas) (int $auto.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is larger than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if not (or $auto.targetCPUUtilizationPercentage $auto.metrics) -}}
{{- fail "autoscaling needs targetCPUUtilizationPercentage or metrics" -}}
{{- end -}}
{{- if and $auto.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage is a share of resources.requests.cpu, which is not set" -}}
{{- end -}}
{{- end -}}
{{- $needed := include "adapterd.drainSeconds" . | int -}}
{{- $grace := include "adapterd.gracePeriod" . | int -}}
{{- if le $grace $needed -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but must be larger than preStopSleepSeconds + server.drainTimeout = %d, or Kubernetes kills requests that are still draining" $grace $needed) -}}
{{- end -}}
{{- end -}}
