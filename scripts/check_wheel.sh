#!/usr/bin/env bash
# Build the wheel, install it where there is no checkout, and use it: help, a plan, a
# conversion, one update of training, one prediction. Nothing is downloaded but the
# build backend: the libraries are those of the virtual environment that is named.
#
#     scripts/check_wheel.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work" .
"$venv/bin/python" -m venv --without-pip "$work/installed"
site=$("$work/installed/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# A .pth adds the directory, not the .pth files inside: the checkout stays out of sight.
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/libraries.pth"
"$venv/bin/python" -m pip --python "$work/installed/bin/python" install --quiet --no-deps "$work"/*.whl

mkdir "$work/empty"
cd "$work/empty"
export HOME=$work PATH=$work/installed/bin:$PATH JAX_PLATFORMS=cpu
# Compiled code runs once here.
export XLA_FLAGS=--xla_backend_optimization_level=0
unset PYTHONPATH

python - <<'PY'
import handjax, pathlib, sys
assert pathlib.Path(handjax.__file__).is_relative_to(sys.prefix), handjax.__file__
PY

handjax --help > help.txt
grep -q text-to-mesh help.txt
handjax train --config tokenhand:smoke --dry_run | grep "stage tokenizer"

python - <<'PY'
import numpy as np
import safetensors.numpy

weights = {}


def block(name, norm, size, inputs, outputs):
    weights[f"{name}.weight"] = np.zeros((outputs, inputs, size, size), np.float32)
    for part in ("weight", "bias", "running_mean", "running_var"):
        weights[f"{norm}.{part}"] = np.ones(outputs, np.float32)


block("conv1", "bn1", 7, 3, 64)
for stage in range(4):
    width, before = 64 * 2**stage, 64 * 2 ** max(stage - 1, 0)
    for number in range(2):
        name, inputs = f"layer{stage + 1}.{number}", width if number else before
        block(f"{name}.conv1", f"{name}.bn1", 3, inputs, width)
        block(f"{name}.conv2", f"{name}.bn2", 3, width, width)
        if inputs != width:
            block(f"{name}.downsample.0", f"{name}.downsample.1", 1, inputs, width)
safetensors.numpy.save_file(weights, "resnet18.safetensors")
PY
handjax convert resnet18.safetensors --from timm --to resnet18 | tail -1

# From the zeros above: what is learned does not matter, a ResNet compiles quickly.
handjax train --config simplehand:smoke --workdir run --stop_after=1 \
    --config.model.backbone=resnet18 --config.init_from=resnet18 | tail -1
python -c 'import cv2, numpy; cv2.imwrite("photo.jpg", numpy.full((240, 320, 3), 128, numpy.uint8))'
handjax predict photo.jpg --workdir run --box=60,40,260,220 --detector=none --output out | tail -1
test -s out/photo.json
echo "the wheel works in an empty directory"
