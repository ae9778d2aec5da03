{{- define "ollama-router.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select the pods of one component: dict "root" . "component" "node" */}}
{{- define "ollama-router.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{- define "ollama-router.labels" -}}
{{ include "ollama-router.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* Image and pull policy of a router: dict "root" . "section" .Values.node */}}
{{- define "ollama-router.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) .section.image -}}
{{- if and .section.image.tag (not .section.image.digest) }}{{ $_ := set $image "digest" "" }}{{ end -}}
image: {{ (ternary (printf "%s@%s" $image.repository $image.digest) (printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion)) (ne $image.digest "")) | quote }}
imagePullPolicy: {{ $image.pullPolicy | quote }}
{{- end -}}

{{- define "ollama-router.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: "OnRootMismatch"
seccompProfile: { type: "RuntimeDefault" }
{{- end -}}

{{- define "ollama-router.containerSecurity" -}}
{ allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ["ALL"] } }
{{- end -}}

{{/* What a container of the router has, of whichever component. */}}
{{- define "ollama-router.probes" -}}
ports:
  - { name: "api", containerPort: 11435 }
  - { name: "admin", containerPort: 11436 }
livenessProbe:
  httpGet: { path: "/healthz", port: "admin" }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: "/readyz", port: "admin" }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{/* Environment variables by name, as a list. */}}
{{- define "ollama-router.env" -}}
{{- range $name, $value := . }}
- { name: {{ $name | quote }}, value: {{ $value | quote }} }
{{- end }}
{{- end -}}

{{/* Where pods may run, and what they are: dict "root" . "section" .Values.node */}}
{{- define "ollama-router.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .section.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .section.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .section.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .section.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "ollama-router.nodeKeySecret" -}}
{{- .Values.nodeKey.existingSecret | default (printf "%s-node-key" (include "ollama-router.fullname" .)) -}}
{{- end -}}

{{/* "true" if Ollama says which of the machine's cards it has, for the router of the same pod. */}}
{{- define "ollama-router.tellsCards" -}}
{{- $kind := dig "probe" "kind" "auto" .Values.node.backend -}}
{{- $isNvidia := and (hasPrefix "nvidia.com/gpu" .Values.node.gpu.resource) (gt (int .Values.node.gpu.count) 0) -}}
{{- if and $isNvidia (not (hasKey .Values.node.backend "gpus")) (has $kind (list "auto" "nvml" "command" "prometheus")) -}}true{{- end -}}
{{- end -}}

{{/* Ollama's environment variables for the keys of backends.NAME.server, as JSON. */}}
{{- define "ollama-router.serverEnv" -}}
{{- $env := dict -}}
{{- $server := .Values.node.server -}}
{{- $plain := dict "num_parallel" "OLLAMA_NUM_PARALLEL" "kv_type" "OLLAMA_KV_CACHE_TYPE" "context_length" "OLLAMA_CONTEXT_LENGTH" "fit_target_mib" "LLAMA_ARG_FIT_TARGET" "max_loaded_models" "OLLAMA_MAX_LOADED_MODELS" -}}
{{- range $key, $name := $plain -}}
{{- if hasKey $server $key }}{{ $_ := set $env $name (get $server $key | toString) }}{{ end -}}
{{- end -}}
{{- if hasKey $server "gpu_overhead_mib" }}{{ $_ := set $env "OLLAMA_GPU_OVERHEAD" (mul (int64 $server.gpu_overhead_mib) 1048576 | toString) }}{{ end -}}
{{- if hasKey $server "sched_spread" }}{{ $_ := set $env "OLLAMA_SCHED_SPREAD" (ternary "1" "0" $server.sched_spread) }}{{ end -}}
{{- if ne (get $server "flash_attention" | default "auto") "auto" }}{{ $_ := set $env "OLLAMA_FLASH_ATTENTION" (ternary "1" "0" (eq $server.flash_attention "on")) }}{{ end -}}
{{- toJson $env -}}
{{- end -}}

{{/* The ConfigMap with the files of the teams; "" = there is none. */}}
{{- define "ollama-router.teams" -}}
{{- .Values.existingTeams | default (ternary (printf "%s-teams" (include "ollama-router.fullname" .)) "" (gt (len .Values.teams) 0)) -}}
{{- end -}}

{{/* What router.yaml of both components has: dict "root" . "section" .Values.node */}}
{{- define "ollama-router.commonConfig" -}}
{{- $config := dict "listen" (printf "%s:11435" .root.Values.listenAddress) "admin" (printf "%s:11436" .root.Values.listenAddress) -}}
{{- $_ := set $config "admin_keys" .root.Values.adminKeys -}}
{{- $_ := set $config "timeouts" (dict "shutdown_s" .section.drainSeconds) -}}
{{- if include "ollama-router.teams" .root }}{{ $_ := set $config "teams" "/etc/ollama-router/teams/*.yaml" }}{{ end -}}
{{- toJson $config -}}
{{- end -}}

{{- define "ollama-router.nodeConfig" -}}
{{- $config := include "ollama-router.commonConfig" (dict "root" . "section" .Values.node) | fromJson -}}
{{- $_ := set $config "node" (dict "key_sha256_file" "/etc/ollama-router/key/sha256") -}}
{{- $backend := mergeOverwrite (dict "url" "http://127.0.0.1:11434") (deepCopy .Values.node.backend) -}}
{{- if .Values.node.server }}{{ $_ := set $backend "server" .Values.node.server }}{{ end -}}
{{- $_ := set $config "backends" (dict "local" $backend) -}}
{{- $_ := set $config "store" (dict "path" "/var/lib/ollama-router/learned.sqlite") -}}
{{- $_ := set $config "usage" (dict "path" "/var/lib/ollama-router/usage.sqlite") -}}
{{- mergeOverwrite $config (deepCopy .Values.node.config) | toYaml -}}
{{- end -}}

{{- define "ollama-router.frontConfig" -}}
{{- $config := include "ollama-router.commonConfig" (dict "root" . "section" .Values.front) | fromJson -}}
{{- $nodes := printf "%s-nodes" (include "ollama-router.fullname" .) -}}
{{- $discover := dict "dns" (printf "%s.%s.svc" $nodes .Release.Namespace) "port" 11435 -}}
{{- if eq .Values.discovery "endpointslices" }}{{ $discover = dict "endpointslices" (printf "%s/%s" .Release.Namespace $nodes) }}{{ end -}}
{{- $_ := set $config "backends" (dict "nodes" (dict "kind" "node" "key_file" "/etc/ollama-router/key/key" "discover" $discover)) -}}
{{- $_ := set $config "store" (dict "path" ":memory:") -}}
{{- if .Values.chains }}{{ $_ := set $config "chains" .Values.chains }}{{ end -}}
{{- $config = mergeOverwrite $config (deepCopy .Values.front.config) -}}
{{- if $config.shared }}{{ $_ := set $config "shared" (merge $config.shared (dict "routers" .Values.front.replicas)) }}{{ end -}}
{{- $hosts := concat ($config.hosts | default list) (ternary .Values.httpRoute.hostnames list .Values.httpRoute.enabled) | uniq -}}
{{- if $hosts }}{{ $_ := set $config "hosts" $hosts }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}
