#!/usr/bin/env bash
# The image that serves the numbered versions in a folder: image.sh RUN/export
# It is that of the TensorFlow that exported the newest version, or what AMDIM_SERVING_IMAGE says.
set -euo pipefail
versions=${1:?the folder that holds the numbered versions}

if [ -z "${AMDIM_SERVING_IMAGE:-}" ]; then
    newest=$(ls "$versions" | grep -x '[0-9]*' | sort -n | tail -n 1 || true)
    pattern='s/.*"tensorflow": "\([0-9A-Za-z.-]*\).*/\1/p'
    tensorflow=$(sed -n "$pattern" "$versions/$newest/assets.extra/amdim.json" 2> /dev/null || true)
    if [ -z "$tensorflow" ]; then
        echo "No version in $versions says which TensorFlow exported it;" \
            "set AMDIM_SERVING_IMAGE, as tensorflow/serving:2.19.1." >&2
        exit 1
    fi
fi
echo "${AMDIM_SERVING_IMAGE:-tensorflow/serving:$tensorflow}"
