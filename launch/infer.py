#!/usr/bin/env python
"""Reconstruct a scan with a trained network: python launch/infer.py scan.npz --bundle
RUN/bundle.zip --out DIR"""

from ptycho_dist.commands.infer import main

if __name__ == "__main__":
    main()
