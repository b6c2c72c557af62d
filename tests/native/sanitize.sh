#!/usr/bin/env bash
# The compiled core under AddressSanitizer and UndefinedBehaviorSanitizer: `sanitize.sh [pytest
# arguments]`, by default all tests of QPs with the native engine. Fresh memory is full of NaN.
# PYTHON chooses the interpreter (it needs torch, pybind11 and pytest), CXX the compiler (GCC).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python}
cxx=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/copy"
cp -r "$root"/{diffopt,problems,tests,setup.cfg,conftest.py} "$work/copy"
cd "$work/copy"
rm -f diffopt/_native/*.so
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
read -ra includes <<<"$("$python" -m pybind11 --includes)"
# A vector and its entries share memory; a warning about the ABI of vectors is none here.
flags=(-O1 -g -std=c++17 -fPIC -shared -pthread -fvisibility=hidden -fno-math-errno
    -fno-trapping-math -fno-omit-frame-pointer -Wno-psabi -Wno-ignored-attributes
    -fsanitize=address,undefined -fno-sanitize-recover=all)

build() { # name, source, further flags
    "$cxx" "${flags[@]}" "${@:3}" "${includes[@]}" "-DDIFFOPT_MODULE=$1" \
        "diffopt/_native/$2" -o "diffopt/_native/$1$suffix"
}

check() { # name, what torch calls it, pytest arguments
    export ATEN_CPU_CAPABILITY=$2 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
    export ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255
    export UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$work/copy
    local loaded preload
    preload="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"
    loaded=$(LD_PRELOAD=$preload "$python" -c 'import diffopt._native as n; print(n.core.__file__)')
    [[ $loaded == "$work/copy/diffopt/_native/$1$suffix" ]] || { echo "loaded $loaded"; return 1; }
    # --capture=sys leaves the file descriptor of errors, where reports go, alone.
    LD_PRELOAD=$preload "$python" -m pytest --capture=sys -q -p no:cacheprovider \
        -p no:faulthandler "${@:3}"
}

# Inductor cannot compile for the capability "default"; other processes are not under test.
skip="test_peers or inductor or every_build or interrupt or race or compile"
(($#)) || set -- tests/qp tests/native -k "native and not ($skip)"
for line in "base default" "avx2 avx2 -mavx2 -mfma"; do
    read -ra words <<<"$line"
    echo "== ${words[0]}, under the sanitizers"
    build "${words[0]}" module.cpp "${words[@]:2}"
    if ! check "${words[@]:0:2}" "$@"; then
        echo "FAILED: ${words[0]}"
        exit 1
    fi
done
echo "== the kernels of the cuda engine, on a CPU"
build emulation emulation.cpp
check base default tests/qp tests/native/test_teams.py -k "(cuda or teams) and not ($skip)" ||
    { echo "FAILED: emulation"; exit 1; }
echo "PASSED: base, avx2 and the kernels"
