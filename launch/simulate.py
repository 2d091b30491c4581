#!/usr/bin/env python
"""Simulate a scan and write it as a PtychoPINN NPZ: python launch/simulate.py --config
configs/quickstart.yaml --out scan.npz."""

from ptycho_dist.commands.simulate import main

if __name__ == "__main__":
    main()
