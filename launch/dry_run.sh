# Sourced by the launchers. `--dry_run` as first argument prints the commands instead of running
# them; `run COMMAND ...` does either.

dry_run=false
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=true
  shift
fi

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# need NAME ...: ends with a sentence when a setting is missing.
need() {
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      echo "error: $name is not set; the header of ${BASH_SOURCE[1]} says what it is." >&2
      exit 2
    fi
  done
}
