#!/usr/bin/env bash
# A model server by curl: curl.sh http://localhost:8501 IMAGE [labels/canary | versions/2]
# It answers in JSON: the state of its versions, the signatures, and f1 of the image.
set -euo pipefail
if [ -z "${1:-}" ] || [ -z "${2:-}" ]; then
    echo "curl.sh needs a server and an image, as in: curl.sh http://localhost:8501 cat.jpg" >&2
    exit 2
fi
model=$1/v1/models/amdim
image=$(base64 < "$2" | tr -d '\n')
version=$model${3:+/$3}

ask() {
    curl --silent --show-error --fail-with-body --max-time 30 "$@"
    echo
}

ask "$model"
ask "$version/metadata"
# By a pipe: an image is longer than an argument may be.
printf '{"signature_name": "encoded", "instances": [{"bytes": {"b64": "%s"}}]}' "$image" |
    ask --data-binary @- "$version:predict"
