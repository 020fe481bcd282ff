#!/usr/bin/env bash
# Install what the node needs (python) or what its tests talk to (peers), each by name from its own registry.
#   install.sh python PYTHON VENV   the environment in VENV, with the development tools
#   install.sh peers                Debian packages: DCMTK, Orthanc, dicom3tools, PixelMed with a Java runtime, BART, MRD tools
# Exit 3: something is left to you. Safe to run again. Debian packages need root; without root, or elsewhere than Debian, they are left to you.
set -euo pipefail
cd "$(dirname "$0")/.."

apt_install() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ! command -v apt-get > /dev/null || [[ $(id -u) != 0 ]]; then
    echo "not installed: ${missing[*]} (needs Debian and root); tests that need them are skipped" >&2
    return 3
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o DPkg::Lock::Timeout=300 "${missing[@]}" > /dev/null
}

case ${1:-} in
  python)
    python=$2 venv=$3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
    "$python" -c 'import ensurepip' 2> /dev/null || apt_install python3-venv
    # --clear: a run that failed half-way leaves a folder without pip.
    "$venv/bin/python" -m pip --version &> /dev/null || "$python" -m venv --clear "$venv"
    echo "installing the Python packages (torch first; some minutes the first time) ..."
    # torch alone and pinned: a later resolver run must not replace it by a newer build with gigabytes of CUDA.
    "$venv/bin/pip" install -q --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
    "$venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
    ;;
  peers)
    apt_install dcmtk orthanc dicom3tools libpixelmed-java libbsh-java default-jre-headless bart ismrmrd-tools
    # Debian starts its Orthanc as a service; the tests start their own.
    if [[ -d /run/systemd/system ]]; then systemctl disable --now orthanc > /dev/null 2>&1 || true; fi
    ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
