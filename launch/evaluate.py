#!/usr/bin/env python
"""Compare with a reference: python launch/evaluate.py --reconstruction DIR/reconstruction.npz --reference scan.npz --out DIR"""

from pathlib import Path

from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser


def main() -> None:
    parser = make_parser("Compare a reconstruction with the object in a scan file.", config=False)
    parser.add_argument("--reconstruction", required=True, help="reconstruction.npz, as launch/infer.py writes it")
    parser.add_argument("--reference", required=True, help="scan file with objectGuess: a simulation's truth, or another reconstruction")
    parser.add_argument("--out", required=True, help="directory to write to; made if missing")
    arguments = parser.parse_args()
    from ptycho_dist.inference.evaluate import evaluate

    evaluate(Path(arguments.reconstruction), Path(arguments.reference), Path(arguments.out))


if __name__ == "__main__":
    run(main)
