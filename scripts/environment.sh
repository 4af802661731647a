# Sourced by the other scripts: a virtual environment with the package in it. CL_VENV names another place for it.
# Usage: prepare_environment EXTRAS, with EXTRAS such as "" or "[test]".

prepare_environment() {
  local extras="$1" venv="${CL_VENV:-.venv}" stamp wanted
  stamp="$venv/.installed${extras//[^a-z]/}"
  wanted="$(cat setup.cfg constraints.txt; pwd)"
  if [ ! -x "$venv/bin/python" ]; then
    echo "making a virtual environment in $venv" >&2
    python3 -m venv "$venv"
  fi
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing the package and what it needs (a few minutes the first time)" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e ".$extras" -c constraints.txt
    printf '%s' "$wanted" > "$stamp"
  fi
  if ! "$venv/bin/python" -c "import torchvision" 2> /dev/null; then
    echo "torch and torchvision in $venv do not match; mend it with: $venv/bin/pip install -c constraints.txt --force-reinstall torch torchvision" >&2
    exit 1
  fi
  PATH="$(cd "$venv/bin" && pwd):$PATH"
  export PATH
}
