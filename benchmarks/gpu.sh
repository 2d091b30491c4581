#!/usr/bin/env bash
# Everything that a GPU can tell, in under nine minutes:   bash benchmarks/gpu.sh [DIR]
#
# The training step in fp32, TF32 and bf16-mixed, against what the card does in a matrix product and a copy; two ranks under DDP where there
# are two GPUs; the scale, loading, start-up and inference. Tables on screen and in DIR/gpu.log, JSON files in DIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${1:-gpu_benchmarks}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
mkdir -p "$OUT"
exec > >(tee "$OUT/gpu.log") 2>&1

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "PyTorch sees no GPU"; print(torch.cuda.get_device_name(), torch.__version__)'

part() {  # NAME SECONDS COMMAND...: one that fails, or takes too long, leaves the time of the others
  local name=$1 seconds=$2
  shift 2
  echo; echo "== $name"
  timeout --kill-after=5 "$seconds" "$@" || echo "$name: ended with status $? (124: after $seconds s)"
}

SCAN=$OUT/scan.npz RUN=$OUT/run
part "training step" 120 "$PYTHON" benchmarks/training_step.py --out "$OUT" --batches 16 64 1024 --profile
[ "$(nvidia-smi --list-gpus | wc -l)" -lt 2 ] || part "DDP" 60 "$PYTHON" benchmarks/ddp.py --out "$OUT"
part "scale" 45 "$PYTHON" benchmarks/scale.py --out "$OUT"
part "loading" 45 "$PYTHON" benchmarks/loading.py --out "$OUT" --ranks 1 --turns 5
part "start-up" 60 "$PYTHON" benchmarks/start_up.py --out "$OUT" --turns 2
part "a scan" 30 "$PYTHON" launch/simulate.py --simulation.scan_shape '[24,24]' --out "$SCAN"
part "training" 60 "$PYTHON" launch/train.py --config configs/default.yaml --data.path "$SCAN" --train.epochs 10 --train.run_dir "$RUN"
part "inference" 90 "$PYTHON" benchmarks/inference.py --out "$OUT" --bundle "$RUN/bundle.zip" --data "$SCAN"
