#!/usr/bin/env python
"""Compare with a reference: python launch/evaluate.py --reconstruction DIR/reconstruction.npz --reference scan.npz --out DIR"""

from pathlib import Path

from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser


def main() -> None:
    parser = make_parser("Compare a reconstruction with the object in a scan file.", config=False)
    parser.add_argument("--reconstruction", type=Path, required=True, help="reconstruction.npz, as launch/infer.py writes it")
    parser.add_argument("--reference", type=Path, required=True, help="scan file with an object: a simulation's truth, say")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to; made if missing")
    arguments = parser.parse_args()
    # Only now: --help, and a mistake in the command, don't wait for PyTorch.
    from ptycho_dist.inference.evaluate import evaluate

    evaluate(arguments.reconstruction, arguments.reference, arguments.out)


if __name__ == "__main__":
    run(main)
