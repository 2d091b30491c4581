"""How hypothesis runs here: the same examples every time, on any machine, and nothing written to
disk."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: a shared core may be slow. A failing example is printed; `--hypothesis-seed` and more
# examples are for the one who hunts.
settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reproducible")
