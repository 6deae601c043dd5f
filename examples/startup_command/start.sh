#!/bin/sh
# Runs on every rank. Channels and hyperparameters come as arguments, the channels also as
# environment variables: $TRAIN and $OUTPUT are the folders of the job's train and output.
set -eu
echo "rank ${RANK:-0} of ${WORLD_SIZE:-1} reads $TRAIN and writes $OUTPUT"
exec python mnist.py "$@"
