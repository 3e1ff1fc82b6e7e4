#!/usr/bin/env bash
# aarch64_env.sh DIR PYTHON [PACKAGE...]: DIR/python is then an aarch64 Python of the minor version of PYTHON, a Python of
# this machine, with this working tree's posekit and the packages in the versions of constraints.txt. qemu-user runs it:
# evidence for numbers and for loading, none for speed.
# Needs qemu-user-static, apt-get, dpkg and Debian's package lists, and no root.
set -euo pipefail
ROOT=$(realpath "$(dirname "$0")/../..")
DIR=$(realpath -m "$1"); PYTHON=$2; shift 2
VERSION=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
mkdir -p "$DIR"/{lists/partial,cache/archives/partial,root/proc,site}
: > "$DIR/status" # nothing is installed: every dependency is fetched

apt() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$DIR/lists" \
    -o Dir::State::status="$DIR/status" -o Dir::Cache="$DIR/cache" -o APT::Install-Recommends=false "$@"
}

pip() { "$PYTHON" -m pip --disable-pip-version-check "$@"; }
WHEELS=(-q --only-binary=:all:)
for GLIBC in 2_17 2_26 2_27 2_28 2_31 2_34 2_35; do WHEELS+=(--platform "manylinux_${GLIBC}_aarch64"); done
WHEELS+=(--platform manylinux2014_aarch64)

apt update
# Debian's own Python where it has that version, else the one that cx_Freeze's wheel carries.
if apt --download-only -y install "python$VERSION-minimal" "libpython$VERSION-stdlib" libstdc++6 libgomp1 2> /dev/null > /dev/null; then
  INTERPRETER=$DIR/root/usr/bin/python$VERSION
else
  apt --download-only -y install libc6 libstdc++6 libgomp1 zlib1g > /dev/null
  pip download --no-deps "${WHEELS[@]}" -d "$DIR/wheel" cx_Freeze==7.2.10
  "$PYTHON" -m zipfile -e "$DIR"/wheel/cx_Freeze-*.whl "$DIR/wheel"
  BASES=$DIR/wheel/cx_Freeze/bases; LIB=$DIR/lib # a frozen Python looks for it beside what it is called by
  mkdir -p "$LIB"
  cp -a "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')/." "$LIB/" # its .py files
  rm -rf "$LIB"/{site-packages,test,lib-dynload,config-*}
  cp "$LIB"/_sysconfigdata_*.py "$LIB/_sysconfigdata__linux_aarch64-linux-gnu.py" # looked for by that name
  cp -r "$BASES"/lib/* "$BASES"/lib-dynload/* "$LIB/"
  cp "$ROOT/benchmarks/studies/frozen_startup.py" "$LIB/__startup__.py"
  (cd "$LIB" && "$PYTHON" -m zipfile -c library.zip __startup__.py)
  INTERPRETER=$BASES/console-cpython-${VERSION/./}-aarch64-linux-gnu
  chmod +x "$INTERPRETER"
fi
for PACKAGE in "$DIR"/cache/archives/*.deb; do dpkg -x "$PACKAGE" "$DIR/root"; done
for STDLIB in "$DIR"/root/usr/lib/python3.*/; do "$PYTHON" -m compileall -q "$STDLIB" > /dev/null || true; done # emulated, it takes minutes

# ONNX Runtime reads /proc/cpuinfo and dies of an x86 one; under -L this file is found first.
for CORE in 0 1; do
  printf '%s\n' "processor : $CORE" "BogoMIPS : 50.00" \
    "Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
    "CPU implementer : 0x41" "CPU architecture: 8" "CPU variant : 0x3" "CPU part : 0xd0b" "CPU revision : 1" ""
done > "$DIR/root/proc/cpuinfo"
pip install "${WHEELS[@]}" -c "$ROOT/constraints.txt" --target "$DIR/site" numpy opencv-python-headless onnxruntime "$@"

# A script, so that sys.executable can start further processes. Cortex-A76 is the nearest to Jetson Orin's A78AE.
cat > "$DIR/python" << END
#!/bin/sh
QEMU_CPU=\${QEMU_CPU:-cortex-a76} exec qemu-aarch64-static -L $DIR/root -0 $DIR/python \\
  -E PYTHONHOME=$DIR/root/usr -E PYTHONPATH=$ROOT/.typing:$DIR/site $INTERPRETER "\$@"
END
chmod +x "$DIR/python"
