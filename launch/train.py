#!/usr/bin/env python
"""Train a network: torchrun --nproc_per_node=8 launch/train.py --config configs/default.yaml --data.path scan.npz"""

from ptycho_dist import train
from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser, read_config


def main() -> None:
    parser = make_parser("Train a ptychography network on one or several scans, on 1 to N processes.")
    train(read_config(parser, parser.parse_args()))


if __name__ == "__main__":
    run(main)
