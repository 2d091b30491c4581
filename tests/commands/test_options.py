"""What every command says of itself: `--help`, `--version`, `--print_config`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from ptycho_dist.config import Config, ScanConfig, flat_keys, keys, parse_mapping

ROOT = Path(__file__).parents[2]
COMMANDS = {
    path.stem: path for path in sorted((ROOT / "ptycho_dist" / "commands").glob("[!_]*.py"))
}
WITH_CONFIG = ("inspect_scan", "simulate", "train")

UNITS = {
    "_px": "pixel",
    "_eV": "eV",
    "_m": "metres",
    "_rad": "radians",
    "_minutes": "minutes",
    "nphotons": "photons",
    "crop": "pixels",
    "pattern_size": "pixels",
}
"""The end of a key's name, and the word of which its help must not be without."""

Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """`say("train", "--help")`: what a command prints; it must end there, with status 0."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setenv("COLUMNS", "1000")  # one line a text
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"ptycho_dist.commands.{name}").main.__wrapped__()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def options(help_text: str) -> dict[str, str]:
    """The help of each option, by its name without dashes, and of each positional argument."""
    listed = help_text.rstrip().partition("\n\n")[2]
    blocks = re.split(r"\n  (?=[^ ])", listed)[1:]
    found = {}
    for block in blocks:
        invocation, text = re.split(r"\s{2,}", block.partition("\n\n")[0], maxsplit=1)
        found[re.split(r"[ ,]", invocation)[0].removeprefix("--")] = text
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_key_with_unit_and_default(say: Say, name: str) -> None:
    found = options(say(name, "--help"))
    assert {"debug", "version"} <= found.keys()
    expected = flat_keys(Config().to_dict()) if name in WITH_CONFIG else {}
    assert expected.keys() <= found.keys()
    for key, text in found.items():
        if key in ("-h", "version", "config", "print_config"):
            continue
        said = re.fullmatch(r"(.{8,}) \((required.*|(?:type: .*, )?default: .*)\)", text)
        assert said, f"{key}: {text}"
        for ending, unit in UNITS.items():
            assert not key.endswith(ending) or unit in said[1], f"{key}: {text}"
        if key in expected and not isinstance(expected[key], list):
            default = str(expected[key])
            default = {"None": "null", "True": "true", "False": "false"}.get(default, default)
            assert said[2].endswith(f"default: {default}"), f"{key}: {text}"


@pytest.mark.parametrize("name", ["evaluate", "infer", "stage"])
def test_commands_on_given_scans_take_the_keys_that_say_how_a_scan_is_read(
    say: Say, name: str
) -> None:
    """The same as training's, and none of those that say which patterns are used."""
    found = {key for key in options(say(name, "--help")) if key.startswith("data.")}
    assert found == {key.name for key in keys(ScanConfig)}
    assert found < {key.name for key in keys(Config)}


@pytest.mark.parametrize("name", COMMANDS)
def test_version_of_the_package_and_of_torch(say: Say, name: str) -> None:
    assert (
        say(name, "--version").split(" ", 1)[1]
        == f"{version('ptycho_dist')} (torch {torch.__version__})\n"
    )


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_printed_configuration_can_be_read_back_by_every_command(
    say: Say, tmp_path: Path, name: str
) -> None:
    asked = (
        "--train.epochs=3",
        "--data.nphotons=measured",
        "--data.path=[a.npz, b.npz]",
        "--simulation.scan_shape=[3, 4]",
    )
    printed = say(name, *asked, "--print_config")
    told = yaml.safe_load(printed)
    assert flat_keys(told).keys() == flat_keys(Config().to_dict()).keys()
    config = parse_mapping(told)
    assert (config.train.epochs, config.data.nphotons, config.data.path) == (
        3,
        "measured",
        ["a.npz", "b.npz"],
    )
    assert config.simulation.scan_shape == (3, 4)
    (tmp_path / "own.yaml").write_text(printed)
    for other in WITH_CONFIG:
        assert say(other, "--config", str(tmp_path / "own.yaml"), "--print_config") == printed


def test_every_command_has_its_script() -> None:
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} == COMMANDS.keys()
    for name in COMMANDS:
        assert (
            f"from ptycho_dist.commands.{name} import main\n"
            in (ROOT / "launch" / f"{name}.py").read_text()
        )
