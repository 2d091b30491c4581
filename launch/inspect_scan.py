#!/usr/bin/env python
"""Look at scans before training: python launch/inspect_scan.py scan.npz [--config
configs/default.yaml] [--data.measurement counts] ..."""

from ptycho_dist.commands.inspect_scan import main

if __name__ == "__main__":
    main()
