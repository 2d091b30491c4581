#!/usr/bin/env python
"""Copy scans to the disk of this node, once and checked: python launch/stage.py scan.npz --to
/scratch/me"""

from ptycho_dist.commands.stage import main

if __name__ == "__main__":
    main()
