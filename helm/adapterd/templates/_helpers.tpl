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

{{- define "adapterd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "adapterd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "adapterd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "adapterd.args" -}}
{{- /* The chart has no TLS; the server refuses plain text beyond loopback unless told. */ -}}
- --insecure
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
{{- with .threads }}
- --threads={{ . }}
{{- end }}
{{- end }}
{{- range .Values.adapters.load }}
- {{ printf "--load=%s" . | quote }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* What the values' schema cannot say, because it concerns several values at once. */ -}}
{{- define "adapterd.validate" -}}
{{- $adapters := .Values.adapters -}}
{{- if and $adapters.existingClaim $adapters.configMap -}}
{{- fail "set adapters.existingClaim or adapters.configMap, not both" -}}
{{- end -}}
{{- if and (gt (int .Values.replicaCount) 1) (not (or $adapters.load $adapters.existingClaim $adapters.configMap)) -}}
{{- fail (printf "replicaCount is %d, but nothing makes the replicas offer the same adapters: an adapter loaded by RPC exists only in the pod that answered. Set adapters.load, adapters.existingClaim or adapters.configMap, or use one replica" (int .Values.replicaCount)) -}}
{{- end -}}
{{- $needed := add .Values.preStopSleepSeconds (.Values.server.drainTimeout | trimSuffix "s") -}}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but must be larger than preStopSleepSeconds + server.drainTimeout = %d, or Kubernetes kills requests that are still draining" (int .Values.terminationGracePeriodSeconds) (int $needed)) -}}
{{- end -}}
{{- end -}}
