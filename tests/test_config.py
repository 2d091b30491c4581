"""The configuration is read strictly: nothing unknown, nothing of the wrong type, and the message
names the key."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptycho_dist.config import (
    Config,
    ConfigError,
    DataConfig,
    Hdf5Config,
    ModelConfig,
    SimulationConfig,
    TrainConfig,
    make_parser,
    parse_mapping,
    read_config,
)

CONCERNS = [Config, DataConfig, Hdf5Config, ModelConfig, TrainConfig, SimulationConfig]


def from_command_line(*arguments: str) -> Config:
    return read_config(make_parser("test").parse_args(list(arguments)))


@pytest.fixture
def from_yaml(tmp_path: Path) -> Callable[..., Config]:
    def read(text: str, *arguments: str) -> Config:
        (tmp_path / "config.yaml").write_text(text)
        return from_command_line("--config", str(tmp_path / "config.yaml"), *arguments)

    return read


def test_no_argument_gives_the_defaults() -> None:
    assert from_command_line() == Config()


def test_only_the_scientist_says_what_only_he_can_know() -> None:
    data = Config().data
    assert (data.path, data.measurement, data.nphotons) == (None, None, None)


def test_missing_path_is_named_when_it_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"data\.path is None, expected a scan file"):
        _ = DataConfig().paths


UNKNOWN = {
    "key": ("data: {pathh: scan.npz}", "data: 'pathh' is not accepted; did you mean 'path'?"),
    "concern": ("dato: {path: scan.npz}", "'dato' is not accepted; did you mean 'data'?"),
    "key of another concern": ("train: {subset_size: 5}", "subset_size"),
    "key at the top": (
        "epochs: 5",
        "'epochs' is not accepted; expected data, model, train, simulation",
    ),
    "concern without keys": ("dato: null", "dato"),
    "key of a concern within": ("data: {hdf5: {difraction: /data}}", "difraction"),
}


@pytest.mark.parametrize(("text", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_key_in_yaml_is_refused_by_name(
    from_yaml: Callable[..., Config], text: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        from_yaml(text)


@pytest.mark.parametrize(("text", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_key_in_a_mapping_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        parse_mapping(yaml.safe_load(text))


WRONG = {
    "data.energy_eV": [True, "8 keV", [8000.0], 0, -8000.0, float("nan"), float("inf")],
    "data.detector_distance_m": [True, "2 m", 0, -1.0, float("nan")],
    "data.detector_pixel_m": [True, "55 um", 0, -1.0, float("inf")],
    "data.probe": [5, True, ["probe.npy"]],
    "data.mask": [5, True, ["mask.npy"]],
    "data.diffraction": [5, True, ["a.h5", "b.h5"]],
    "data.crop": [64.5, True, "half", 0, -64, 63],
    "data.centre_px": [5, [5], [1, 2, 3], [1.5, 2], [-1, 5]],
    "data.transpose": ["maybe", 1],
    "data.hdf5": [
        5,
        [1],
        {"positions_unit": "inch"},
        {"diffraction": 3},
        {"energy_eV": 8000.0},
        {"probe": ["a"]},
    ],
    "data.path": [5, [1, 2], {"a": 1}],
    "data.measurement": ["intensity", 1, True],
    "data.nphotons": [True, "guess", [1.0], 0, -1.0, float("nan"), float("inf")],
    "data.subset_size": [2.5, "many", True, 0, -3],
    "data.sampling": ["half", 1, True, "random", "every"],
    "data.every": [2.5, "third", True, 0, -3],
    "data.min_distance_px": ["far", True, 0, -1.0, float("nan"), float("inf")],
    "data.index_file": [5, ["a.txt"]],
    "data.subset_seed": [None, 1.5, "x", -1],
    "data.val_fraction": [True, "x", None, -0.1, 1, 1.5, float("nan")],
    "data.group_size": [None, 1.5, True, 0],
    "model.base_width": [None, 1.5, True, 0],
    "model.intensity_scale_trainable": [1, "maybe", None],
    "model.probe_trainable": [1, "maybe", None],
    "model.probe_modes": [1.5, True, "many", 0],
    "train.run_dir": [None, 5],
    "train.epochs": [None, 3.0, "three", True, 0],
    "train.max_minutes": ["long", True, 0, -1, float("nan")],
    "train.global_batch_size": [None, 1.5, 0],
    "train.accumulate_grad_batches": [None, 1.5, 0],
    "train.learning_rate": [None, True, "x", 0, -1.0, float("nan"), float("inf")],
    "train.precision": [None, "bf16-true", "16-true", "half"],
    "train.seed": [None, 1.5, -1],
    "train.resume": [5, True],
    "train.init": [5, True],
    "train.logger": [None, "wandb", 5, ["csv", "wandb"], [["mlflow"]]],
    "simulation.scan_shape": [None, [3], [0, 3], [1.5, 2], 7],
    "simulation.amplitude_range": [None, [1, 0.5], [-0.1, 1]],
    "simulation.pattern_size": [None, 7, 0],
    "simulation.nphotons": [None, 0, "measured"],
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_type_or_range_is_refused_by_name(from_yaml: Callable[..., Config], key: str) -> None:
    """In a mapping, in a YAML file, and on the command line, unless that takes it for text."""
    concern, name = key.split(".")
    for value in WRONG[key]:
        told = {concern: {name: value}}
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            parse_mapping(told)
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            from_yaml(yaml.safe_dump(told))


def test_every_key_is_tried_with_a_wrong_value() -> None:
    """But for the simulation's, of which the checks have their kind above."""
    keys = {
        f"{concern}.{field.name}"
        for concern in ("data", "model", "train")
        for field in dataclasses.fields(getattr(Config(), concern))
    }
    assert keys <= set(WRONG)


@pytest.mark.parametrize("value", [3, None, "x", [1]])
@pytest.mark.parametrize("concern", ["data", "model", "train", "simulation"])
def test_concern_that_is_no_mapping_is_refused_by_name(
    from_yaml: Callable[..., Config], concern: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=concern):
        from_yaml(yaml.safe_dump({concern: value}))
    with pytest.raises(ConfigError, match=concern):
        parse_mapping({concern: value})


def test_patterns_of_one_product_are_not_those_of_several() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.diffraction is 'dp\.h5', expected one scan in data\.path"
    ):
        parse_mapping({"data": {"path": ["a.h5", "b.h5"], "diffraction": "dp.h5"}})


@pytest.mark.parametrize("content", [[1], "x", None, 3])
def test_mapping_that_is_none_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError, match=r"config: the configuration is .*, expected a mapping"):
        parse_mapping(content)


@pytest.mark.parametrize("text", ["- 1\n", "", "{", "data: [\n", "\t"])
def test_file_that_is_no_yaml_mapping_is_refused(
    from_yaml: Callable[..., Config], text: str
) -> None:
    with pytest.raises(ConfigError, match="config"):
        from_yaml(text)


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--data.pathh=x", "; did you mean --data.path?"),
        ("--train.epoch", "; did you mean --train.epochs?"),
        ("--dato.path", "; did you mean --data.path?"),
        ("--train.learning", "; did you mean --train.learning_rate?"),
        ("--zzz", ""),
    ],
)
def test_unknown_option_is_refused_with_the_nearest_one(option: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"unrecognized arguments: {option}{near}") + "$"
    ):
        from_command_line(option)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--train.run_dir=2026", "2026"),
        ("--train.run_dir=run #1", "run #1"),
        ("--train.run_dir=null", "null"),
        ("--train.resume=null", None),
        ("--train.resume=[a", "[a"),
        ("--train.init='x'", "'x'"),
        ("--train.logger=[csv, mlflow]", ["csv", "mlflow"]),
        ("--train.seed=7", 7),
        ("--train.learning_rate=1e-3", 1e-3),
    ],
)
def test_option_is_yaml_where_the_key_takes_it_else_text(option: str, value: object) -> None:
    name = option.partition("=")[0].removeprefix("--train.")
    assert getattr(from_command_line(option).train, name) == value


def test_option_for_a_key_of_what_is_no_mapping_does_not_hide_it(
    from_yaml: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match="data is 5, expected a mapping of its keys"):
        from_yaml("data: 5", "--data.group_size=1")


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/no/such/file\.yaml"):
        from_command_line("--config", "/no/such/file.yaml")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:builtins.open [{witness}, w]",
        "!!python/name:os.system ''",
        "!!python/tuple [1]",
    ],
)
def test_python_tags_are_refused_and_not_run(
    from_yaml: Callable[..., Config], tmp_path: Path, tag: str
) -> None:
    witness = tmp_path / "witness"
    text = f"data: {{path: {tag.format(witness=witness)}}}\n"
    if "open" in tag:  # the attack is a live one: a loader that trusts its input runs it
        yaml.unsafe_load(text)["data"]["path"].close()
        witness.unlink()
    with pytest.raises(ConfigError, match="python"):
        from_yaml(text)
    assert not witness.exists()


def test_yaml_gives_values_and_leaves_the_other_defaults(from_yaml: Callable[..., Config]) -> None:
    config = from_yaml(
        "data: {path: scan.npz, nphotons: 1e6, measurement: counts}\ntrain: {epochs: 7}\n"
    )
    assert config == Config(
        data=DataConfig(path="scan.npz", nphotons=1e6, measurement="counts"),
        train=TrainConfig(epochs=7),
    )


def test_option_overrides_the_yaml_file(from_yaml: Callable[..., Config]) -> None:
    config = from_yaml(
        "data: {path: a.npz, group_size: 1}\ntrain: {epochs: 7, seed: 3}\n",
        "--train.epochs",
        "9",
        "--data.path",
        "b.npz",
    )
    assert config == Config(
        data=DataConfig(path="b.npz", group_size=1), train=TrainConfig(epochs=9, seed=3)
    )


def test_option_can_take_back_what_the_yaml_file_says(from_yaml: Callable[..., Config]) -> None:
    assert (
        from_yaml("data: {subset_size: 100}\n", "--data.subset_size", "null").data.subset_size
        is None
    )


def test_second_yaml_file_overrides_the_first(
    from_yaml: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "second.yaml").write_text("train: {epochs: 9}\n")
    assert from_yaml(
        "train: {epochs: 7, seed: 3}\n", "--config", str(tmp_path / "second.yaml")
    ).train == TrainConfig(epochs=9, seed=3)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (["--data.path", "a.npz"], ["a.npz"]),
        (["--data.path", "[a.npz,b.npz]"], ["a.npz", "b.npz"]),
        (["--data.path", '["a b.npz", "c.npz"]'], ["a b.npz", "c.npz"]),
        (["--data.path+", "a.npz", "--data.path+", "b.npz"], ["a.npz", "b.npz"]),
    ],
)
def test_path_is_one_file_or_several(options: list[str], paths: list[str]) -> None:
    assert from_command_line(*options).data.paths == tuple(map(Path, paths))


def test_yaml_names_several_scans(from_yaml: Callable[..., Config]) -> None:
    assert from_yaml("data: {path: [a.npz, b.npz]}\n").data.paths == (Path("a.npz"), Path("b.npz"))


@pytest.mark.parametrize(
    ("text", "expected"), [("1e9", 1e9), ("250", 250.0), ("measured", "measured"), ("null", None)]
)
def test_nphotons_is_a_number_or_measured(text: str, expected: object) -> None:
    assert from_command_line("--data.nphotons", text).data.nphotons == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("auto", "auto"), ("32", 32), ("bf16-mixed", "bf16-mixed")]
)
def test_precision_is_one_of_those_that_keep_the_scale(text: str, expected: object) -> None:
    assert from_command_line("--train.precision", text).train.precision == expected


SAMPLING = {
    "full": (),
    "random": ("subset_size",),
    "central_block": ("subset_size",),
    "every": ("every",),
    "poisson_disc": ("subset_size", "min_distance_px"),
    "index_file": ("index_file",),
}
GIVEN = {"subset_size": 9, "every": 3, "min_distance_px": 4.5, "index_file": "keep.txt"}


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(
    "given",
    [keys for size in range(3) for keys in itertools.combinations(GIVEN, size)],
    ids=" and ".join,
)
def test_sampling_takes_one_of_its_own_keys_and_no_other(
    sampling: str, given: tuple[str, ...]
) -> None:
    own = set(SAMPLING[sampling])
    told: dict[str, Any] = {"sampling": sampling, **{key: GIVEN[key] for key in given}}
    if set(given) <= own and len(given) == min(1, len(own)):
        assert DataConfig(**told).sampling_mode == sampling
        return
    with pytest.raises(ConfigError) as refused:
        DataConfig(**told)
    stray = [key for key in given if key not in own]
    if stray:
        assert any(
            f"data.{key} is {GIVEN[key]!r}, expected null where data.sampling is {sampling}, not "
            in str(refused.value)
            for key in stray
        )
    else:
        expected = (
            " or ".join(f"data.{key}" for key in SAMPLING[sampling])
            + " with it"
            + (", not both" if given else "")
        )
        assert f"data.sampling is {sampling!r}, expected {expected}" in str(refused.value)


def test_size_alone_draws_at_random_and_nothing_takes_all() -> None:
    assert DataConfig().sampling_mode == "full"
    assert DataConfig(subset_size=5).sampling_mode == "random"
    with pytest.raises(
        ConfigError,
        match=r"data\.every is 3, expected null where data\.sampling is full, not every",
    ):
        DataConfig(every=3)


UNUSUAL = Config(
    data=DataConfig(
        energy_eV=8000.5,
        detector_distance_m=2.5,
        detector_pixel_m=5.5e-5,
        probe="probe.h5:/entry/probe",
        mask="mask.npy",
        diffraction="patterns.h5",
        crop=64,
        centre_px=(3, 500),
        transpose=True,
        hdf5=Hdf5Config(
            **{
                **{field.name: f"/{field.name}" for field in dataclasses.fields(Hdf5Config)},
                "positions_unit": "um",
            }
        ),
        path=["a.npz"],
        measurement="counts",
        nphotons="measured",
        sampling="poisson_disc",
        subset_size=9,
        subset_seed=4,
        val_fraction=0.1,
        group_size=1,
    ),
    model=ModelConfig(
        base_width=7, intensity_scale_trainable=True, probe_trainable=True, probe_modes=5
    ),
    train=TrainConfig(
        run_dir="a b",
        epochs=2,
        max_minutes=0.1,
        global_batch_size=3,
        accumulate_grad_batches=2,
        learning_rate=1 / 3,
        precision=32,
        seed=8,
        resume="auto",
        init="earlier/bundle.zip",
        logger=["csv", "mlflow"],
    ),
    simulation=SimulationConfig(
        scan_shape=(3, 5), amplitude_range=(0.25, 0.75), probe="disk", nphotons=1e9
    ),
)


OTHER_SAMPLING = {"every": 3, "min_distance_px": 4.5, "index_file": "keep.txt"}
"""No two of them, nor one and a size, can be told at once."""
SAMPLED = [
    dataclasses.replace(
        UNUSUAL,
        data=dataclasses.replace(
            UNUSUAL.data,
            subset_size=None,
            sampling="poisson_disc" if key == "min_distance_px" else key,
            **{key: OTHER_SAMPLING[key]},
        ),
    )
    for key in OTHER_SAMPLING
]


@pytest.mark.parametrize(
    "config", [Config(), UNUSUAL, *SAMPLED], ids=["defaults", "unusual", *OTHER_SAMPLING]
)
def test_config_survives_dict_and_yaml(config: Config, from_yaml: Callable[..., Config]) -> None:
    assert parse_mapping(config.to_dict()) == config
    text = yaml.safe_dump(config.to_dict())
    assert parse_mapping(yaml.safe_load(text)) == config
    assert from_yaml(text) == config


def test_dict_holds_nothing_but_what_yaml_has() -> None:
    def kinds(value: Any) -> set[type]:
        items = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else ()
        )
        return {type(value)}.union(*map(kinds, items))

    assert kinds(UNUSUAL.to_dict()) <= {dict, list, str, int, float, bool, type(None)}


def test_unusual_config_differs_from_the_defaults_in_every_key_but_the_simulations() -> None:
    """Otherwise the round trip would not show that the key is kept."""
    for concern in ("data", "model", "train"):
        unusual, default = getattr(UNUSUAL, concern), getattr(Config(), concern)
        same = [
            field.name
            for field in dataclasses.fields(default)
            if getattr(unusual, field.name) == getattr(default, field.name)
        ]
        assert same == (list(OTHER_SAMPLING) if concern == "data" else [])


@pytest.mark.parametrize("concern", CONCERNS)
def test_dataclasses_are_frozen_and_keyword_only(concern: type) -> None:
    first = dataclasses.fields(concern)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(concern(), first, None)
    with pytest.raises(TypeError, match="positional"):
        concern(getattr(concern(), first))


@pytest.mark.parametrize(
    ("name", "global_batch_size"), [("default", 8), ("8gpu", 8 * 8), ("8x8gpu", 8 * 64)]
)
def test_configurations_for_many_gpus_are_one_recipe(name: str, global_batch_size: int) -> None:
    configs = Path(__file__).parents[1] / "configs"
    read = {
        each: from_command_line(f"--config={configs / each}.yaml") for each in ("default", name)
    }
    assert read[name].train.global_batch_size == global_batch_size
    same = {
        "epochs": read["default"].train.epochs,
        "global_batch_size": read["default"].train.global_batch_size,
    }
    assert (
        dataclasses.replace(read[name], train=dataclasses.replace(read[name].train, **same))
        == read["default"]
    )


def test_without_a_file_the_recipe_is_that_of_the_default_one() -> None:
    """An installed package has no configs/ beside it."""
    default = Path(__file__).parents[1] / "configs/default.yaml"
    assert from_command_line() == from_command_line(f"--config={default}")


@pytest.mark.parametrize(
    ("told", "trackers"),
    [
        ("csv", ()),
        ("tensorboard", ("tensorboard",)),
        (["mlflow", "csv", "tensorboard", "mlflow"], ("mlflow", "tensorboard")),
        ([], ()),
    ],
)
def test_loggers_beside_the_csv_file(told: Any, trackers: tuple[str, ...]) -> None:
    assert TrainConfig(logger=told).trackers == trackers
