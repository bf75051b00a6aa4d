# shellcheck shell=bash
# Sourced by scripts/setup.sh, in a subshell, where the environment $VENV is missing or out of date.
# Finds a Python, makes the environment, installs the locked packages and, last, writes the stamp.

_say() { printf '%s\n' "$*" >&2; }

# Sets _stack to the stack that the Python $1 is to run: STACK, or else its default. False where
# there is none.
# Sets _version to MAJOR.MINOR; empty where the Python does not start (a pyenv shim may exist and
# yet fail).
_python_fits() {
  local stacks=""
  _version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || _version=""
  case $_version in
    3.9) stacks=$_classic ;;
    3.10 | 3.11) stacks="$_classic $_current" ;;
    3.12 | 3.13) stacks=$_current ;;
  esac
  for _stack in $stacks; do
    if [[ ${STACK:-$_stack} == "$_stack" ]]; then return 0; fi
  done
  return 1
}

_has_tensorflow() {
  "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("tensorflow") is None)' >/dev/null 2>&1
}

# Sets _found to a suitable Python on PATH that can make an environment. Without one, _found is
# empty, _unfit lists what was seen, and _no_ensurepip names a suitable Python that lacks ensurepip
# (Debian keeps that in its own package).
# Pythons of the classic stack come first. 3.9, which is past its end of life, comes last.
_find_python() {
  local name names="python3.11 python3.10 python3.13 python3.12 python3.9 python3 python"
  if [[ $STACK == current || -z $_classic ]]; then names="python3.13 python3.12 python3.11 python3.10 python3 python"; fi
  if [[ $ACCELERATOR == preinstalled ]]; then names="python3 python ${names% python3 python}"; fi
  _found="" _no_ensurepip="" _unfit=""
  for name in $names; do
    command -v "$name" >/dev/null 2>&1 || continue
    if ! _python_fits "$name"; then
      if [[ -n $_version ]]; then _unfit+="${_unfit:+, }$name is $_version"; fi
    elif [[ $ACCELERATOR == preinstalled ]] && ! _has_tensorflow "$name"; then
      _unfit+="${_unfit:+, }$name has no TensorFlow"
    elif [[ -n $_uv ]] || "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      _found=$name
      return
    else
      _no_ensurepip=${_no_ensurepip:-$name}
    fi
  done
}

_fail_without_python() {
  local needed="Python 3.9 to 3.13" advice="install python3.13 or uv"
  if [[ -n $_no_ensurepip ]]; then
    _fail "$_no_ensurepip cannot make a virtual environment: install its venv package" \
      "(Debian, Ubuntu: apt install python3-venv) or uv"
  fi
  if [[ $STACK == classic || -z $_current ]]; then needed="Python 3.9 to 3.11" advice="install python3.11 or uv"; fi
  if [[ $STACK == current || -z $_classic ]]; then needed="Python 3.10 to 3.13"; fi
  if [[ $ACCELERATOR == preinstalled ]]; then needed+=" with TensorFlow" advice="unset ACCELERATOR to install TensorFlow"; fi
  _fail "no $needed found${_unfit:+ ($_unfit)}; $advice"
}

# True where $VENV is a usable environment. Ends where it is something else.
_check_venv() {
  if [[ ! -e $VENV/pyvenv.cfg ]]; then
    [[ -z $(ls -A "$VENV") ]] || _fail "$VENV exists and is no virtual environment; name another with VENV="
    return 1
  fi
  if [[ -n $_recorded && $_recorded != "$STACK $ACCELERATOR" ]]; then
    _fail "$VENV was made with STACK=${_recorded% *} ACCELERATOR=${_recorded#* }; delete it or name another with VENV="
  fi
  [[ -x $PYTHON ]] && "$PYTHON" -c '' >/dev/null 2>&1 || return 1 # half made, or its interpreter is gone
  _python_fits "$PYTHON" || _fail "$VENV holds Python $_version, which does not run STACK=${STACK:-classic or current}; \
delete it or name another with VENV="
  [[ -n $_uv ]] || "$PYTHON" -c 'import pip' >/dev/null 2>&1
}

# Makes $VENV and sets _stack.
_make_venv() {
  local log newest=3.11 options=(--clear)
  _find_python
  if [[ -n $_uv ]]; then # where there is no suitable Python, uv looks further and may bring one
    if [[ $STACK == current || -z $_classic ]]; then newest=3.13; fi
    if log=$("$_uv" venv --quiet --allow-existing --python "${_found:-$newest}" "$VENV" 2>&1); then
      _python_fits "$PYTHON" || _fail "uv made $VENV with Python $_version, which does not run STACK=${STACK:-classic or current}"
      return
    fi
    [[ -z $_found ]] || { _say "$log"; _fail "uv could not make $VENV"; }
  fi
  [[ -n $_found ]] || _fail_without_python
  if [[ $ACCELERATOR == preinstalled ]]; then options+=(--system-site-packages); fi
  "$_found" -m venv "${options[@]}" "$VENV" >&2 || _fail "$_found -m venv $VENV failed (see above)"
  _python_fits "$PYTHON"
}

# Runs a command of the installation. Its output goes to the log, and is shown where it fails.
_logged() {
  # PIP_USER: an environment has no user site.
  if PIP_USER=0 "$@" </dev/null >>"$_log" 2>&1; then return; fi
  cat "$_log" >&2
  _say "error: the packages could not be installed into $VENV (see above); the same command tries again"
  exit 1
}

# Installs exactly the packages of the locks $@, each checked against its hashes.
_install_locks() {
  local lock command=("${_pip[@]}" --require-hashes --no-deps) # a lock holds the whole closure
  for lock in "$@"; do command+=(-r "$lock"); done
  _logged "${command[@]}"
}

# Installs what the TensorFlow that is there lacks, and leaves each package that is there as it is.
# Sets _stack.
_install_missing() {
  _stack=$("$PYTHON" scripts/missing_packages.py requirements.txt "$VENV") || exit 2
  _logged "${_pip[@]}" -r "$VENV/missing.txt" -c "$VENV/present.txt"
  _logged "${_pip[@]}" --no-deps -r "$VENV/missing_beside_tensorflow.txt"
}

_install() {
  local _locks _log=$VENV/install.log started=$SECONDS _pip
  _pip=("$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off)
  if [[ -n $_uv ]]; then _pip=("$_uv" pip install --python "$PYTHON"); fi
  : >"$_log"
  if [[ $ACCELERATOR == preinstalled ]]; then
    _say "Installing what the TensorFlow that is there lacks into $VENV; progress in $_log"
    _install_missing
    _find_locks "$_stack" preinstalled
    _locks=("${_locks[@]:1}") # without requirements.txt
  else
    _find_locks "$_stack" "$ACCELERATOR"
    _say "Installing the $_stack stack (ACCELERATOR=$ACCELERATOR) into $VENV: once, a few minutes; progress in $_log"
  fi
  if [[ ${#_locks[@]} -gt 0 ]]; then _install_locks "${_locks[@]}"; fi
  _say "Installed in $((SECONDS - started)) s."
}

_set_up() {
  local _uv _platform _classic _current _recorded _stack _version _found="" _no_ensurepip _unfit
  _read_record
  STACK=${STACK:-${_recorded% *}} ACCELERATOR=${ACCELERATOR:-${_recorded#* }}
  _platform=$(uname -sm)
  if [[ -z $ACCELERATOR ]]; then # TensorFlow has CUDA packages for this platform alone
    ACCELERATOR=cpu
    if [[ $_platform == "Linux x86_64" && $(nvidia-smi -L 2>/dev/null) == *"GPU "* ]]; then ACCELERATOR=cuda; fi
  fi
  _check_choice
  _uv=$(command -v uv || true)
  if [[ $ACCELERATOR == preinstalled ]]; then _uv=""; fi # uv does not see the system's packages
  _check_venv || _make_venv
  if [[ $ACCELERATOR == preinstalled ]] && ! _has_tensorflow "$PYTHON"; then
    _fail "$VENV does not see a TensorFlow of the system; delete it and unset ACCELERATOR to install one"
  fi
  printf '%s %s\n' "$_stack" "$ACCELERATOR" >"$STAMP" # the choice survives an interrupted installation
  _install
  _print_stamp "$_stack" "$ACCELERATOR" >"$STAMP.new" && mv "$STAMP.new" "$STAMP" # last: an interrupted one is done again
}

# Ends where STACK and ACCELERATOR do not suit this machine. Sets _classic and _current to ""
# where that stack is none.
_check_choice() {
  _classic=classic _current=current
  case $ACCELERATOR:$_platform in
    cpu:*) ;;
    cuda:"Linux x86_64") ;;
    tpu:"Linux x86_64") _classic="" ;; # the package with TPU kernels is newer
    cuda:* | tpu:*) _fail "ACCELERATOR=$ACCELERATOR needs Linux on x86-64; this is $_platform" ;;
    preinstalled:*)
      [[ -z $STACK || -n $_recorded ]] ||
        _fail "the TensorFlow that is there decides the stack; unset STACK or ACCELERATOR"
      ;;
    *) _fail "ACCELERATOR=$ACCELERATOR is none of cpu, cuda, tpu and preinstalled" ;;
  esac
  case $_platform in # what there are wheels for
    "Linux x86_64" | "Darwin arm64") ;;
    "Darwin x86_64") _current="" ;;
    "Linux aarch64") _classic="" ;;
    *) _fail "TensorFlow has no packages for $_platform; it has for Linux and for macOS" ;;
  esac
  case $STACK in
    "" | "$_classic" | "$_current") ;;
    classic | current) _fail "STACK=$STACK has no packages for ACCELERATOR=$ACCELERATOR on $_platform; unset STACK" ;;
    *) _fail "STACK=$STACK is neither classic nor current" ;;
  esac
}

[[ -d $VENV || ! -e $VENV ]] || _fail "$VENV is a file; name a directory with VENV="
mkdir -p "$VENV" 2>/dev/null || _fail "cannot make $VENV; name a writable directory with VENV="
if command -v flock >/dev/null 2>&1; then # two first runs at once: one installs, the other waits
  exec 9<"$VENV"
  flock -n 9 || { _say "Another run is installing into $VENV; waiting for it."; flock 9; }
fi
_is_up_to_date || _set_up
