# Shared by quickstart.sh and test.sh; source it, then call `alignsr_setup EXTRAS`. Needs bash and Python 3.11 or newer.
#
# Makes a virtual environment (ALIGNSR_VENV, by default .venv in the repository), installs the package into it and leaves the
# path of its Python in ALIGNSR_PYTHON. Where no NVIDIA GPU answers, torch and torchvision are held to the pair of constraints-cpu.txt
# and, on Linux, taken from PyTorch's own index of CPU builds, because the package index has only the CUDA build for Linux. When that
# index cannot be reached, this is said and pip's own sources serve. ALIGNSR_TORCH_INDEX names another index; empty: none.
# A second call changes nothing unless pyproject.toml or the constraints changed.

alignsr_find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  echo "python: expected Python 3.11 or newer with the venv module, got none on PATH; install it or set PYTHON=/path/to/python" >&2
  return 1
}

alignsr_has_gpu() {
  command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

# Runs a silent command, with a line every half minute that says it is not stuck.
alignsr_busy() {
  local beat code=0
  # ends with the script too, should Ctrl-C stop it; the sleeping part holds nobody's pipe open
  (while sleep 30 >/dev/null 2>&1 && kill -0 "$$" 2>/dev/null; do echo "... still installing, $(date +%T)" >&2; done) &
  beat=$!
  "$@" || code=$?
  kill "$beat" 2>/dev/null
  wait "$beat" 2>/dev/null
  return "$code"
}

# The CPU builds of torch and torchvision, without their dependencies; failing is no error, the main installation gets what is missing.
alignsr_cpu_torch() {
  local constraints="$1" index="${ALIGNSR_TORCH_INDEX-https://download.pytorch.org/whl/cpu}" answer
  if [ -z "$index" ] || [ "$(uname -s)" != Linux ]; then
    return 0
  fi
  echo "No NVIDIA GPU found: taking the CPU build of torch from $index (a minute or two)" >&2
  if ! answer="$("$ALIGNSR_PYTHON" -m pip install --disable-pip-version-check --progress-bar off -qq --no-deps \
    --retries 1 --timeout 15 --index-url "$index" -r "$constraints" 2>&1)"; then
    echo "Got none there (${answer##*$'\n'})." >&2
    echo "Going on with pip's own sources; from the package index that is the CUDA build: it works too, but takes several GB." >&2
  fi
}

alignsr_setup() {
  local extras="$1" root venv python stamp target constraints=""
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  venv="${ALIGNSR_VENV:-$root/.venv}"
  target="$root${extras:+[$extras]}"
  if ! alignsr_has_gpu; then
    constraints="$root/constraints-cpu.txt"
  fi

  if [ ! -x "$venv/bin/python" ]; then
    python="$(alignsr_find_python)" || return 1
    echo "Making a virtual environment in $venv" >&2
    "$python" -m venv "$venv" || return 1
  fi
  ALIGNSR_PYTHON="$venv/bin/python"

  stamp="$venv/.alignsr-$(cat "$root/pyproject.toml" ${constraints:+"$constraints"} | cksum | cut -d ' ' -f 1)-${extras:-base}"
  if [ -e "$stamp" ]; then
    return 0
  fi
  if [ -n "$constraints" ]; then
    alignsr_cpu_torch "$constraints"
  fi
  echo "Installing AlignSR${extras:+ with the extras $extras} (a few minutes the first time)" >&2
  alignsr_busy "$ALIGNSR_PYTHON" -m pip install --disable-pip-version-check --progress-bar off -qq ${constraints:+-c "$constraints"} -e "$target" || return 1
  "$ALIGNSR_PYTHON" -c 'import sys; from importlib.metadata import version; print("Installed, with torch", version("torch"), file=sys.stderr)' || return 1
  touch "$stamp"
}
