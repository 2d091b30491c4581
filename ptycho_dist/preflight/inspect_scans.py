"""Tables and a picture of each scan (`ptycho-inspect`). What training would take is found by the
code that training runs."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from ptycho_dist.config import Config, DataConfig
from ptycho_dist.data.prepare import NORMALIZATION, NPHOTONS, SCALE, SCANS, VALIDATION
from ptycho_dist.data.readers import format_name, read_scan
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.memory_supply import size_in_words
from ptycho_dist.physics.simulated_probes import beam_diameter_px
from ptycho_dist.preflight.check import rows_of_scan
from ptycho_dist.preflight.contents import Entry, list_contents, printable
from ptycho_dist.preflight.conversion import convert, require_new_output
from ptycho_dist.preflight.description import describe_scan
from ptycho_dist.preflight.findings import Finding, centre_of_mass, find, looks_like
from ptycho_dist.preflight.stages import WatchedPreparation
from ptycho_dist.preflight.statistics import PatternStatistics, pattern_statistics
from ptycho_dist.preflight.table import WIDTH_OF_A_LOG, Row
from ptycho_dist.report.scan_overview import draw_scan_overview

logger = logging.getLogger(__name__)

_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
_READS_PATTERNS = (NORMALIZATION.name, SCALE.name, VALIDATION.name)
"""Rows of training that fail where a pattern can't be used."""


class UntrainableError(ValueError):
    """Training could not run on a scan that was inspected; its tables say why."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Findings about one scan.

    Attributes
    ----------
    path
        The file.
    contents
        What lies in it.
    description
        The scan in words, by name; empty where it can't be read as one.
    training
        What training would take from it, with these options; rows without a failure.
    findings
        Errors first, then warnings, then notes.
    scan, statistics
        None where they can't be read.
    nphotons
        What training takes, or the file says; None where nobody does.
    """

    path: Path
    contents: list[Entry]
    description: dict[str, str]
    training: list[Row]
    findings: list[Finding]
    scan: Scan | None
    statistics: PatternStatistics | None
    nphotons: float | None


def inspect(
    config: Config, paths: Sequence[Path], out_dir: Path, convert_to: Path | None = None
) -> None:
    """Print what there is to know of each scan, draw it to `NAME.inspect.png` in a folder, and
    convert it if asked to.

    Parameters
    ----------
    config
        As training is told it, but for `data.path`.
    paths
        The scans, looked at one by one.
    out_dir
        Folder of the pictures; made if missing. A picture of the same name is replaced.
    convert_to
        New file to write the one scan to: .npz, .h5 or .hdf5.

    Raises
    ------
    UntrainableError
        Training could not run on one of them, with these options; after all were shown.
    ValueError
        What was asked can't be done: several scans to convert, or a file that is there already.
    """
    if convert_to is not None:
        if len(paths) != 1:
            raise ValueError(
                f"--convert {convert_to}: found {len(paths)} scans, expected one: convert them "
                "one by one"
            )
        require_new_output(convert_to)
    failed = []
    for path, picture in zip(paths, _picture_names(paths), strict=True):
        try:
            inspection = inspect_scan(path, config)
        except ScanError as error:  # no file: the others are looked at all the same
            print(f"{error}\n")
            failed.append(str(path))
            continue
        show(inspection)
        if inspection.scan is not None and inspection.statistics is not None:
            draw(inspection, out_dir / picture)
            print(f"picture: {out_dir / picture}\n", flush=True)
        if any(finding.severity == "error" for finding in inspection.findings):
            failed.append(str(path))
        if convert_to is not None:
            options = _options(config, path).data
            convert(read_scan(path, options=options), options, convert_to)
    if failed:
        raise UntrainableError(
            f"{len(failed)} of {len(paths)} scans can't be trained on with these options: "
            f"{', '.join(failed)}"
        )


def inspect_scan(path: Path, config: Config) -> Inspection:
    """Look at one scan.

    Raises
    ------
    ScanError
        There is no such file.
    """
    if not path.is_file():
        raise ScanError(
            path, "file", "no such file" if not path.exists() else "not a file", "a scan file"
        )
    config = _options(config, path)
    contents, findings = [], []
    try:
        contents = list_contents(path)
    except ScanError as error:
        logger.warning("%s", error)
    watched = WatchedPreparation(config)
    rows = rows_of_scan(watched)
    is_said = SCANS in watched.found
    scan = watched.found[SCANS][0] if is_said else _read_without_measurement(path, config.data)
    failures = [row for row in rows if row.verdict == "FAIL"]
    findings = [_error(row, path) for row in failures]
    nphotons = None if scan is None else scan.nphotons
    if NPHOTONS in watched.found:
        nphotons = watched.found[NPHOTONS].value
    statistics, description = None, {}
    if scan is not None:
        try:
            statistics = pattern_statistics(scan)
        except ScanError as error:
            if all(finding.what not in str(error) for finding in findings):
                fix = "Repair the file, or leave these patterns out."
                findings.append(Finding(severity="warning", what=str(error), fix=fix))
        else:
            meets_invalid = any(row.what in _READS_PATTERNS for row in failures)
            findings += find(scan, statistics, nphotons=nphotons, training_fails=meets_invalid)
        description = describe_scan(scan, statistics, measurement_is_said=is_said)
    return Inspection(
        path=path,
        contents=contents,
        description=description,
        training=[row for row in rows if row.verdict == "ok" and row.what != "data file"],
        findings=sorted(findings, key=lambda finding: list(_STYLES).index(finding.severity)),
        scan=scan,
        statistics=statistics,
        nphotons=nphotons,
    )


def show(inspection: Inspection) -> None:
    """Print the tables: in colour on a terminal, plain text of a fixed width in a file."""
    path = inspection.path
    console = Console(
        width=None if sys.stdout.isatty() else WIDTH_OF_A_LOG,
        markup=False,
        highlight=False,
        emoji=False,
    )
    try:
        kind = format_name(path)
    except ScanError:
        kind = "of no known format"
    parts: list[tuple[str, RenderableType]] = []
    if inspection.contents:
        table = _table("name", "shape", "type", "in the file")
        for entry in inspection.contents:
            table.add_row(entry.name, entry.shape, entry.type, entry.stored)
        parts.append(("what is in the file", table))
    if inspection.description:
        table = _table("scan", "found")
        for name, text in inspection.description.items():
            table.add_row(name, text)
        parts.append(("what it is as a scan", table))
    table = _table("training", "found")
    for row in inspection.training:
        table.add_row(row.what, row.found)
    parts.append(
        (
            "what training would take from it",
            table if inspection.training else "it would not run: see the errors",
        )
    )
    table = _table("severity", "found, and what to do")
    for finding in inspection.findings:
        table.add_row(finding.severity, finding.what, style=_STYLES[finding.severity])
        if finding.fix:
            table.add_row("", f"  do: {finding.fix}")
    parts.append(("what to look at", table if inspection.findings else "nothing"))
    with console.capture() as captured:
        console.print(
            f"{printable_path(path)}: {size_in_words(path.stat().st_size)}, {kind}", style="bold"
        )
        for title, part in parts:
            console.print(f"\n{title}", style="bold")
            console.print(part)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), end="\n\n", flush=True)


def draw(inspection: Inspection, path: Path) -> None:
    """Draw the scan; it was read."""
    scan, statistics = inspection.scan, inspection.statistics
    assert scan is not None
    assert statistics is not None
    size = scan.pattern_size
    draw_scan_overview(
        title=f"{printable(scan.path.name)}: {scan.num_patterns} patterns of {size} x {size} px, "
        f"{scan.measurement}",
        mean_pattern=statistics.mean_pattern,
        mask=scan.mask,
        centre_of_mass=centre_of_mass(statistics.mean_pattern)
        if statistics.mean_pattern.any()
        else None,
        positions_px=scan.positions_px,
        object_guess=scan.object_guess,
        probe=scan.probe,
        counts=statistics.counts,
        nphotons=inspection.nphotons,
        beam_diameter_px=beam_diameter_px(scan.probe) if len(scan.probe) else None,
        path=path,
    )


def _options(config: Config, path: Path) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path)))


def _error(row: Row, path: Path) -> Finding:
    """A row of training that failed; the message of a reader says itself what to do."""
    fix = "" if row.what == "data file" else row.fix
    return Finding(severity="error", what=row.found.removeprefix(f"{path}: "), fix=fix)


def _read_without_measurement(path: Path, options: DataConfig) -> Scan | None:
    """The scan where only `measurement` is missing, taken for what its numbers look like: to be
    looked at, no more; else None."""
    try:
        scan = read_scan(path, options=options, default_measurement="counts")
        if looks_like(pattern_statistics(scan)) == "amplitude":
            scan = dataclasses.replace(scan, measurement="amplitude")
    except ValueError:  # what training says of it is among its rows
        return None
    return scan


def _picture_names(paths: Sequence[Path]) -> list[str]:
    """`NAME.inspect.png`; scans of the same name in several folders are told apart by a number."""
    names: list[str] = []
    for path in paths:
        earlier = sum(other.name == path.name for other in paths[: len(names)])
        names.append(
            f"{path.name}.{earlier + 1}.inspect.png" if earlier else f"{path.name}.inspect.png"
        )
    return names


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0 and len(columns) == 2)
    return table


def printable_path(path: Path) -> str:
    """In full, on one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
