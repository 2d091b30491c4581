#!/usr/bin/env python
"""Train a network: torchrun --nproc_per_node=8 launch/train.py --config configs/default.yaml
--data.path scan.npz"""

from ptycho_dist.commands.train import main

if __name__ == "__main__":
    main()
