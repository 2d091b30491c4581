"""The columns of `metrics.csv`, and how often a single step gets a row."""

STEPS_BETWEEN_ROWS = 50

STEP_SPLIT = ("load_ms", "compute_ms", "communicate_ms", "wait_ms")
"""Where a step's time goes; see `step_clock.step_split`."""

METRICS = (
    "epoch",
    "step",
    "learning_rate",
    "step_deviance_per_pixel",
    "train_deviance_per_pixel",
    "val_deviance_per_pixel",
    "val_nll",
    "gain",
    *STEP_SPLIT,
)
