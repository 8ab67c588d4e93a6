#!/usr/bin/env bash
# Makes the runs in this folder, which stand for those that users have on disk. They are made once,
# by the version before a change of what is written, and never by the one that has to read them.
set -euo pipefail
cd "$(dirname "$0")"
made=$(mktemp -d)
tiny="--config.ndf=4 --config.nrkhs=16 --config.ndepth=1 --config.batch_size=16
    --config.probe_images=60 --config.log_every=5 --baselines=off --xla=off --strategy=none"

train() {
    name=$1
    shift
    python -m amdim_tf.train $tiny --workdir="$made/$name" "$@"
}

train finished --steps=20
train mixture --steps=20 --dataset=photo_pairs
train supervised --steps=20 --variant=supervised
python -m amdim_tf.convert --checkpoint=../golden/32.pth --output="$made/converted"
# Stopped in the middle, and the same to its end.
stopped="--steps=40 --config.checkpoint_minutes=0 --workdir=$made/stopped"
python -m amdim_tf.train $tiny $stopped &
until ls "$made"/stopped/checkpoints/[0-9]* >/dev/null 2>&1; do sleep 0.1; done
kill -TERM $!
wait $! || [ $? = 75 ]
cp -r "$made/stopped" "$made/resumed"
train resumed --steps=40 --config.checkpoint_minutes=0
python keep.py "$made"
