#!/usr/bin/env bash
# Writes the chart that upgrades are tried from into DEST/helm/adapterd; fails in a checkout without history.
#
#   scripts/former_chart.sh DEST
set -euo pipefail

[[ $# == 1 ]] || { echo "usage: scripts/former_chart.sh DEST" >&2; exit 2; }
readonly FORMER=ff244c2
git -C "$(dirname "$0")/.." archive $FORMER helm/adapterd | tar -x -C "$1"
