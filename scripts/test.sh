#!/usr/bin/env bash
# Set up, then run the tests that need neither a GPU nor downloaded weights: bash scripts/test.sh [pytest arguments]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
alignsr_setup "train,dev"
cd "$here/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # several test processes with several threads each slow one another down
exec "$ALIGNSR_PYTHON" -m pytest -n "${ALIGNSR_TEST_WORKERS:-2}" --dist worksteal "$@"
