"""What is known before an allocation is spent: `--check` of a run, and a look at single scans."""
