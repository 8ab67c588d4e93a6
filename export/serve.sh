#!/usr/bin/env bash
# Serves the numbered versions in a folder: serve.sh RUN/export [FLAG OF THE SERVER...]
# AMDIM_ADDRESS is of this machine and says who can reach the server: nobody outside by default.
# AMDIM_SERVING_IMAGE is the image; by default that of the TensorFlow that exported, see image.sh.
set -euo pipefail
versions=$(cd "${1:?the folder that holds the numbered versions}" && pwd)
kit=$(cd "$(dirname "$0")" && pwd)
address=${AMDIM_ADDRESS:-127.0.0.1}
image=$(bash "$kit/image.sh" "$versions")
echo "Serves with $image; AMDIM_SERVING_IMAGE names another, if there is none of this name." >&2

# The kit is mounted as a folder: a server would not see a changed file that is mounted by itself.
exec docker run --rm -p "$address:8500:8500" -p "$address:8501:8501" \
    -v "$versions:/models/amdim:ro" \
    -v "$kit:/kit:ro" \
    "$image" \
    --model_config_file=/kit/models.config \
    --model_config_file_poll_wait_seconds=30 \
    --allow_version_labels_for_unavailable_models \
    --grpc_max_threads=128 \
    --rest_api_num_threads=128 \
    --enable_batching \
    --enable_per_model_batching_parameters \
    --batching_parameters_file=/kit/batching.config \
    "${@:2}"
