#!/usr/bin/env bash
# Serves the numbered versions in a folder: serve.sh RUN/export
set -euo pipefail
versions=$(cd "${1:?the folder that holds the numbered versions}" && pwd)
kit=$(cd "$(dirname "$0")" && pwd)

# The kit is mounted as a folder: a server would not see a changed file that is mounted by itself.
exec docker run --rm -p 8500:8500 -p 8501:8501 \
    -v "$versions:/models/amdim:ro" \
    -v "$kit:/kit:ro" \
    tensorflow/serving \
    --model_config_file=/kit/models.config \
    --model_config_file_poll_wait_seconds=30 \
    --allow_version_labels_for_unavailable_models \
    --enable_batching \
    --enable_per_model_batching_parameters \
    --batching_parameters_file=/kit/batching.config
