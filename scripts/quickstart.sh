#!/usr/bin/env bash
# Set up, then make one photograph four times larger: bash scripts/quickstart.sh [IMAGE] [OUT_DIR]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
alignsr_setup ""
image="${1:-}"
out="${2:-outputs/demo}"
exec "$ALIGNSR_PYTHON" -m alignsr demo ${image:+"$image"} -o "$out"
