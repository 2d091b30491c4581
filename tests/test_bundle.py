"""The bundle comes back as it was saved, or is refused with a message that says why."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import ptycho_dist.bundle
from ptycho_dist.bundle import (
    SCHEMA,
    Bundle,
    BundleError,
    load_bundle,
    save_bundle,
    software_versions,
)
from ptycho_dist.config import Config, TrainConfig
from ptycho_dist.inference.infer import infer
from ptycho_dist.training.start import Start
from tests.bundles import (
    MEMBERS,
    WIDTH,
    N,
    contents,
    edit_record,
    example,
    network,
    npy,
    rewrite,
    write_zip,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle.zip", example())
    return tmp_path / "bundle.zip"


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as refused:
        load_bundle(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_weights_that_are_not_contiguous_come_back(tmp_path: Path) -> None:
    """A network that is in channels-last memory holds such tensors."""
    saved = network().to(memory_format=torch.channels_last).state_dict()
    assert not all(tensor.is_contiguous() for tensor in saved.values())
    save_bundle(tmp_path / "bundle.zip", replace(example(), weights=saved))
    loaded = load_bundle(tmp_path / "bundle.zip").weights
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_model_gives_the_outputs_of_the_trained_network(path: Path) -> None:
    x_norm = torch.rand(3, N, N)
    probe, estimate = (
        torch.from_numpy(example().probe)[None],
        torch.ones(3, N, N, dtype=torch.complex64),
    )
    model = load_bundle(path).build_model("cpu")
    with torch.no_grad():
        # The same weights; a convolution may add in another order where memory is laid out
        # otherwise: float32 rounding through ten layers.
        torch.testing.assert_close(
            model(x_norm, probe, estimate), network()(x_norm, probe, estimate), rtol=1e-5, atol=1e-5
        )
        assert not torch.allclose(
            model(x_norm, probe, estimate),
            network(seed=1)(x_norm, probe, estimate),
            rtol=1e-2,
            atol=1e-2,
        )


def test_model_is_ready_for_inference(path: Path) -> None:
    model = load_bundle(path).build_model("cpu")
    assert not any(module.training for module in model.modules())


def refined(num_scans: int = 2) -> Bundle:
    random = np.random.default_rng(7)
    probes = (
        random.normal(size=(num_scans, 3, N, N)) + 1j * random.normal(size=(num_scans, 3, N, N))
    ).astype(np.complex64)
    return replace(
        example(),
        probe=probes[0],
        refined_probes={f"{number:064x}": probe for number, probe in enumerate(probes)},
    )


@pytest.mark.parametrize("num_scans", [1, 2, 5])
def test_refined_probes_come_back_bit_by_bit(tmp_path: Path, num_scans: int) -> None:
    saved = refined(num_scans)
    save_bundle(tmp_path / "refined.zip", saved)
    loaded = load_bundle(tmp_path / "refined.zip")
    assert list(loaded.refined_probes) == list(saved.refined_probes)
    for fingerprint, probe in saved.refined_probes.items():
        assert loaded.refined_probes[fingerprint].tobytes() == probe.tobytes()
    assert loaded.probe.tobytes() == saved.probe.tobytes()
    assert loaded.pattern_size == N


@pytest.mark.parametrize(
    ("refined_probe_of", "named"),
    [
        (["0" * 64], r"complex64 (2, 3, 16, 16), expected complex64 (1, modes, 16, 16)"),
        ([], r"complex64 (2, 3, 16, 16), expected complex64 (modes, 16, 16)"),
        (["a", "a"], "expected fingerprints of different scans"),
        ([1, 2], "expected fingerprints of different scans"),
        ([["a"], ["b"]], "expected fingerprints of different scans"),
        ("ab", "refined_probe_of is 'ab', expected list"),
        (None, "refined_probe_of is None, expected list"),
    ],
)
def test_refined_probes_that_do_not_fit_the_record_are_refused(
    tmp_path: Path, refined_probe_of: Any, named: str
) -> None:
    save_bundle(tmp_path / "refined.zip", refined())
    edit_record(
        tmp_path / "refined.zip", lambda record: record.update(refined_probe_of=refined_probe_of)
    )
    assert named in refusal(tmp_path / "refined.zip")


def test_archive_holds_the_three_members_stored(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(MEMBERS)
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_nothing_in_the_archive_is_a_pickle(path: Path) -> None:
    members = contents(path)
    for name, content in members.items():
        assert not name.endswith((".pkl", ".pickle", ".pt", ".pth", ".ckpt"))
        assert not content.startswith(b"\x80")
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the reason, these bytes are no pickle
            list(pickletools.genops(content))
    assert np.lib.format.read_magic(stream := io.BytesIO(members["probe.npy"])) == (1, 0)
    assert not np.lib.format.read_array_header_1_0(stream)[2].hasobject
    (header_bytes,) = struct.unpack("<Q", members["weights.safetensors"][:8])
    assert members["weights.safetensors"][8 : 8 + header_bytes].strip().startswith(b"{")


def test_record_is_plain_yaml_with_what_an_audit_needs(path: Path) -> None:
    members = contents(path)
    record, saved = yaml.safe_load(members["bundle.yaml"]), example()
    assert record["schema"] == SCHEMA
    assert record["calibration"] == saved.calibration.to_dict()
    assert record["config"] == saved.config.to_dict()
    assert set(record["versions"]) >= {"ptycho_dist", "torch", "numpy", "python"}
    assert record["sha256"] == {
        name: hashlib.sha256(members[name]).hexdigest() for name in MEMBERS[1:]
    }


def test_failing_write_leaves_the_old_bundle_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    written = []

    def fail_at_the_second(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
        written.append(name)
        if len(written) == 2:
            raise OSError("disk full")
        archive_writestr(archive, name, content)

    archive_writestr = zipfile.ZipFile.writestr
    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(path, example(seed=1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_replaces_the_old_bundle(path: Path) -> None:
    save_bundle(path, example(seed=1))
    loaded = load_bundle(path)
    assert all(
        torch.equal(loaded.weights[name], tensor)
        for name, tensor in example(seed=1).weights.items()
    )
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_bundle_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "truncated, altered or not a bundle" in refusal(path)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("member", MEMBERS)
def test_flipped_bit_in_a_member_is_refused(path: Path, member: str, place: float) -> None:
    content, whole = contents(path)[member], bytearray(path.read_bytes())
    start = whole.find(content)
    whole[start + int(place * len(content))] ^= 0x10
    path.write_bytes(whole)
    message = refusal(path)
    assert "truncated, altered or not a bundle" in message
    assert member in message


@pytest.mark.parametrize("member", MEMBERS[1:])
def test_member_of_another_bundle_is_refused(path: Path, tmp_path: Path, member: str) -> None:
    """Its own checksum in the archive is right, so that only the record's SHA-256 tells."""
    save_bundle(tmp_path / "other.zip", example(seed=1))
    rewrite(path, {member: contents(tmp_path / "other.zip")[member]}, sign=False)
    assert f"{member} is not the one that was written" in refusal(path)


@pytest.mark.parametrize("member", MEMBERS)
def test_missing_member_is_refused(path: Path, member: str) -> None:
    write_zip(path, {name: content for name, content in contents(path).items() if name != member})
    assert "found an archive of" in (message := refusal(path))
    assert member in message.split("expected")[1]


@pytest.mark.parametrize(
    "name", ["extra.txt", "/etc/passwd", "../outside.txt", "bundle.yaml/", "weights.pkl"]
)
def test_extra_member_is_refused_and_nothing_is_written(path: Path, name: str) -> None:
    write_zip(path, {**contents(path), name: b"content"})
    assert repr(name) in refusal(path).split("expected")[0]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["/probe.npy", "../probe.npy", "Probe.npy"])
def test_member_of_another_name_is_refused(path: Path, name: str) -> None:
    members = contents(path)
    write_zip(
        path,
        {
            (name if member == "probe.npy" else member): content
            for member, content in members.items()
        },
    )
    assert repr(name) in refusal(path).split("expected")[0]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_stands_there_twice_is_refused(path: Path) -> None:
    members = contents(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bundle.yaml", members["bundle.yaml"])
    assert "found an archive of" in refusal(path)


def test_compressed_member_is_refused_before_it_is_unpacked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(path, {**contents(path), "probe.npy": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18

    def unpack(*_: object) -> bytes:
        raise AssertionError("the bomb was opened")

    monkeypatch.setattr(zipfile.ZipFile, "read", unpack)
    assert "is compressed, expected it stored" in refusal(path)


def test_large_record_is_refused_before_it_is_parsed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(path, {"bundle.yaml": b"a: 1\n" * (1 << 18)}, sign=False)
    monkeypatch.setattr(ptycho_dist.bundle.yaml, "safe_load", None)
    assert "bundle.yaml has 1310720 bytes, expected at most" in refusal(path)


def test_newer_schema_is_refused_and_says_what_to_do(path: Path) -> None:
    edit_record(path, lambda record: record.update(schema=SCHEMA + 1, config={"of": "the future"}))
    assert (
        f"schema is {SCHEMA + 1}, this ptycho_dist reads up to {SCHEMA}: install a newer one"
        in refusal(path)
    )


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    np.savez(tmp_path / "scan.npz", diffraction=np.ones((2, 4, 4)))
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert "not a bundle" in refusal(tmp_path / "text.zip")
    assert "found an archive of ['diffraction.npy']" in refusal(tmp_path / "scan.npz")
    assert "found an archive of ['last/data.pkl'" in refusal(tmp_path / "last.ckpt")


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    assert "found no file, expected a bundle" in refusal(tmp_path / "missing.zip")
    assert "found a directory, expected a bundle" in refusal(tmp_path)


def test_record_of_another_program_is_refused(path: Path) -> None:
    edit_record(path, lambda record: record.update(format="something else"))
    assert "does not describe a ptycho_dist bundle" in refusal(path)


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.witness), "w")


@pytest.mark.parametrize("member", MEMBERS[1:])
def test_pickle_in_place_of_a_member_is_refused_and_not_run(
    path: Path, tmp_path: Path, member: str
) -> None:
    witness = tmp_path / "witness"
    attack = pickle.dumps(Attack(witness))
    pickle.loads(attack).close()  # the attack is a live one
    witness.unlink()
    rewrite(path, {member: attack})
    assert "don't make a bundle" in refusal(path)
    assert not witness.exists()


def test_pickle_in_the_probe_array_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    attack = npy(np.array(Attack(witness), dtype=object))
    np.load(io.BytesIO(attack), allow_pickle=True).item().close()
    witness.unlink()
    rewrite(path, {"probe.npy": attack})
    assert "don't make a bundle" in refusal(path)
    assert not witness.exists()


def test_python_tag_in_the_record_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    attack = f"format: !!python/object/apply:builtins.open [{witness}, w]".encode()
    yaml.unsafe_load(attack)["format"].close()
    witness.unlink()
    rewrite(path, {"bundle.yaml": attack}, sign=False)
    assert "bundle.yaml is not YAML" in refusal(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"{", b"[" * 100_000, b"a: 2001-99-99", b"a: 0x_"]
)
def test_record_that_is_no_yaml_is_refused(path: Path, content: bytes) -> None:
    rewrite(path, {"bundle.yaml": content}, sign=False)
    assert "bundle.yaml is not YAML" in refusal(path)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (network(base_width=WIDTH + 1).state_dict(), "size mismatch"),
        ({"extra": torch.zeros(3)}, "Missing key"),
        ({**network().state_dict(), "extra": torch.zeros(3)}, "Unexpected key"),
        ({}, "Missing key"),
    ],
    ids=["of another width", "few", "one more", "none"],
)
def test_weights_of_another_network_are_refused(
    path: Path, weights: dict[str, torch.Tensor], named: str
) -> None:
    rewrite(path, {"weights.safetensors": safetensors.torch.save(weights)})
    assert named in refusal(path)


@pytest.mark.parametrize(
    ("probe", "named"),
    [
        (
            np.ones((1, N, N), np.complex128),
            "complex128 (1, 16, 16), expected complex64 (modes, 16, 16)",
        ),
        (np.ones((N, N), np.complex64), "complex64 (16, 16), expected complex64 (modes, 16, 16)"),
        (np.ones((1, 24, 24), np.complex64), "expected complex64 (modes, 16, 16)"),
    ],
)
def test_probe_that_does_not_fit_is_refused(path: Path, probe: np.ndarray, named: str) -> None:
    rewrite(path, {"probe.npy": npy(probe)})
    assert named in refusal(path)


def first_weight(value: float) -> bytes:
    weights = {name: tensor.clone() for name, tensor in example().weights.items()}
    weights[sorted(weights)[0]].view(-1)[0] = value
    return safetensors.torch.save(weights)


def safetensors_header(**described: Any) -> bytes:
    header = json.dumps({"a": described}).encode()
    return struct.pack("<Q", len(header)) + header


def npy_header(*shape: int) -> bytes:
    stream = io.BytesIO()
    described = {"descr": "<c8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("member", "content", "named"),
    [
        ("weights.safetensors", first_weight(np.nan), "holds NaN or infinity"),
        ("weights.safetensors", first_weight(np.inf), "holds NaN or infinity"),
        (
            "weights.safetensors",
            safetensors_header(dtype="F32", shape=[1 << 40], data_offsets=[0, 1 << 42]),
            "don't make a bundle",
        ),
        ("probe.npy", npy_header(1 << 20, 1 << 10, 1 << 10), "don't make a bundle"),
        ("probe.npy", npy(np.ones((1, 16, 8), np.complex64)), "(1, 16, 8), expected"),
        ("probe.npy", npy(np.ones((0, 16, 16), np.complex64)), "(0, 16, 16), expected"),
        (
            "probe.npy",
            npy(np.full((1, 16, 16), np.nan, np.complex64)),
            "holds NaN or infinity, expected",
        ),
    ],
    ids=["NaN", "infinity", "4 TB", "probe of 4 TB", "not square", "no mode", "NaN in the probe"],
)
def test_arrays_of_a_forger_are_refused(
    path: Path, member: str, content: bytes, named: str
) -> None:
    rewrite(path, {member: content})
    assert named in refusal(path)


@pytest.mark.parametrize(("width", "named"), [(10_000, "size mismatch"), (10**30, "")])
def test_network_too_large_for_any_machine_is_refused(path: Path, width: int, named: str) -> None:
    edit_record(path, lambda record: record.update(config={"model": {"base_width": width}}))
    assert named in (said := refusal(path))
    assert "don't make a bundle: " in said


def test_aliases_that_stand_for_2_to_the_60_strings_are_refused(path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )
    record = f"{bomb}format: ptycho_dist bundle\nschema: {SCHEMA}\nsha256: *a59\n"
    rewrite(path, {"bundle.yaml": record.encode()}, sign=False)
    assert "the alias '*a0'" in refusal(path)


WRONG_RECORDS: dict[str, list[Any]] = {
    "calibration": [None, {}, "rms", [1]],
    "gain": [0, float("nan"), None],
    "config": [None, 3, {"unknown": {"key": 1}}, {"train": {"epochs": 0}}],
    "versions": [None, "1.0"],
    "sha256": [None, "abc", [1], {}],
    "schema": [None, "1", 1.0],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG_RECORDS.items() for value in values]
)
def test_wrong_record_is_refused(path: Path, key: str, value: Any) -> None:
    edit_record(path, lambda record: record.update({key: value}))
    refusal(path)


@pytest.mark.parametrize("key", ["format", *WRONG_RECORDS])
def test_record_without_a_key_is_refused(path: Path, key: str) -> None:
    edit_record(path, lambda record: record.pop(key))
    refusal(path)


def test_missing_and_wrong_numbers_are_named(path: Path) -> None:
    edit_record(path, lambda record: record["calibration"].update(intensity_scale=float("nan")))
    assert "intensity_scale is nan, expected a positive number" in refusal(path)
    edit_record(path, lambda record: record["calibration"].pop("intensity_scale"))
    assert "expected the keys ['intensity_scale', " in refusal(path)
    edit_record(path, lambda record: record.pop("calibration"))
    assert "'calibration' is missing" in refusal(path)


def test_edited_scale_loads_and_changes_nothing_but_the_scale(path: Path) -> None:
    """The scale is read from the record, never derived again or taken from elsewhere."""
    before = load_bundle(path)
    scale = 3 * before.intensity_scale
    edit_record(path, lambda record: record["calibration"].update(intensity_scale=scale))
    after = load_bundle(path)
    assert after.intensity_scale == 3 * before.intensity_scale
    calibration = replace(after.calibration, intensity_scale=before.intensity_scale)
    assert calibration == before.calibration
    for name in ("config", "gain", "versions"):
        assert getattr(after, name) == getattr(before, name), name
    assert np.array_equal(after.probe, before.probe)
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())


# --- Another project's network


def foreign(**changed: Any) -> Bundle:
    """A network that ptycho_dist doesn't have, of a pattern size that its own couldn't take."""
    random = np.random.default_rng(3)
    content: dict[str, Any] = {
        "calibration": replace(
            example().calibration, pattern_size=24, nphotons_source="a colleague"
        ),
        "probe": (random.normal(size=(1, 24, 24)) + 1j).astype(np.complex64),
        "weights": {
            "layer.weight": torch.rand(3, 2),
            "phase": torch.rand(4).to(torch.complex64),
            "num_batches": torch.tensor(7),
        },
        "hyperparameters": {
            "width": 8,
            "activation": "tanh",
            "rates": [0.1 / 3, 1e-300],
            "nested": {"on": True, "off": None},
        },
    }
    return Bundle(**{**content, **changed})


@pytest.fixture
def foreign_path(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "foreign.zip", foreign())
    return tmp_path / "foreign.zip"


def test_foreign_network_comes_back_bit_by_bit(tmp_path: Path) -> None:
    saved = foreign()
    save_bundle(tmp_path / "foreign.zip", saved)
    loaded = load_bundle(tmp_path / "foreign.zip")
    assert loaded.config is None
    assert loaded.hyperparameters == saved.hyperparameters
    assert (loaded.calibration, loaded.gain) == (saved.calibration, 1.0)
    assert loaded.versions == software_versions()
    assert loaded.probe.tobytes() == saved.probe.tobytes()
    assert {
        name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in loaded.weights.items()
    } == {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in saved.weights.items()}


def test_record_of_a_foreign_network_has_no_config_that_nobody_ran(foreign_path: Path) -> None:
    record = yaml.safe_load(contents(foreign_path)["bundle.yaml"])
    assert "config" not in record
    assert record["hyperparameters"] == foreign().hyperparameters


def test_tied_weights_come_back_each_by_its_name(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    network = torch.nn.ModuleDict({"first": layer, "last": layer})
    save_bundle(tmp_path / "foreign.zip", foreign(weights=network.state_dict()))
    loaded = load_bundle(tmp_path / "foreign.zip").weights
    assert all(torch.equal(loaded[f"{name}.weight"], layer.weight) for name in ("first", "last"))


def test_a_list_may_stand_in_two_places(tmp_path: Path) -> None:
    """YAML would write the second as an alias, which loading refuses."""
    widths = [8, 16]
    save_bundle(
        tmp_path / "foreign.zip", foreign(hyperparameters={"encoder": widths, "decoder": widths})
    )
    assert load_bundle(tmp_path / "foreign.zip").hyperparameters == {
        "encoder": [8, 16],
        "decoder": [8, 16],
    }


DEEP: Any = 1
for _ in range(30):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hyperparameters": {"kernel": (3, 3)}}, "would come back as {'kernel': [3, 3]}"),
        ({"hyperparameters": {1: "a"}}, "would come back as {'1': 'a'}"),
        (
            {"hyperparameters": {"activation": torch.tanh}},
            "is not JSON serializable; expected text, finite numbers",
        ),
        ({"hyperparameters": {"rate": float("nan")}}, "expected text, finite numbers"),
        ({"hyperparameters": {"deep": DEEP}}, "levels of nesting"),
        ({"hyperparameters": {"table": "x" * (1 << 20)}}, "bytes, expected at most 1048576"),
        (
            {"weights": {"layer._extra_state": {"calls": 3}}},
            "layer._extra_state is dict, expected a tensor",
        ),
        ({"weights": {"phase": torch.ones(2, dtype=torch.complex128)}}, "found torch.complex128"),
        (
            {"weights": {"layer": torch.tensor([1.0, float("inf")])}},
            "layer in weights.safetensors holds NaN or infinity",
        ),
        (
            {"probe": np.ones((24, 24), np.complex64)},
            "complex64 (24, 24), expected complex64 (modes, 24, 24)",
        ),
        (
            {"probe": np.ones((1, 24, 24))},
            "float64 (1, 24, 24), expected complex64 (modes, 24, 24)",
        ),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(
    foreign_path: Path, changed: dict[str, Any], named: str
) -> None:
    before = foreign_path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(named)):
        save_bundle(foreign_path, foreign(**changed))
    assert foreign_path.read_bytes() == before


@pytest.mark.parametrize("changed", [{"hyperparameters": None}, {"config": Config()}])
def test_network_is_ours_or_somebody_elses(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected config or hyperparameters, one of the two"):
        foreign(**changed)


@pytest.mark.parametrize("value", [None, [1], "width: 8", 3])
def test_wrong_hyperparameters_are_refused(foreign_path: Path, value: Any) -> None:
    edit_record(foreign_path, lambda record: record.update(hyperparameters=value))
    assert f"hyperparameters is {value!r}, expected dict" in refusal(foreign_path)


def test_record_with_both_kinds_of_network_is_refused(path: Path) -> None:
    edit_record(path, lambda record: record.update(hyperparameters={"width": 8}))
    assert "expected config or hyperparameters, one of the two" in refusal(path)


def test_foreign_network_is_not_built_but_named(foreign_path: Path) -> None:
    with pytest.raises(
        BundleError,
        match=r"found another project's network .*'width': 8.* expected one that ptycho_dist trained",
    ):
        load_bundle(foreign_path).build_model("cpu")


def test_inference_and_training_refuse_a_foreign_network_by_its_file(
    foreign_path: Path, write_scan: Callable[..., Path]
) -> None:
    with pytest.raises(BundleError, match=rf"^{foreign_path}: found another project's network"):
        infer(foreign_path, write_scan(), foreign_path.parent / "out")
    config = Config(train=TrainConfig(init=str(foreign_path)))
    with pytest.raises(BundleError, match=rf"^{foreign_path}: found another project's network"):
        Start.of_run(config, resumed=False)
