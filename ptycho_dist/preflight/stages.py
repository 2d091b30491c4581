"""The stages of the preparation as rows: what each found, and where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ptycho_dist.config import Config
from ptycho_dist.data import prepare as stage
from ptycho_dist.data.prepare import STAGES, PreparedData, Stage, prepare, reading_advice
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Scan
from ptycho_dist.memory_supply import size_in_words
from ptycho_dist.preflight.table import Row, failure_of_all, not_looked_at, row_found_together


class WatchedPreparation:
    """The preparation, run as far as it comes; a collective.

    Attributes
    ----------
    found
        What each stage gave, by stage; without those that failed or were not reached.
    data
        All of it; None where a stage failed.
    failure
        In words, why the first stage that is not in `found` failed; None where none did.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.found: dict[Stage, Any] = {}
        self.data: PreparedData | None = None
        self.failure: str | None = None
        try:
            self.data = prepare(config.data, self._run)
        except Exception as error:
            self.failure = failure_of_all(error)

    def _run(self, running: Stage, action: Callable[[], Any]) -> Any:
        self.found[running] = action()
        return self.found[running]

    def rows(self) -> Iterator[Row]:
        """Yield a row per file and per stage."""
        file_rows = list(self._file_rows())
        yield from file_rows
        stopped = any(row.verdict == "FAIL" for row in file_rows)
        for current in STAGES[1:]:
            if current in self.found:
                yield Row(what=current.name, found=self._describe(current))
            elif stopped:
                yield not_looked_at(current.name)
            else:
                found = str(self.failure)
                yield Row(what=current.name, found=found, verdict="FAIL", fix=current.fix)
                stopped = True

    def _file_rows(self) -> Iterator[Row]:
        """Yield one row per file; all are opened, so that every file that fails is shown."""
        if stage.SCANS in self.found:
            for scan in self.found[stage.SCANS]:
                yield Row(what=stage.SCANS.name, found=describe_file(scan))
            return
        try:
            paths = self.config.data.paths
        except ValueError as error:
            yield Row(what=stage.SCANS.name, found=str(error), verdict="FAIL", fix=stage.SCANS.fix)
            return
        for path in paths:
            look = partial(self._open, path)
            yield row_found_together(stage.SCANS.name, look, fix=stage.SCANS.fix)

    def _open(self, path: Path) -> str:
        return describe_file(read_scan(path, options=self.config.data))

    def _describe(self, current: Stage) -> str:
        found = self.found[current]
        if current is stage.PROBES:
            modes, size, _ = found.scans[0].probe.shape
            return f"{modes} mode(s) of {size} x {size}, as the patterns"
        if current is stage.SUBSET:
            return (
                f"{found.description}; {len(found.train)} training patterns, "
                f"{len(found.validation)} validation patterns, groups of "
                f"{self.config.data.group_size}; fingerprint {found.fingerprint}"
            )
        if current is stage.PATTERNS:
            return "; ".join([str(found), *reading_advice(self.found[stage.SCANS], found)])
        if current is stage.NORMALIZATION:
            return f"r = {found.rms_factor!r} from {found.num_patterns} patterns"
        if current is stage.NPHOTONS:
            return f"{found.value!r} (source: {found.source})"
        if current is stage.SCALE:
            return f"s = {found.intensity_scale!r} from {found.num_patterns} patterns"
        return f"{len(self.found[stage.SUBSET].validation)} patterns read"


def describe_file(scan: Scan) -> str:
    """Return what a scan file holds, in one line."""
    size = scan.pattern_size
    masked = "" if scan.mask is None else f", {size**2 - scan.num_counted} pixels masked"
    return (
        f"{scan.path}: {scan.num_patterns} patterns of {size} x {size} {scan.diffraction.dtype}"
        f"{masked}, {size_in_words(scan.num_bytes)}, {scan.measurement}, {len(scan.probe)} probe "
        "mode(s); on every rank"
    )
