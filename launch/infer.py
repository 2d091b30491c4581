#!/usr/bin/env python
"""Reconstruct a scan with a trained network: python launch/infer.py --bundle RUN/bundle.zip --data scan.npz --out DIR"""

from pathlib import Path

from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser


def main() -> None:
    parser = make_parser("Reconstruct a scan with a trained network, in one process.", config=False)
    parser.add_argument("--bundle", required=True, help="bundle.zip of a training run")
    parser.add_argument("--data", required=True, help="scan file")
    parser.add_argument("--out", required=True, help="directory to write to; made if missing")
    parser.add_argument("--measurement", choices=["amplitude", "counts"], help="what the scan's diffraction array holds, where the file "
                        "does not say it and it is not what the training scan held")  # fmt: skip
    parser.add_argument("--normalization", choices=["bundle", "scan"], default="bundle", help="RMS factor of the input: the stored one, or "
                        "the scan's own (another dose)")  # fmt: skip
    arguments = parser.parse_args()
    from ptycho_dist.inference.reconstruct import infer

    infer(
        Path(arguments.bundle), Path(arguments.data), Path(arguments.out),
        normalization=arguments.normalization, measurement=arguments.measurement,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
