"""The bundle: all that inference needs of a training run, in one file.

A zip archive, stored without compression, of `bundle.yaml`, `weights.safetensors` and `probe.npy`.
There is no pickle in it, and nothing that is read from it is executed. `probe.npy` is (modes, N,
N), or, where training refined the probes, (scans, modes, N, N) in the order of the scans'
fingerprints under `refined_probe_of` in `bundle.yaml`.

The network is the one that `config` describes, or somebody else's: then `hyperparameters` stand in
its place, numbers and words alone, and whoever has its code builds it with them and gives it the
weights.
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
from ptycho_dist.config import Config, ConfigError, parse_mapping, read_yaml
from ptycho_dist.model.network import build_network
from ptycho_dist.scale.intensity_scale import IntensityScale

T = TypeVar("T")

SCHEMA = 3
"""2: the network corrects a first estimate. 3: its first convolution takes pixels as they are."""
_RECORD, _WEIGHTS, _PROBE = "bundle.yaml", "weights.safetensors", "probe.npy"
_LARGEST_RECORD_BYTES = 1 << 20


class BundleError(ValueError):
    """A bundle that can't be used; the message names the file, what was found and what was
    expected."""


def software_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("ptycho_dist", "torch", "lightning", "numpy")
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A trained network with its scale.

    Attributes
    ----------
    config
        Of the training run; None: the network is somebody else's.
    hyperparameters
        With what somebody else's network is built again: a mapping of plain values (text, finite
        numbers, booleans, None, lists and mappings with text for keys); None: the network is the
        one that `config` describes.
    scale
        Record of the intensity scale s.
    nphotons_source
        Who said nphotons: `metadata`, `config` or `measured`; of somebody else's network any text.
    gain
        The trainable factor g on the predicted amplitude; 1 where it was not trained.
    rms_factor
        r, which normalises the network's input: X_norm = r X.
    subset_fingerprint
        SHA-256 of the subset that was trained on; empty where nobody took it.
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

    scale: IntensityScale
    nphotons_source: str
    rms_factor: float
    probe: np.ndarray
    weights: Mapping[str, Tensor]
    config: Config | None = None
    hyperparameters: Mapping[str, Any] | None = None
    gain: float = 1.0
    subset_fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=software_versions)
    refined_probes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.config is None) == (self.hyperparameters is None):
            raise ValueError(
                "bundle: expected config or hyperparameters, one of the two: ptycho_dist's "
                "network or somebody else's"
            )

    @property
    def intensity_scale(self) -> float:
        """s."""
        return self.scale.value

    @property
    def pattern_size(self) -> int:
        """N."""
        return self.probe.shape[-1]

    def predicted_scale(self, rms_factor: float) -> float:
        """Square root of the counts that predicted intensity 1 stands for, s g, where patterns were
        normalised by this factor, not by r."""
        return self.intensity_scale * self.gain * self.rms_factor / rms_factor

    def require_config(self, name: object = "bundle") -> Config:
        """`config`; raises, naming the bundle, where the network is somebody else's."""
        if self.config is None:
            raise BundleError(
                f"{name}: found somebody else's network (hyperparameters "
                f"{dict(self.hyperparameters or {})}), expected one that "
                "ptycho_dist trained: only the network's own code can build it, and give it the "
                "bundle's weights"
            )
        return self.config

    def build_model(self, device: str | torch.device = "cpu") -> nn.Module:
        """The network that ptycho_dist trained, ready for inference on `device`."""
        network = build_network(self.require_config().model, self.pattern_size)
        network.load_state_dict(dict(self.weights))
        return network.to(device).eval()


def save_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; a file that stood there is replaced only once the new one is whole and on
    disk. One process writes, no other waits.

    Raises
    ------
    ValueError
        Weights, hyperparameters or probe are of a kind that `load_bundle` would refuse.
    """
    probes = (
        np.stack(list(bundle.refined_probes.values())) if bundle.refined_probes else bundle.probe
    )
    _require_probes(probes, list(bundle.refined_probes))
    members = {_WEIGHTS: _safetensors_bytes(bundle.weights), _PROBE: _npy_bytes(probes)}
    record = {
        "format": "ptycho_dist bundle",
        "schema": SCHEMA,
        "intensity_scale": bundle.scale.value,
        "nphotons": bundle.scale.nphotons,
        "nphotons_source": bundle.nphotons_source,
        "mean_energy": bundle.scale.mean_energy,
        "num_patterns": bundle.scale.num_patterns,
        "gain": bundle.gain,
        "normalization": {"mode": "rms", "factor": bundle.rms_factor},
        "subset_fingerprint": bundle.subset_fingerprint,
        "refined_probe_of": list(bundle.refined_probes),
        **_network_record(bundle),
        "versions": dict(bundle.versions),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
    }
    members = {_RECORD: yaml.safe_dump(record, sort_keys=False).encode(), **members}
    if len(members[_RECORD]) > _LARGEST_RECORD_BYTES:
        raise ValueError(
            f"{path}: {_RECORD} would have {len(members[_RECORD])} bytes, expected at most "
            f"{_LARGEST_RECORD_BYTES}"
        )
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
        The file is missing, truncated, altered, of a newer schema, or not a bundle.
    """
    path = Path(path)
    members = _read_members(path)
    record = _read_record(path, members[_RECORD])
    for name in (_WEIGHTS, _PROBE):
        if hashlib.sha256(members[name]).hexdigest() != record["sha256"].get(name):
            raise BundleError(
                f"{path}: {name} is not the one that was written: its SHA-256 differs from the "
                f"one in {_RECORD}"
            )
    try:
        probes = np.load(io.BytesIO(members[_PROBE]), allow_pickle=False)
        # not in older bundles
        refined_probe_of = (
            _typed(record, "refined_probe_of", list) if "refined_probe_of" in record else []
        )
        _require_probes(probes, refined_probe_of)
        bundle = Bundle(
            config=None
            if "hyperparameters" in record and "config" not in record
            else parse_mapping(record["config"]),
            hyperparameters=_typed(record, "hyperparameters", dict)
            if "hyperparameters" in record
            else None,
            scale=IntensityScale(
                value=_positive(record, "intensity_scale"),
                nphotons=_positive(record, "nphotons"),
                mean_energy=_positive(record, "mean_energy"),
                num_patterns=_typed(record, "num_patterns", int),
            ),
            nphotons_source=_typed(record, "nphotons_source", str),
            gain=_positive(record, "gain"),
            rms_factor=_positive(record["normalization"], "factor"),
            subset_fingerprint=_typed(record, "subset_fingerprint", str),
            probe=probes[0] if refined_probe_of else probes,
            refined_probes=dict(zip(refined_probe_of, probes, strict=True))
            if refined_probe_of
            else {},
            weights=safetensors.torch.load(members[_WEIGHTS]),
            versions=_typed(record, "versions", dict),
        )
        _require_finite_weights(bundle.weights)
        if bundle.config is not None:
            with torch.device("meta"):  # no memory is taken: the width may be a forger's
                network = build_network(bundle.config.model, bundle.pattern_size)
            # the weights fit the network that the config describes
            network.load_state_dict(dict(bundle.weights), assign=True)
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        MemoryError,
        SafetensorError,
        ConfigError,
    ) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(
            f"{path}: {_RECORD} and the members don't make a bundle: {what}"
        ) from error
    return bundle


def _read_members(path: Path) -> dict[str, bytes]:
    expected = [_RECORD, _WEIGHTS, _PROBE]
    if not path.is_file():
        raise BundleError(
            f"{path}: found {'no file' if not path.exists() else 'a directory'}, expected a bundle"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(expected):
                raise BundleError(
                    f"{path}: found an archive of {[member.filename for member in members][:8]}, "
                    f"expected {expected}"
                )
            for member in members:  # stored members can't be larger than the file: no zip bomb
                if (
                    member.compress_type != zipfile.ZIP_STORED
                    or member.file_size != member.compress_size
                ):
                    raise BundleError(
                        f"{path}: {member.filename} is compressed, expected it stored, as "
                        "save_bundle writes it"
                    )
            return {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path}: truncated, altered or not a bundle ({error})") from error


def _read_record(path: Path, content: bytes) -> dict[str, Any]:
    if len(content) > _LARGEST_RECORD_BYTES:
        raise BundleError(
            f"{path}: {_RECORD} has {len(content)} bytes, expected at most {_LARGEST_RECORD_BYTES}"
        )
    try:
        record = read_yaml(content.decode())
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or no such date
        raise BundleError(f"{path}: {_RECORD} is not YAML ({error})") from error
    if not isinstance(record, dict) or record.get("format") != "ptycho_dist bundle":
        raise BundleError(f"{path}: {_RECORD} does not describe a ptycho_dist bundle")
    if not isinstance(record.get("schema"), int) or record["schema"] > SCHEMA:
        raise BundleError(
            f"{path}: the bundle's schema is {record.get('schema')!r}, this ptycho_dist reads up "
            f"to {SCHEMA}: install a newer one"
        )
    if record["schema"] < SCHEMA:
        raise BundleError(
            f"{path}: the bundle's schema is {record['schema']}, expected {SCHEMA}: this "
            "ptycho_dist no longer has its network; train again"
        )
    if not isinstance(record.get("sha256"), dict):
        raise BundleError(
            f"{path}: sha256 in {_RECORD} is {record.get('sha256')!r}, expected the SHA-256 of "
            "every other member"
        )
    return record


def _require_probes(probes: np.ndarray, refined_probe_of: list[Any]) -> None:
    """One probe (modes, N, N), or a refined one for each of the scans (scans, modes, N, N)."""
    num_scans = len(refined_probe_of)
    if (
        not all(isinstance(fingerprint, str) for fingerprint in refined_probe_of)
        or len(set(refined_probe_of)) != num_scans
    ):
        raise ValueError(
            f"refined_probe_of is {refined_probe_of!r}, expected fingerprints of different scans"
        )
    is_stack_of_squares = (
        probes.ndim == (4 if num_scans else 3)
        and probes.size > 0
        and probes.shape[-2] == probes.shape[-1]
    )
    if (
        not is_stack_of_squares
        or probes.dtype != np.complex64
        or (num_scans and len(probes) != num_scans)
    ):
        expected = f"({num_scans}, modes, N, N)" if num_scans else "(modes, N, N)"
        raise ValueError(
            f"{_PROBE} is {probes.dtype} {probes.shape}, expected complex64 {expected}"
        )
    for probe in probes if num_scans else probes[None]:
        if not np.isfinite(probe).all() or not probe.any():
            raise ValueError(
                f"{_PROBE} holds "
                f"{'zeros only' if np.isfinite(probe).all() else 'NaN or infinity'}, expected a "
                "finite probe"
            )


def _require_finite_weights(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} in {_WEIGHTS} holds NaN or infinity, expected finite weights")


def _safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"weights: {name} is {type(tensor).__name__}, expected a tensor")
    _require_finite_weights(weights)
    # Copies: weights that are tied share their memory, which the format doesn't know.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()
    }
    try:
        return safetensors.torch.save(copies)
    except KeyError as error:  # how the library says it
        raise ValueError(
            f"weights: found {error.args[0]}, expected a type that safetensors holds, such as "
            "float32 or complex64"
        ) from error


def _network_record(bundle: Bundle) -> dict[str, Any]:
    if bundle.config is not None:
        return {"config": bundle.config.to_dict()}
    given = dict(bundle.hyperparameters or {})
    try:
        # a copy of each value: YAML would write the second of a list as an alias
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
