# shellcheck shell=bash
# Sourced by every run_*.sh: makes the virtual environment where it is missing or out of date, and
# names its interpreter.
#
#   VENV         where the environment lives; default .venv in the checkout. A relative path is
#                taken from the current directory.
#   STACK        classic (TensorFlow 2.15) or current (TensorFlow 2.21); default: what the Python
#                runs, classic where both
#   ACCELERATOR  cpu, cuda, tpu or preinstalled; default cuda where nvidia-smi lists a GPU, else cpu
#   returns      CHECKOUT (this project's directory), PYTHON (the environment's interpreter),
#                PYTHONPATH, PYTHONUNBUFFERED and run_command
#
# An environment keeps its STACK and its ACCELERATOR. To ask for others there is an error.
# A script that sets DEVELOPMENT_TOOLS=1 before it sources this file gets those tools as well.
# The current directory stays the caller's, so that relative paths in flags mean what they say.
# No Python file in it is imported: use run_command, not "$PYTHON" -m. Messages go to stderr.
# Written for bash 3.2 and later (macOS has no newer one).

_fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Sets _recorded to "STACK ACCELERATOR" of the environment; empty where there is none.
_read_record() {
  _recorded=""
  if [[ -f $STAMP ]]; then read -r _recorded <"$STAMP" || true; fi
  case $_recorded in
    "classic "* | "current "*) ;;
    *) _recorded="" ;; # written before there were two stacks
  esac
}

# Sets _locks to the files that say what STACK $1 with ACCELERATOR $2 needs.
_find_locks() {
  case $2 in
    cuda) _locks=("$1" "$1-cuda") ;;
    tpu) _locks=("$1-tpu") ;;
    preinstalled) _locks=("../requirements") ;;
    *) _locks=("$1") ;;
  esac
  if [[ -n ${DEVELOPMENT_TOOLS:-} ]]; then _locks+=("$1-dev"); fi
  _locks=("${_locks[@]/#/$CHECKOUT/requirements/}")
  _locks=("${_locks[@]/%/.txt}")
}

# Prints the beginning of the stamp of an environment that is up to date. The text of the locks is
# exact, and no tool is needed to compare it.
_print_stamp() {
  local _locks lock
  _find_locks "$1" "$2"
  printf '%s %s\n' "$1" "$2"
  for lock in "${_locks[@]}"; do printf '%s\n' "$(<"$lock")"; done
}

_is_up_to_date() {
  local _recorded
  _read_record
  [[ -x $PYTHON && -n $_recorded ]] || return 1
  [[ $_recorded == "${STACK:-${_recorded% *}} ${ACCELERATOR:-${_recorded#* }}" ]] || return 1
  # shellcheck disable=SC2086 # two words
  [[ $(<"$STAMP") == "$(_print_stamp $_recorded)"* ]]
}

# Runs the command NAME [FLAG...] of cli/commands.py instead of this shell.
# cli/start.py keeps the current directory off the import path.
run_command() {
  export PYTHONSAFEPATH=1 # Python 3.11 and later: the same in processes that other packages start
  export PYTHONUTF8=1     # TensorFlow's file names are UTF-8 in every locale
  exec "$PYTHON" "$CHECKOUT/cli/start.py" -m cli "$@"
}

CHECKOUT=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${VENV:-$CHECKOUT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
PYTHON=$VENV/bin/python
STAMP=$VENV/installed.txt
unset PYTHONHOME PYTHONPATH # packages found through PYTHONPATH would count as installed
if ! _is_up_to_date; then
  # In the checkout: the caller's directory may hold a venv.py, a uv.toml or a .python-version.
  # shellcheck source=scripts/install.sh
  (cd -- "$CHECKOUT" && source scripts/install.sh)
fi
export PYTHONPATH=$CHECKOUT PYTHONUNBUFFERED=1
