#!/usr/bin/env bash
# Makes requirements/*.txt anew from requirements.txt, requirements/dev.in and requirements/docs.in:
#   ./scripts/lock.sh [--upgrade]
#
# Needs uv and a package registry. Without --upgrade, versions that still fit stay as they are.
# A lock holds every package of its closure with hashes, for all Pythons and platforms of its stack.
# STACK-cuda.txt and STACK-dev.txt hold only what they add to STACK.txt.
set -euo pipefail
unset UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_DEFAULT_INDEX UV_FIND_LINKS
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
UPGRADE=("$@")
FOLDER=$PWD/requirements
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# requirements.txt gives each Python its default stack. Prints the lines of STACK, for all its
# Pythons.
lines_of() { # STACK
  case $1 in
    classic) grep -v 'python_version >= "3.12"' requirements.txt ;;
    current) grep -v 'python_version < "3.12"' requirements.txt | sed 's/ ; python_version >= "3.12"//' ;;
  esac
}

# Compiles the sources to requirements/NAME.txt, for the Pythons from OLDEST to before END.
compile() { # NAME SOURCE... [UV'S OPTIONS...]
  local out=$FOLDER/$1.txt limits="python_full_version < '$END' and platform_python_implementation != 'PyPy'"
  local gpu="platform_machine == 'x86_64' and sys_platform == 'linux'"
  if [[ $1 == *-cuda ]]; then limits+=" and $gpu"; fi
  shift
  cat >"$SCRATCH/pyproject.toml" <<TOML
[project]
name = "lock"
version = "0"
requires-python = ">=$OLDEST"
[tool.uv]
environments = ["$limits"]
TOML
  (cd "$SCRATCH" && uv pip compile --quiet --universal --python-version "$OLDEST" --generate-hashes --no-header --no-annotate \
    --output-file "$out" ${UPGRADE[@]+"${UPGRADE[@]}"} "$@")
  # The limits above hold for every line, so no line needs to repeat them.
  sed -E -e "s/ and platform_python_implementation != 'PyPy'//" -e "s/( and|( ;)) $gpu/\\2/" \
    -e "s/ and python_full_version < '$END'//" -e "s/ ; python_full_version < '$END' and / ; /" \
    -e "s/ ; python_full_version < '$END' / /" -e 's/ ; \\/ \\/' "$out" >"$SCRATCH/out"
  { printf '# Made by scripts/lock.sh. Do not edit.\n'; cat "$SCRATCH/out"; } >"$out"
}

# Compiles what SOURCE adds to STACK's lock: the lines that the lock does not have. A package that
# the lock has for all Pythons is no addition for some.
compile_addition() { # STACK NAME SOURCE
  compile "$1-$2" "$3" --constraints "$FOLDER/$1.txt"
  awk '!/^ / { keep = !(FILENAME == ARGV[1] || $0 in known || $1 in known); known[$0]; if ($2 == "\\") known[$1] } FILENAME != ARGV[1] && keep' \
    "$FOLDER/$1.txt" "$FOLDER/$1-$2.txt" >"$SCRATCH/out"
  { printf '# Made by scripts/lock.sh. Do not edit.\n'; cat "$SCRATCH/out"; } >"$FOLDER/$1-$2.txt"
}

for stack in classic current; do
  if [[ $stack == classic ]]; then OLDEST=3.9 END=3.12; else OLDEST=3.10 END=3.14; fi
  lines_of "$stack" >"$SCRATCH/$stack.in"
  compile "$stack" "$SCRATCH/$stack.in"
  sed -n 's/^tensorflow==/tensorflow[and-cuda]==/p' "$SCRATCH/$stack.in" >"$SCRATCH/cuda.in"
  compile_addition "$stack" cuda "$SCRATCH/cuda.in"
  compile_addition "$stack" dev "$FOLDER/dev.in"
done

# The newest TensorFlow with TPU kernels on the registry is 2.20. Its package replaces `tensorflow`.
# libtpu is held at a release of that time with wheels for every Python of the stack.
sed -E -e 's/^tensorflow==[0-9.]+/tensorflow-tpu==2.20.0/' -e 's/^(tf-keras|tensorflow-serving-api)==[0-9.]+/\1==2.20.*/' \
  "$SCRATCH/current.in" >"$SCRATCH/tpu.in"
echo 'libtpu==0.0.17' >>"$SCRATCH/tpu.in"
echo tensorflow >"$SCRATCH/excluded.txt"
compile current-tpu "$SCRATCH/tpu.in" --excludes "$SCRATCH/excluded.txt"

# The site is built apart from both stacks, on fewer Pythons.
OLDEST=3.11 END=3.14
compile docs "$FOLDER/docs.in"
