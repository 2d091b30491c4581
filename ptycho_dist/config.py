"""What a run is told: one frozen dataclass a concern, read strictly from YAML and the command line.

A key that nobody knows and a value of the wrong type are refused by name. There is one default for
everything that has a sensible one, and none where only the scientist can know (`data.path`,
`data.measurement`, `data.nphotons`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

T = TypeVar("T")

Sampling = Literal["full", "random", "central_block", "every", "poisson_disc", "index_file"]

RunLogger = Literal["csv", "tensorboard", "mlflow"]

_SAMPLING_KEYS: dict[Sampling, tuple[str, ...]] = {
    "full": (),
    "random": ("subset_size",),
    "central_block": ("subset_size",),
    "every": ("every",),
    "poisson_disc": ("subset_size", "min_distance_px"),
    "index_file": ("index_file",),
}
"""The keys of which a way of sampling needs exactly one."""

_PLAIN_YAML = "plain yaml"
_DEEPEST_YAML = 20


class ConfigError(ValueError):
    """A configuration that can't be run; the message names the key, what was found and what was
    expected."""


def _require(condition: bool, key: str, found: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"config: {key} is {found!r}, expected {expected}")


# no slots: the parser reads a nested concern's defaults from its __dict__
@dataclass(frozen=True, kw_only=True)
class Hdf5Config:
    """Where a plain HDF5 file, of no format that is known, holds its scan: names of datasets such
    as `/entry/data/data`.

    Parameters
    ----------
    diffraction
        Patterns (n, rows, columns). Where it is given, the file is read as plain HDF5; null: by its
        format.
    positions
        (n, 2) as (y, x) = (row, column): where the light was on the object. Or give `positions_y`
        and `positions_x`.
    positions_y
        (n,): the position along y, which grows with the rows of the object.
    positions_x
        (n,): the position along x, which grows with the columns of the object.
    positions_unit
        Unit of the positions: `m`, `mm`, `um`, `nm`, or `px`: pixels of the object, wavelength *
        distance / (N * detector pixel), N after `data.crop`.
    probe
        Complex (N, N) or (modes, N, N); another file's goes in `data.probe`.
    mask
        (rows, columns): true or 1 where a pixel counts, 0 where not; another file's goes in
        `data.mask`.
    object
        Complex (rows, columns): a reference to compare with, on whose pixel [0, 0] the position (0,
        0) lies.
    energy_eV
        One number, the photon energy in eV; or give the number itself as `data.energy_eV`.
    distance_m
        One number, from the object to the detector in metres; or give the number itself as
        `data.detector_distance_m`.
    detector_pixel_m
        One number, the pitch of the detector's pixels in metres; or give the number itself as
        `data.detector_pixel_m`.
    """

    diffraction: str | None = None
    positions: str | None = None
    positions_y: str | None = None
    positions_x: str | None = None
    positions_unit: Literal["px", "m", "mm", "um", "nm"] | None = None
    probe: str | None = None
    mask: str | None = None
    object: str | None = None
    energy_eV: str | None = None
    distance_m: str | None = None
    detector_pixel_m: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanConfig:
    """What a scan file does not say of itself; docs/file_formats.md tells what each format says.

    Parameters
    ----------
    energy_eV
        Photon energy in eV, where the file lacks it.
    detector_distance_m
        From the object to the detector in metres, where the file lacks it.
    detector_pixel_m
        Pitch of the detector's pixels in metres, where the file lacks it.
    probe
        File of the probe, complex (N, N) or (modes, N, N), instead of the scan file's own or where
        that has none: .npy, .npz (`probeGuess` or `probe`), or HDF5 as `file.h5:/dataset`.
    mask
        File of the detector's mask, like `probe`: true or 1 where a pixel counts, 0 where not. The
        scan file's own holds too.
    diffraction
        File of the patterns of a ptychodus product: HDF5, `file.h5` or `file.h5:/dataset`. Not
        needed for `x_para.hdf5` with `x_dp.hdf5`.
    crop
        N: take the central N x N pixels of the detector; the pixel of the object grows accordingly.
        null: all.
    centre_px
        Row and column of the direct beam on the detector, pixels: what `crop` puts at [N/2, N/2].
        null: the file's, else the middle.
    transpose
        Whether the file has rows and columns of the patterns exchanged, as MATLAB writes them.
        null: where it bears MATLAB's header.
    hdf5
        Datasets of a plain HDF5 file.
    """

    energy_eV: float | None = None
    detector_distance_m: float | None = None
    detector_pixel_m: float | None = None
    probe: str | None = None
    mask: str | None = None
    diffraction: str | None = None
    crop: int | None = None
    centre_px: tuple[int, int] | None = None
    transpose: bool | None = None
    hdf5: Hdf5Config = field(default_factory=Hdf5Config)

    def __post_init__(self) -> None:
        for key in ("energy_eV", "detector_distance_m", "detector_pixel_m"):
            value = getattr(self, key)
            _require(
                value is None or (math.isfinite(value) and value > 0),
                f"data.{key}",
                value,
                "a positive number",
            )
        _require(
            self.crop is None or (self.crop >= 2 and self.crop % 2 == 0),
            "data.crop",
            self.crop,
            "an even number of pixels",
        )
        _require(
            self.centre_px is None or min(self.centre_px) >= 0,
            "data.centre_px",
            self.centre_px,
            "a row and a column of at least 0",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(ScanConfig):
    """Which patterns are used, and what their numbers mean.

    Parameters
    ----------
    path
        Scan file, or a list of scan files that are trained on together.
    measurement
        What the file's diffraction array holds: `amplitude` (sqrt of counts) or `counts`. Needed
        unless the file or its format says it.
    nphotons
        Mean photons a pattern, or `measured`: the mean counts of the finalised training subset. The
        dataset's metadata goes before it.
    sampling
        Which patterns to use, training and validation together: `full` (all), `random`,
        `central_block` (those nearest to the middle of their scan: a contiguous part of it, as
        densely sampled as the whole), `every` (k-th, in scan order), `poisson_disc` (thinned by
        position, as evenly as can be), `index_file` (a list). null: `random` where data.subset_size
        says how many, else `full`.
    subset_size
        How many patterns `random`, `central_block` and `poisson_disc` draw.
    every
        k of `every`: the first pattern of each scan, and each k-th after it.
    min_distance_px
        Instead of a size for `poisson_disc`: as many patterns as can lie at least this far from
        each other, pixels.
    index_file
        `.npy` file of integers, or text with a number a line: patterns counted from 0 through all
        scans in the order of data.path.
    subset_seed
        Seed of that draw, of the split and of nothing else.
    val_fraction
        Fraction of the used patterns kept for validation, in [0, 1).
    group_size
        Patterns a sample (C). With C > 1 a sample is a pattern and its C - 1 nearest neighbours,
        whose patches share one object.
    """

    path: list[str] | str | None = None
    measurement: Literal["amplitude", "counts"] | None = None
    nphotons: float | Literal["measured"] | None = None
    sampling: Sampling | None = None
    subset_size: int | None = None
    every: int | None = None
    min_distance_px: float | None = None
    index_file: str | None = None
    subset_seed: int = 0
    val_fraction: float = 0.05
    group_size: int = 4

    def __post_init__(self) -> None:
        ScanConfig.__post_init__(self)
        _require(
            self.diffraction is None or not isinstance(self.path, list) or len(self.path) < 2,
            "data.diffraction",
            self.diffraction,
            "one scan in data.path: it names the patterns of one; several are found by name, "
            "x_dp.hdf5 beside x_para.hdf5",
        )
        if isinstance(self.nphotons, int | float):
            _require(
                math.isfinite(self.nphotons) and self.nphotons > 0,
                "data.nphotons",
                self.nphotons,
                "a positive number or 'measured'",
            )
        _require(
            self.subset_size is None or self.subset_size >= 1,
            "data.subset_size",
            self.subset_size,
            "at least 1",
        )
        _require(self.every is None or self.every >= 1, "data.every", self.every, "at least 1")
        distance_px = self.min_distance_px
        _require(
            distance_px is None or 0 < distance_px < math.inf,
            "data.min_distance_px",
            distance_px,
            "a positive number",
        )
        self._require_what_sampling_needs()
        _require(self.subset_seed >= 0, "data.subset_seed", self.subset_seed, "at least 0")
        _require(
            0 <= self.val_fraction < 1, "data.val_fraction", self.val_fraction, "a number in [0, 1)"
        )
        _require(self.group_size >= 1, "data.group_size", self.group_size, "at least 1")

    def _require_what_sampling_needs(self) -> None:
        mode = self.sampling_mode
        needed = _SAMPLING_KEYS[mode]
        for key in ("subset_size", "every", "min_distance_px", "index_file"):
            value = getattr(self, key)
            modes = " or ".join(other for other, keys in _SAMPLING_KEYS.items() if key in keys)
            _require(
                value is None or key in needed,
                f"data.{key}",
                value,
                f"null where data.sampling is {mode}, not {modes}",
            )
        given = [key for key in needed if getattr(self, key) is not None]
        expected = (
            " or ".join(f"data.{key}" for key in needed)
            + " with it"
            + (", not both" if len(given) > 1 else "")
        )
        _require(len(given) == min(1, len(needed)), "data.sampling", mode, expected)

    @property
    def sampling_mode(self) -> Sampling:
        """`sampling`, or what its null stands for."""
        return self.sampling or ("full" if self.subset_size is None else "random")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The scan files, one or several."""
        _require(
            bool(self.path),
            "data.path",
            self.path,
            "a scan file or a list of scan files (--data.path scan.npz)",
        )
        return (
            (Path(self.path),) if isinstance(self.path, str) else tuple(map(Path, self.path or ()))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network and the loss.

    Parameters
    ----------
    base_width
        Channels of the network's first level.
    intensity_scale_trainable
        Multiply the prediction by a trainable factor that starts at exactly 1.
    probe_trainable
        Refine each scan's probe with the network: where the file's is approximate, or the light is
        not quite coherent.
    probe_modes
        Incoherent modes of a trainable probe, at least as many as the file has; null: as many.
    """

    base_width: int = 16
    intensity_scale_trainable: bool = False
    probe_trainable: bool = False
    probe_modes: int | None = None

    def __post_init__(self) -> None:
        _require(self.base_width >= 1, "model.base_width", self.base_width, "at least 1")
        _require(
            self.probe_modes is None or self.probe_modes >= 1,
            "model.probe_modes",
            self.probe_modes,
            "at least 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the network is fitted, and where the run is kept.

    Parameters
    ----------
    run_dir
        Directory of the run; made if missing.
    epochs
        Passes over the training samples.
    max_minutes
        Wall-clock limit of the fit, minutes; the learning-rate schedule then ends at whichever of
        the two limits comes first. null: none.
    global_batch_size
        Samples (groups of C patterns) an optimiser step, over all ranks together.
    accumulate_grad_batches
        Parts that a step's global batch is computed in, one after the other, to save memory; the
        step is the same.
    learning_rate
        Peak of the schedule (5 % linear warm-up, then cosine to zero).
    precision
        `auto` is bf16-mixed where the processor multiplies bf16 matrices, else 32. Physics and loss
        are float32 always.
    seed
        Seed of the weights and of the order of the batches.
    resume
        A checkpoint, or `auto`: the run directory's last one if there is one.
    init
        A bundle whose network (and refined probe of the same scan) training begins with; scale and
        normalisation are the new data's. A resumed run goes on from its checkpoint and does not
        read it again.
    logger
        What the run's numbers are written to, one or a list: `csv` (`metrics.csv`, always written),
        and beside it `tensorboard` or `mlflow`.
    """

    run_dir: str = "run"
    epochs: int = 50
    max_minutes: float | None = None
    global_batch_size: int = 8
    accumulate_grad_batches: int = 1
    learning_rate: float = 3e-3
    precision: Literal["auto", 32, "bf16-mixed"] = "auto"
    seed: int = 0
    resume: str | None = None
    init: str | None = None
    logger: list[RunLogger] | RunLogger = "csv"

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "train.epochs", self.epochs, "at least 1")
        _require(
            self.max_minutes is None or self.max_minutes > 0,
            "train.max_minutes",
            self.max_minutes,
            "a positive number",
        )
        _require(
            self.global_batch_size >= 1,
            "train.global_batch_size",
            self.global_batch_size,
            "at least 1",
        )
        _require(
            self.accumulate_grad_batches >= 1,
            "train.accumulate_grad_batches",
            self.accumulate_grad_batches,
            "at least 1",
        )
        _require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            "train.learning_rate",
            self.learning_rate,
            "a positive number",
        )
        _require(self.seed >= 0, "train.seed", self.seed, "at least 0")

    @property
    def trackers(self) -> tuple[RunLogger, ...]:
        """What is written to beside `metrics.csv`, each once."""
        named: list[RunLogger] = self.logger if isinstance(self.logger, list) else [self.logger]
        return tuple(name for name in dict.fromkeys(named) if name != "csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """A synthetic scan (`ptycho-simulate`).

    Parameters
    ----------
    object
        `dead_leaves` (overlapping discs), `lines`, or an image file (PNG, JPEG, TIFF, .npy) that
        gives amplitude and phase their contrast.
    amplitude_range
        Smallest and largest amplitude of the object, both reached; 1 is transparent.
    phase_range_rad
        Smallest and largest phase of the object, radians, both reached.
    probe
        `disk` (ideal, soft edge), `defocused` (a lens's beam, off focus by `probe_defocus_rad`), or
        a file: .npz (`probeGuess`) or .npy.
    probe_diameter_px
        Diameter of the disk at half its amplitude, or of the area that the defocused beam
        illuminates (second moment), pixels; a file has its own.
    probe_defocus_rad
        Quadratic phase at the edge of the lens's aperture, radians; of the defocused beam only.
    pattern_size
        N, pixels a side of a pattern.
    scan_shape
        Rows and columns of the raster.
    step_px
        Distance between neighbouring scan positions, pixels.
    jitter_px
        Each position is moved by a uniform random offset of up to this much either way along y and
        x, pixels.
    nphotons
        Mean photons a pattern, before Poisson noise.
    seed
        Seed of object, jitter and noise.
    """

    object: str = "dead_leaves"
    amplitude_range: tuple[float, float] = (0.5, 1.0)
    phase_range_rad: tuple[float, float] = (-1.0, 1.0)
    probe: str = "defocused"
    probe_diameter_px: float = 28.0
    probe_defocus_rad: float = 8.0
    pattern_size: int = 64
    scan_shape: tuple[int, int] = (32, 32)
    step_px: float = 5.0
    jitter_px: float = 1.0
    nphotons: float = 1e6
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("probe_diameter_px", "step_px", "nphotons"):
            value = getattr(self, key)
            _require(
                math.isfinite(value) and value > 0, f"simulation.{key}", value, "a positive number"
            )
        _require(
            math.isfinite(self.jitter_px) and self.jitter_px >= 0,
            "simulation.jitter_px",
            self.jitter_px,
            "at least 0",
        )
        _require(
            min(self.scan_shape) >= 1,
            "simulation.scan_shape",
            self.scan_shape,
            "at least one row and one column",
        )
        _require(
            self.pattern_size >= 2 and self.pattern_size % 2 == 0,
            "simulation.pattern_size",
            self.pattern_size,
            "an even number",
        )
        for key in ("amplitude_range", "phase_range_rad"):
            low, high = value = getattr(self, key)
            _require(
                math.isfinite(low) and math.isfinite(high) and low <= high,
                f"simulation.{key}",
                value,
                "two numbers, smaller first",
            )
        _require(
            self.amplitude_range[0] >= 0,
            "simulation.amplitude_range",
            self.amplitude_range,
            "amplitudes of at least 0",
        )
        _require(
            math.isfinite(self.probe_defocus_rad),
            "simulation.probe_defocus_rad",
            self.probe_defocus_rad,
            "a finite number",
        )
        _require(self.seed >= 0, "simulation.seed", self.seed, "at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything a run is told."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of YAML scalars and lists; `parse_mapping` reads it back to an equal
        Config."""
        return _without_tuples(dataclasses.asdict(self))


def flat_keys(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict's values by dotted key: `{"train": {"epochs": 3}}` to `{"train.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= (
            flat_keys(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def require_plain_yaml(text: str) -> None:
    """Refuse what no configuration needs: a few lines of aliases can stand for more text than
    memory holds, or for themselves.

    Raises
    ------
    yaml.YAMLError
        The text is no YAML, has an alias or the same key twice in one mapping, or is nested deeper
        than any configuration.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(
                f"line {line}: found the alias '*{event.anchor}', expected YAML without anchors "
                "and aliases"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > _DEEPEST_YAML:
            raise yaml.YAMLError(
                f"line {line}: found more than {_DEEPEST_YAML} levels of nesting, expected a "
                "configuration"
            )
    _require_keys_once(yaml.compose(text, Loader=yaml.SafeLoader))


def _require_keys_once(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(
                    f"found the key {key.value!r} for the second time in one mapping, expected "
                    "each key once"
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _require_keys_once(part)


def _load_plain_yaml(text: str) -> Any:
    require_plain_yaml(text)
    return get_loader("yaml")(text)


set_loader(_PLAIN_YAML, _load_plain_yaml, exceptions=(yaml.YAMLError,))


File = NewType("File", Path)
Directory = NewType("Directory", Path)
"""Types of options, for `--help` to name."""


class _ConfigParser(ArgumentParser):
    """Prints with `--print_config` what `--config` of any command takes: the keys of `Config`, not
    the command's own options."""

    def dump(self, namespace: Namespace, *arguments: Any, **options: Any) -> str:
        keys = {concern.name: namespace[concern.name] for concern in dataclasses.fields(Config)}
        return super().dump(Namespace(**keys), *arguments, **options)


def make_parser(description: str, *, config: bool = True) -> ArgumentParser:
    """Command-line parser with `--version` and `--debug`.

    Unless told otherwise, with `--config FILE.yaml`, `--print_config` and an option for every key
    of `Config` too.
    """
    parser = (_ConfigParser if config else ArgumentParser)(
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=_PLAIN_YAML,
        version=f"{version('ptycho_dist')} (torch {version('torch')})",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if config:
        parser.add_argument(
            "--config", action="config", help="YAML file; options after it override its keys"
        )
        _add_config_keys(parser)
    return parser


def read_config(parser: ArgumentParser, arguments: Namespace) -> Config:
    """The `Config` of a namespace that a parser of `make_parser` read."""
    _require_what_the_parser_lets_pass(arguments)
    instances = parser.instantiate(arguments)
    return Config(
        **{concern.name: instances[concern.name] for concern in dataclasses.fields(Config)}
    )


def _require_what_the_parser_lets_pass(arguments: Namespace) -> None:
    """A concern that is not a mapping, and null for a key that needs a value."""
    for concern in dataclasses.fields(Config):
        _require_values(concern.name, concern.default_factory, arguments[concern.name])


def _require_values(name: str, concern: Any, keys: Any) -> None:
    _require(isinstance(keys, Namespace), name, keys, "a mapping of its keys")
    for key, kind in get_type_hints(concern).items():
        if dataclasses.is_dataclass(kind):
            _require_values(f"{name}.{key}", kind, keys[key])
        else:
            _require(
                keys[key] is not None or type(None) in get_args(kind),
                f"{name}.{key}",
                None,
                "a value",
            )


def add_scan_keys(parser: ArgumentParser, name: str) -> None:
    """Options `--NAME.KEY` for every key of `ScanConfig`: how a scan file is read, where no whole
    `Config` is."""
    parser.add_class_arguments(ScanConfig, name)


def given_scan_keys(parser: ArgumentParser, arguments: Namespace, name: str) -> dict[str, Any]:
    """Of the options of `add_scan_keys`, those on the command line, as a nested mapping; null is
    one of the values that may be given."""
    _require_values(name, ScanConfig, arguments[name])
    given = parser.parse_args(defaults=False).get(name)
    return {} if given is None else _only_given(parser.instantiate(arguments)[name], given)


def _only_given(config: Any, given: Namespace) -> dict[str, Any]:
    values = {key: (getattr(config, key), value) for key, value in vars(given).items()}
    return {
        key: _only_given(own, value) if isinstance(value, Namespace) else own
        for key, (own, value) in values.items()
    }


def parse_mapping(mapping: dict[str, Any]) -> Config:
    """Read `Config.to_dict()` back, as strictly as a YAML file.

    Raises
    ------
    ConfigError
        A key is unknown or a value is of the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False, parser_mode=_PLAIN_YAML)
    _add_config_keys(parser)
    if not isinstance(mapping, dict):
        raise ConfigError(
            f"config: found {type(mapping).__name__}, expected a mapping of data, model, train, "
            "simulation"
        )
    _require_known_keys("", Config, mapping)
    try:
        return _with_text_as_it_is(read_config(parser, parser.parse_object(mapping)), mapping)
    except (ArgumentError, TypeError, KeyError) as error:
        raise ConfigError(f"config: {error}") from error


def _require_known_keys(name: str, kind: Any, mapping: dict[str, Any]) -> None:
    kinds = get_type_hints(kind)
    for key, value in mapping.items():
        if key not in kinds:
            raise ConfigError(
                f"config: {f'{name}: ' if name else ''}{key!r} is not accepted, expected "
                f"{', '.join(kinds)}"
            )
        if dataclasses.is_dataclass(kinds[key]):
            full_name = f"{name}.{key}".lstrip(".")
            _require(isinstance(value, dict), full_name, value, "a mapping of its keys")
            _require_known_keys(full_name, kinds[key], value)


def _with_text_as_it_is(config: T, mapping: dict[str, Any]) -> T:
    """Put text back where a key holds text or something else: the parser reads it as if typed,
    '[a]' as a list and 'null' as nothing."""
    kinds = get_type_hints(type(config))
    changed = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            changed[key] = _with_text_as_it_is(getattr(config, key), value)
        elif isinstance(value, str) and str in get_args(kinds[key]):
            changed[key] = value
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def _add_config_keys(parser: ArgumentParser) -> None:
    for concern in dataclasses.fields(Config):
        parser.add_class_arguments(concern.default_factory, concern.name)
