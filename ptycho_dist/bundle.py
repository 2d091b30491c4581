"""The bundle: all that inference needs of a training run, in one file.

A zip archive, stored without compression, of `bundle.yaml`, `weights.safetensors` and `probe.npy`.
There is no pickle in it, and nothing that is read from it is executed. `probe.npy` is (modes, N,
N), or, where training refined the probes, (scans, modes, N, N) in the order of the scans'
fingerprints under `refined_probe_of` in `bundle.yaml`.

The network is the one that `config` describes, or another project's. `hyperparameters`, plain
numbers and text, then take the place of `config`; the other project's code builds the network with
them and loads the weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import Config, parse_mapping, read_yaml
from ptycho_dist.model.network import build_network
from ptycho_dist.scale.calibration import Calibration

T = TypeVar("T")

SCHEMA = 4
"""2: the network corrects a first estimate. 3: its first convolution takes pixels as they are.
4: one record of the calibration."""
_RECORD, _WEIGHTS, _PROBE = "bundle.yaml", "weights.safetensors", "probe.npy"
_FORMAT = "ptycho_dist bundle"
_LARGEST_RECORD_BYTES = 1 << 20


class BundleError(ValueError):
    """A bundle that can't be used; the message names file, what was found and expected."""


def software_versions() -> dict[str, str]:
    """Return the versions of what decides a run's numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("ptycho_dist", "torch", "lightning", "numpy")
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A trained network with its calibration.

    Attributes
    ----------
    calibration
        r, s, nphotons and what they were derived from.
    config
        Of the training run; None: the network is another project's.
    hyperparameters
        With what another project's network is built again: a mapping of plain values (text, finite
        numbers, booleans, None, lists and mappings with text for keys); None: the network is the
        one that `config` describes.
    gain
        The trainable factor g on the predicted amplitude; 1 where it was not trained.
    probe
        complex64 (modes, N, N), normalised units: of the (first) scan that was trained on.
    refined_probes
        Where training refined them, the probe of each scan that was trained on by the scan's
        fingerprint, like `probe`; else empty.
    weights
        The network's tensors by name, on the CPU.
    versions
        Of the software that wrote it.
    """

    calibration: Calibration
    probe: np.ndarray
    weights: Mapping[str, Tensor]
    config: Config | None = None
    hyperparameters: Mapping[str, Any] | None = None
    gain: float = 1.0
    versions: Mapping[str, str] = field(default_factory=software_versions)
    refined_probes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.config is None) == (self.hyperparameters is None):
            raise ValueError(
                "bundle: expected config or hyperparameters, one of the two: ptycho_dist's "
                "network or another project's"
            )

    @property
    def intensity_scale(self) -> float:
        """s."""
        return self.calibration.intensity_scale

    @property
    def pattern_size(self) -> int:
        """N."""
        return self.calibration.pattern_size

    def predicted_scale(self, rms_factor: float) -> float:
        """Return s g r / rms_factor: the root of the counts that predicted intensity 1 stands for,
        where patterns were normalised by this factor instead of r."""
        return self.intensity_scale * self.gain * self.calibration.rms_factor / rms_factor

    def require_config(self, name: object = "bundle") -> Config:
        """Return `config`; raises BundleError, with this name, for another project's network."""
        if self.config is None:
            raise BundleError(
                f"{name}: found another project's network (hyperparameters "
                f"{dict(self.hyperparameters or {})}), expected one that "
                "ptycho_dist trained: only the network's own code can build it, and give it the "
                "bundle's weights"
            )
        return self.config

    def build_model(self, device: str | torch.device = "cpu") -> nn.Module:
        """Return the network that ptycho_dist trained, ready for inference on `device`."""
        network = build_network(self.require_config().model, self.pattern_size)
        network.load_state_dict(dict(self.weights))
        return network.to(device).eval()


def save_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; one process writes, no other waits.

    Writing is as strict as reading: what would be written is first read back. A file that is there
    already is replaced only once the new one is whole and on disk.

    Raises
    ------
    ValueError
        Weights, hyperparameters or probe are of a kind that `load_bundle` would refuse.
    """
    members = _encode(bundle)
    _decode(members)
    with (
        replacing(Path(path)) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, content in members.items():
            archive.writestr(name, content)


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle, strictly.

    Raises
    ------
    BundleError
        The file is missing, truncated, altered, of another schema, or not a bundle.
    """
    path = Path(path)
    members = _read_members(path)
    try:
        return _decode(members)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error


def _encode(bundle: Bundle) -> dict[str, bytes]:
    """Return the archive's members by name."""
    refined = bundle.refined_probes
    members = {
        _WEIGHTS: _safetensors_bytes(bundle.weights),
        _PROBE: _npy_bytes(np.stack(list(refined.values())) if refined else bundle.probe),
    }
    record = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "calibration": bundle.calibration.to_dict(),
        "gain": bundle.gain,
        "refined_probe_of": list(refined),
        **_network_record(bundle),
        "versions": dict(bundle.versions),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
    }
    try:
        return {_RECORD: yaml.safe_dump(record, sort_keys=False).encode(), **members}
    except yaml.YAMLError as error:
        raise ValueError(f"{_RECORD}: {error}; expected plain numbers and text") from error


def _decode(members: Mapping[str, bytes]) -> Bundle:
    """Return the bundle that the members make; raises ValueError where they make none."""
    record = _read_record(members[_RECORD])
    for name in (_WEIGHTS, _PROBE):
        if hashlib.sha256(members[name]).hexdigest() != record["sha256"].get(name):
            raise ValueError(
                f"{name} is not the one that was written: its SHA-256 differs from the one in "
                f"{_RECORD}"
            )
    try:
        return _bundle_of(record, members)
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        MemoryError,
        SafetensorError,
    ) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{_RECORD} and the members don't make a bundle: {what}") from error


def _bundle_of(record: Mapping[str, Any], members: Mapping[str, bytes]) -> Bundle:
    probes = np.load(io.BytesIO(members[_PROBE]), allow_pickle=False)
    refined_probe_of = _typed(record, "refined_probe_of", list)
    has_foreign = "hyperparameters" in record
    is_foreign = has_foreign and "config" not in record
    calibration = Calibration.from_dict(record["calibration"])
    _require_probes(probes, refined_probe_of, calibration.pattern_size)
    bundle = Bundle(
        calibration=calibration,
        config=None if is_foreign else parse_mapping(record["config"]),
        hyperparameters=_typed(record, "hyperparameters", dict) if has_foreign else None,
        gain=_positive(record, "gain"),
        probe=probes[0] if refined_probe_of else probes,
        refined_probes=dict(zip(refined_probe_of, probes, strict=False)),
        weights=safetensors.torch.load(members[_WEIGHTS]),
        versions=_typed(record, "versions", dict),
    )
    _require_finite_weights(bundle.weights)
    if bundle.config is not None:
        with torch.device("meta"):  # takes no memory: the width may be a forger's
            network = build_network(bundle.config.model, bundle.pattern_size)
        network.load_state_dict(dict(bundle.weights), assign=True)
    return bundle


def _read_members(path: Path) -> dict[str, bytes]:
    expected = [_RECORD, _WEIGHTS, _PROBE]
    if not path.is_file():
        found = "a directory" if path.exists() else "no file"
        raise BundleError(f"{path}: found {found}, expected a bundle")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if sorted(names) != sorted(expected):
                raise BundleError(f"{path}: found an archive of {names[:8]}, expected {expected}")
            for member in members:
                # A stored member can't be larger than the file: no zip bomb.
                stored = member.compress_type == zipfile.ZIP_STORED
                if not stored or member.file_size != member.compress_size:
                    raise BundleError(
                        f"{path}: {member.filename} is compressed, expected it stored, as "
                        "save_bundle writes it"
                    )
            return {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path}: truncated, altered or not a bundle ({error})") from error


def _read_record(content: bytes) -> dict[str, Any]:
    if len(content) > _LARGEST_RECORD_BYTES:
        raise ValueError(
            f"{_RECORD} has {len(content)} bytes, expected at most {_LARGEST_RECORD_BYTES}"
        )
    try:
        record = read_yaml(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8; no such date
        raise ValueError(f"{_RECORD} is not YAML ({error})") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{_RECORD} does not describe a ptycho_dist bundle")
    schema = record.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"the bundle's schema is {schema!r}, this ptycho_dist reads up to {SCHEMA}: install a "
            "newer one"
        )
    if schema < SCHEMA:
        raise ValueError(
            f"the bundle's schema is {schema}, expected {SCHEMA}: this ptycho_dist no longer has "
            "its network; train again"
        )
    if not isinstance(record.get("sha256"), dict):
        raise ValueError(
            f"sha256 in {_RECORD} is {record.get('sha256')!r}, expected the SHA-256 of every other "
            "member"
        )
    return record


def _require_probes(probes: np.ndarray, refined_probe_of: list[Any], pattern_size: int) -> None:
    """Require one probe (modes, N, N), or a refined one per scan (scans, modes, N, N)."""
    num_scans = len(refined_probe_of)
    is_text = all(isinstance(fingerprint, str) for fingerprint in refined_probe_of)
    if not is_text or len(set(refined_probe_of)) != num_scans:
        raise ValueError(
            f"refined_probe_of is {refined_probe_of!r}, expected fingerprints of different scans"
        )
    size = f"{pattern_size}, {pattern_size}"
    expected = f"({num_scans}, modes, {size})" if num_scans else f"(modes, {size})"
    stack = probes if num_scans else probes[None]
    is_stack = stack.ndim == 4 and stack.size > 0 and len(stack) == max(1, num_scans)
    is_square = stack.shape[-2:] == (pattern_size, pattern_size)
    if not is_stack or not is_square or probes.dtype != np.complex64:
        raise ValueError(
            f"{_PROBE} is {probes.dtype} {probes.shape}, expected complex64 {expected}"
        )
    for probe in stack:
        if not np.isfinite(probe).all() or not probe.any():
            found = "zeros only" if np.isfinite(probe).all() else "NaN or infinity"
            raise ValueError(f"{_PROBE} holds {found}, expected a finite probe")


def _require_finite_weights(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} in {_WEIGHTS} holds NaN or infinity, expected finite weights")


def _safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"weights: {name} is {type(tensor).__name__}, expected a tensor")
    # Copies: tied weights share their memory, which the format does not allow.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()
    }
    try:
        return safetensors.torch.save(copies)
    except KeyError as error:  # the library's way of refusing a dtype
        raise ValueError(
            f"weights: found {error.args[0]}, expected a type that safetensors holds, such as "
            "float32 or complex64"
        ) from error


def _network_record(bundle: Bundle) -> dict[str, Any]:
    if bundle.config is not None:
        return {"config": bundle.config.to_dict()}
    given = dict(bundle.hyperparameters or {})
    try:
        # A copy of each value: YAML would write the second occurrence of a list as an alias.
        plain = json.loads(json.dumps(given, allow_nan=False))
        read_yaml(yaml.safe_dump({"hyperparameters": plain}))
    except (TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"hyperparameters: {error}; expected text, finite numbers, booleans, None, lists and "
            "mappings of them"
        ) from error
    if plain != given:
        raise ValueError(
            f"hyperparameters: {given!r} would come back as {plain!r}, expected lists, no tuples, "
            "and text for keys"
        )
    return {"hyperparameters": plain}


def _positive(record: Mapping[str, Any], key: str) -> float:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}, expected a positive number")
    return float(value)


def _typed(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected {kind.__name__}")
    return value


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
