#!/usr/bin/env bash
# From nothing to a reconstruction, on two CPU cores: install, simulate, train, reconstruct, compare with the truth.
# What is there already (.venv, the scan, the trained bundle) is used again; delete quickstart/ to start anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/make_venv.sh
out=quickstart config=configs/quickstart.yaml python=.venv/bin/python

if [ ! -f $out/scan.npz ]; then
  echo "== simulating a scan"
  $python launch/simulate.py --config $config --out $out/scan.npz
fi
if [ ! -f $out/run/bundle.zip ]; then
  echo "== training on 2 processes"
  OMP_NUM_THREADS=1 .venv/bin/torchrun --standalone --nproc_per_node=2 launch/train.py --config $config --data.path $out/scan.npz --train.run_dir $out/run --train.resume auto
fi
echo "== reconstructing with the bundle"
$python launch/infer.py $out/scan.npz --bundle $out/run/bundle.zip --out $out/reconstruction
echo "== comparing with the truth"
$python launch/evaluate.py --reconstruction $out/reconstruction/reconstruction.npz --reference $out/scan.npz --out $out/reconstruction

$python - $out <<'PYTHON'
import json, sys
from pathlib import Path

out = Path(sys.argv[1]).resolve()
summary = json.loads((out / "reconstruction/summary.json").read_text())
metrics = json.loads((out / "reconstruction/metrics.json").read_text())
print(f"""
intensity scale            {summary["intensity_scale"]:.6f}   (nphotons {summary["nphotons"]:g} from {summary["nphotons_source"]})
photons a pattern          {summary["mean_predicted_photons"]:.0f} predicted, {summary["mean_measured_photons"]:.0f} measured
deviance per pixel         {summary["deviance_per_pixel"]:.3f}   (1: explained down to shot noise)
correlation with the truth phase {metrics["phase_correlation"]:.3f}, amplitude {metrics["amplitude_correlation"]:.3f}

pictures                   {out}/reconstruction/amplitude.png
                           {out}/reconstruction/phase.png
                           {out}/reconstruction/comparison.png   (against the truth)
trained network            {out}/run/bundle.zip""")
PYTHON
