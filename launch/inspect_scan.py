#!/usr/bin/env python
"""Look at scans before training: python launch/inspect_scan.py scan.npz [--config configs/default.yaml] [--data.measurement counts] ..."""

from pathlib import Path

from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser, read_config


def main() -> None:
    parser = make_parser("Show what scan files hold, what training would take from them with the same options, and what looks wrong.")
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN", help="scan file")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder of the pictures NAME.inspect.png; default: this one"
    )
    parser.add_argument("--convert", type=Path, metavar="FILE", help="write the scan as .npz, or .h5, too; an existing file is refused")
    arguments = parser.parse_args()
    # Only now: --help, and a mistake in the command, don't wait for PyTorch.
    from ptycho_dist.inspection.inspect_scans import inspect

    inspect(read_config(parser, arguments), arguments.scans, arguments.out, arguments.convert)


if __name__ == "__main__":
    run(main)
