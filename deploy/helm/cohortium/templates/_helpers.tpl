{{- define "cohortium.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Labels of one service: (dict "root" $ "name" "audit"). */ -}}
{{- define "cohortium.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "cohortium.labels" -}}
{{ include "cohortium.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "cohortium.fullname" -}}
{{ printf "%s-%s" .root.Release.Name .name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* A service's settings file: the chart's fields, and the values' over them. */ -}}
{{- define "cohortium.settings" -}}
{{- $own := index .root.Values.services .name -}}
{{- $settings := dict
  "namespace" .root.Values.federation.namespace
  "schema" .name
  "log_level" (.root.Values.logLevel | default "info")
  "trust_file" "/etc/cohortium/trust.json"
  "governance_keys" .root.Values.federation.governanceKeys
  "governance_threshold" .root.Values.federation.governanceThreshold
  "signing_key_file" (printf "/run/secrets/%s.key" .name)
  "operator_token_file" "/run/secrets/operator.token"
  "http_host" "0.0.0.0"
  "http_port" 8080
-}}
{{- with .root.Values.monitoring.otlpEndpoint }}
{{- $_ := set $settings "otlp_endpoint" . }}
{{- $_ := set $settings "trace_ratio" $.root.Values.monitoring.traceRatio }}
{{- end }}
{{- if eq .name "enrolment" }}
{{- $_ := set $settings "token_key_file" "/run/secrets/enrolment-token.key" }}
{{- $_ := set $settings "broker_auth_host" "0.0.0.0" }}
{{- $_ := set $settings "broker_auth_port" 8081 }}
{{- $_ := set $settings "broker_auth_cert_file" "/run/secrets/enrolment-tls.crt" }}
{{- $_ := set $settings "broker_auth_key_file" "/run/secrets/enrolment-tls.key" }}
{{- $_ := set $settings "management_ca_file" "/run/secrets/broker-ca.crt" }}
{{- end }}
{{- if eq .name "aggregator" }}
{{- $_ := set $settings "seal_key_file" "/run/secrets/aggregator-seal.key" }}
{{- $_ := set $settings "data_dir" "/var/lib/cohortium" }}
{{- end }}
{{- toYaml (mergeOverwrite $settings (deepCopy ($own.settings | default dict))) -}}
{{- end -}}

{{- /* What every container may do: nothing but run. */ -}}
{{- define "cohortium.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}
