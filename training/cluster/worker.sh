#!/bin/sh
# worker.sh INDEX HOST:PORT,HOST:PORT,... COMMAND...
# Runs a command as one of the workers of tf.distribute.
set -eu
index=$1
workers=$(echo "$2" | sed 's/,/", "/g')
shift 2
export TF_CONFIG="{\"cluster\": {\"worker\": [\"$workers\"]}, \
\"task\": {\"type\": \"worker\", \"index\": $index}}"
exec "$@"
