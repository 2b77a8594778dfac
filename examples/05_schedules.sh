#!/bin/sh
# What schedules and caches cost, before anything runs: engine calls, FLOPs, and the speed-up that they allow.
# Usage: 05_schedules.sh BUNDLE
set -eu
for schedule in LLL LSL "L20 S20 L10" SSS; do
    for cache in off scm:slow interval:3; do
        echo "--schedule '$schedule' --cache $cache"
        fb-run "$1" --dry-run --steps 50 --schedule "$schedule" --cache "$cache" | grep -E "^(calls|FLOPs)"
    done
done
