# shellcheck shell=bash
# Sourced by every run_*.sh: makes the virtual environment where it is missing or out of date, and names its interpreter.
#
#   VENV     where the environment lives; default .venv in the checkout. A relative path is taken from the current directory.
#   returns  CHECKOUT (this project's directory), PYTHON (the environment's interpreter), PYTHONPATH, PYTHONUNBUFFERED
#            and run_command
#
# The current directory stays the caller's, so that relative paths in flags mean what they say. No Python
# file in it is imported: use run_command, not "$PYTHON" -m. Messages go to stderr.
# Written for bash 3.2 and later (macOS has no newer one).

_say() { printf '%s\n' "$*" >&2; }
_fail() { _say "error: $*"; exit 2; }

# True where $1 is a Python that starts (a pyenv shim may exist and yet fail) and whose version TensorFlow 2.15 supports.
_python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' >/dev/null 2>&1
}

# Sets _found to the first suitable Python on PATH, preferring one that can make an environment by itself. Without it:
# _found is empty, and _no_ensurepip names a suitable Python that lacks ensurepip (Debian keeps that in its own package).
_find_python() {
  local name
  _found="" _no_ensurepip=""
  for name in python3.11 python3.10 python3.9 python3 python; do
    if ! command -v "$name" >/dev/null 2>&1 || ! _python_fits "$name"; then continue; fi
    if [[ -n $_uv ]] || "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      _found=$name
      return
    fi
    _no_ensurepip=${_no_ensurepip:-$name}
  done
}

_make_venv() {
  if [[ -e $VENV/pyvenv.cfg ]]; then
    if [[ -x $PYTHON ]] && "$PYTHON" -c '' >/dev/null 2>&1; then
      _python_fits "$PYTHON" || _fail "$VENV holds a Python other than 3.9, 3.10 or 3.11; delete it or name another with VENV="
      [[ -n $_uv ]] || "$PYTHON" -c 'import pip' >/dev/null 2>&1 && return
    fi
    # Half made, or its interpreter is gone: made anew below.
  elif [[ -n $(ls -A "$VENV") ]]; then
    _fail "$VENV exists and is no virtual environment; name another with VENV="
  fi

  _find_python
  if [[ -n $_uv ]]; then # where there is no suitable Python, uv looks further and may bring one
    _uv_log=$("$_uv" venv --quiet --allow-existing --python "${_found:-3.11}" "$VENV" 2>&1) && return
    [[ -z $_found ]] || { _say "$_uv_log"; _fail "uv could not make $VENV"; }
  fi
  if [[ -z $_found && -n $_no_ensurepip ]]; then
    _fail "$_no_ensurepip cannot make a virtual environment: install its venv package (Debian, Ubuntu: apt install python3-venv) or uv"
  fi
  [[ -n $_found ]] || _fail "no Python 3.9, 3.10 or 3.11 found; install python3.11 (TensorFlow 2.15 runs on no newer one) or uv"
  "$_found" -m venv --clear "$VENV" >&2 || _fail "$_found -m venv $VENV failed (see above)"
}

_install() {
  local log=$VENV/install.log started=$SECONDS command
  if [[ -n $_uv ]]; then
    command=("$_uv" pip install --python "$PYTHON")
  else
    command=("$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off)
  fi
  command+=(-r "$CHECKOUT/requirements.txt" -c "$CHECKOUT/constraints.txt")
  _say "Installing TensorFlow 2.15 and the other pinned packages into $VENV: once, a few minutes, 2.5 GB; progress in $log"
  # PIP_USER: an environment has no user site.
  if ! PIP_USER=0 "${command[@]}" </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    case $(uname -sm) in
      Linux\ x86_64 | Darwin\ *) ;;
      *) _say "tensorflow-addons has wheels for Linux on x86-64 and for macOS; this is $(uname -sm)" ;;
    esac
    _say "error: the packages could not be installed into $VENV (see above); the same command tries again"
    exit 1
  fi
  _say "Installed in $((SECONDS - started)) s."
}

_setup() {
  local stamp=$VENV/installed.txt wanted
  # The stamp is the text of both files itself: exact, and no tool is needed to compare it.
  wanted=$(<"$CHECKOUT/requirements.txt")$'\n'$(<"$CHECKOUT/constraints.txt")
  [[ ! -x $PYTHON || ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0

  local _uv _uv_log _found _no_ensurepip
  _uv=$(command -v uv || true)
  [[ -d $VENV || ! -e $VENV ]] || _fail "$VENV is a file; name a directory with VENV="
  mkdir -p "$VENV" 2>/dev/null || _fail "cannot make $VENV; name a writable directory with VENV="
  if command -v flock >/dev/null 2>&1; then # two first runs at once: one installs, the other waits
    exec 9<"$VENV"
    flock -n 9 || { _say "Another run is installing into $VENV; waiting for it."; flock 9; }
    [[ ! -x $PYTHON || ! -f $stamp || $(<"$stamp") != "$wanted" ]] || { exec 9<&-; return 0; }
  fi
  rm -f "$stamp"
  _make_venv
  _install
  printf '%s\n' "$wanted" >"$stamp.new" && mv "$stamp.new" "$stamp" # last: an interrupted installation is done again
  if command -v flock >/dev/null 2>&1; then exec 9<&-; fi
}

# Runs the command NAME [FLAG...] of cli/commands.py in place of this shell.
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
unset PYTHONHOME PYTHONPATH # packages found through PYTHONPATH would count as installed
# In the checkout: the caller's directory may hold a venv.py, a uv.toml or a .python-version.
(cd -- "$CHECKOUT" && _setup)
export PYTHONPATH=$CHECKOUT PYTHONUNBUFFERED=1
