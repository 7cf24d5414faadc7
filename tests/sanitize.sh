#!/bin/sh
# The op tests against kernels built with AddressSanitizer and UndefinedBehaviorSanitizer: sanitize.sh PYTHON
# For this machine's instruction set alone: the source is the same for all, and the widest vectors reach furthest past an
# end; it takes a third of the time to compile.
# libasan must be loaded before Python, and libstdc++ with it, because torch resolves its C++ symbols at load time.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
tree=$root/build/sanitize
PATH=$(dirname "$python"):$PATH
cmake -G Ninja -S "$root" -B "$tree/build" -DPYRECON_SANITIZE=ON -DPYRECON_LEVELS=NATIVE -DPYRECON_CUDA=OFF -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DSKBUILD_PROJECT_VERSION=0 >"$tree.log"
cmake --build "$tree/build" >>"$tree.log"
rm -rf "$tree/site" && mkdir -p "$tree/site"
cp -r "$root/pyrecon" "$tree/site/" && rm -rf "$tree/site/pyrecon/kernels" "$tree/site/pyrecon/"_core*.so
cp -r "$root/kernels" "$tree/site/pyrecon/kernels" && cp "$tree/build/"_core*.so "$tree/site/pyrecon/"
cd "$tree"
export OMP_NUM_THREADS=2 PYTHONPATH="$tree/site" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so.6)" \
  "$python" -m pytest -q -c "$root/pyproject.toml" --rootdir "$root" "$root/tests/test_ops.py" \
  -k "cpu_kernel_obeys_the_law and not mri and not -mpi and not large and not 640" -p no:cacheprovider \
  -n 2 --dist worksteal --capture=sys  # a sanitizer reports on the real stderr and ends the process
