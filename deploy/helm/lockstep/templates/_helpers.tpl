{{- define "lockstep.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "lockstep.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "lockstep.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "lockstep.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "lockstep.selector" -}}
app.kubernetes.io/name: {{ include "lockstep.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lockstep.labels" -}}
{{ include "lockstep.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lockstep.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lockstep.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "lockstep.modelClaim" -}}
{{- if .Values.modelCache.existingClaim }}
{{- .Values.modelCache.existingClaim }}
{{- else if .Values.modelCache.create }}
{{- printf "%s-models" (include "lockstep.fullname" .) }}
{{- end }}
{{- end }}

{{- /* What cannot be, said before anything is installed. */}}
{{- define "lockstep.check" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository: say where the image is that was built by deploy/image" }}
{{- end }}
{{- $shards := mul .Values.numShard .Values.groups }}
{{- if and .Values.gpus.count (ne (int .Values.gpus.count) (int $shards)) (not (hasKey .Values.settings "RANKS_PER_GPU")) }}
{{- fail (printf "gpus.count: %d, where numShard %d times groups %d takes %d: each shard has a GPU, or settings.RANKS_PER_GPU says how many share one" (int .Values.gpus.count) (int .Values.numShard) (int .Values.groups) (int $shards)) }}
{{- end }}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) }}
{{- if and .Values.journal.existingClaim $several }}
{{- fail "journal.existingClaim: a journal is of one pod: set replicaCount to 1 without autoscaling, or install a release for each" }}
{{- end }}
{{- if and .Values.modelCache.create $several (not (has "ReadWriteMany" .Values.modelCache.accessModes)) }}
{{- fail "modelCache.create: several pods share the claim: set modelCache.accessModes to [ReadWriteMany], or leave each pod a cache of its own" }}
{{- end }}
{{- range $name := list "PORT" "MODEL_ID" "REVISION" "NUM_SHARD" "REPLICAS" "GRACEFUL_TERMINATION_TIMEOUT" "API_KEY_FILE" "JOURNAL" "RESUME_WINDOW" "HF_HOME" "XDG_RUNTIME_DIR" }}
{{- if hasKey $.Values.settings $name }}
{{- fail (printf "settings.%s: the chart sets it from a value of its own" $name) }}
{{- end }}
{{- end }}
{{- end }}
