# Sourced by the launchers: makes .venv from requirements.txt if there is none (or if the
# requirements changed since) and activates it. OFA_JAX_VENV names another place for it.

venv="${OFA_JAX_VENV:-.venv}"
stamp="$venv/requirements.sha256"
wanted="$(sha256sum requirements.txt | cut -d' ' -f1)"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  echo "Making the virtual environment $venv from requirements.txt (about two minutes) ..." >&2
  python_command="$(command -v python3.11 || command -v python3)" || {
    echo "No python3 found: install Python 3.11 and call this again." >&2
    exit 2
  }
  "$python_command" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  echo "$wanted" > "$stamp"
fi
source "$venv/bin/activate"

# Compiled programs are kept between runs: the second start skips most of XLA's work.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/ofa_jax/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="${JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES:--1}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"

# A step on CPUs takes and gives back hundreds of megabytes; in huge pages (Linux, glibc from 2.35)
# the kernel has a quarter of the work with them, and a step of Scenes 0.75 s instead of 1.0 s.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
