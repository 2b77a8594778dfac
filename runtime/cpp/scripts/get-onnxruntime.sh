#!/usr/bin/env bash
# Gathers what compiling against ONNX Runtime takes into one folder: DEST/include with the headers, and DEST/lib with
# links to the library inside the Python package `onnxruntime`, which carries no headers.
#
#     get-onnxruntime.sh DEST [PYTHON]
#
# The headers are those of the package libonnxruntime-dev of Debian or Ubuntu: this release's if it has the package, else
# those of Debian 13 or Ubuntu 26.04, taken from the mirror that apt already uses. ONNX Runtime's C API is versioned, so
# older headers work with a newer library. The package is unpacked, not installed; nothing outside DEST changes, and no
# root is needed.
set -euo pipefail

dest=${1:?usage: get-onnxruntime.sh DEST [PYTHON]}
python=${2:-python3}

fail() { echo "get-onnxruntime.sh: $*" >&2; exit 1; }

[ -f "$dest/complete" ] && exit 0
mkdir -p "$dest/lib" "$dest/apt/partial" "$dest/apt/lists/partial" "$dest/headers"
dest=$(cd "$dest" && pwd)

# The library: one real file inside the package, linked under the names that linkers and loaders ask for.
library=$("$python" -c '
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi"
print(*sorted(folder.glob("libonnxruntime.so*"))[:1])' 2>/dev/null) || library=
[ -n "$library" ] || fail "the Python package onnxruntime is not installed for $python; run pip install '.[cpu]' in a checkout of FlowBlending."
ln -sf "$library" "$dest/lib/libonnxruntime.so"
ln -sf "$library" "$dest/lib/libonnxruntime.so.1"

# The headers, from a private view of the mirror's later release where this one has no such package.
cd "$dest/apt"
if ! apt-get -qq download libonnxruntime-dev 2>/dev/null; then
    read -r origin mirror < <(apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(ORIGIN) $(SITE)' \
        "Identifier: Packages" |
        awk '$1 == "main" && $2 !~ /-/ && ($3 == "Debian" || $3 == "Ubuntu") { print $3, $4; exit }') || true
    case ${origin:-} in
        Debian) name="Debian 13" release="trixie main" ;;
        Ubuntu) name="Ubuntu 26.04" release="resolute universe" ;;
        *) fail "apt knows no mirror of Debian or Ubuntu; run apt-get update as root where it has not read one yet," \
            "or give the headers yourself with -DONNXRUNTIME_ROOT." ;;
    esac
    # Without this file, apt takes the keys that it trusts for everything.
    keyring=/usr/share/keyrings/${origin,,}-archive-keyring.gpg
    signed=
    [ -f "$keyring" ] && signed="[signed-by=$keyring] "
    echo "deb $signed$mirror $release" > sources.list
    options=(-qq -o "Dir::Etc::SourceList=$dest/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$dest/apt/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
        -o Acquire::Languages=none -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update || fail "apt cannot read $name from $mirror."
    apt-get "${options[@]}" download libonnxruntime-dev || fail "apt cannot download libonnxruntime-dev."
fi
dpkg-deb -x libonnxruntime-dev_*.deb "$dest/headers"
header=$(find "$dest/headers" -name onnxruntime_cxx_api.h | head -n 1)
[ -n "$header" ] || fail "libonnxruntime-dev holds no onnxruntime_cxx_api.h."
ln -sfn "$(dirname "$header")" "$dest/include"
rm -rf "$dest/apt"
touch "$dest/complete"
