#!/usr/bin/env bash
# The deployment tool by curl: makes a network and a join token, and waits until the nodes are there.
#
#   deploy.sh NETWORK NODES
#
# On the controller's machine, as root, it uses the Unix socket. Elsewhere, as `znet-ctl operator create` printed them:
#   ZNET_CONTROLLER=ctl.example.net:7443 ZNET_PIN=… ZNET_OPERATOR_TOKEN=… deploy.sh NETWORK NODES
set -euo pipefail
network=${1:?usage: deploy.sh NETWORK NODES}
nodes=${2:?usage: deploy.sh NETWORK NODES}
socket=${ZNET_CTL_SOCKET:-/run/znet-ctl/ctl.sock}

api() { # api METHOD PATH [BODY]
    local args=(--silent --show-error --fail-with-body --max-time 30 --request "$1" --header 'content-type: application/json')
    [ $# -lt 3 ] || args+=(--data "$3")
    if [ -n "${ZNET_CONTROLLER:-}" ]; then
        # The pin is the SHA-256 of the controller's public key; curl wants it in base64. No CA is asked.
        local pin
        pin=$(printf '%s' "$ZNET_PIN" | python3 -c 'import base64, sys; print(base64.b64encode(bytes.fromhex(sys.stdin.read())).decode())')
        curl "${args[@]}" --insecure --pinnedpubkey "sha256//$pin" \
            --header "authorization: Bearer $ZNET_OPERATOR_TOKEN" "https://$ZNET_CONTROLLER$2"
    else
        curl "${args[@]}" --unix-socket "$socket" "http://znet$2"
    fi
}

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

api GET "/v1/networks/$network" >/dev/null 2>&1 || api POST /v1/networks "{\"name\": \"$network\"}" >/dev/null
token=$(api POST "/v1/networks/$network/tokens" "{\"uses\": $nodes, \"expires_in_seconds\": 3600}" | field join_token)
printf 'on each of the %s machines:\n\n  znet-agent run --join %s\n\n' "$nodes" "$token"

for _ in $(seq "${ZNET_DEPLOY_SECONDS:-300}"); do
    live=$(api GET "/v1/networks/$network/nodes" | python3 -c 'import json, sys; print(sum(node["live"] for node in json.load(sys.stdin)))')
    if [ "$live" -ge "$nodes" ]; then
        echo "network $network has its $live nodes"
        exit 0
    fi
    sleep 1
done
echo "error: only $live of $nodes nodes have come" >&2
exit 7
