"""Any valid configuration comes back from a YAML file as it was; any other is refused with the name
of the key."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from ptycho_dist.config import (
    Config,
    ConfigError,
    DataConfig,
    Hdf5Config,
    ModelConfig,
    SimulationConfig,
    TrainConfig,
    parse_mapping,
)

NO_SHRINKING = (Phase.explicit, Phase.generate)
"""For large examples: to make a failing one small takes minutes."""

# What a YAML file can hold: no control characters, no half of a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
# Text that a YAML reader would take for something else where it is not quoted.
lookalikes = st.sampled_from(
    [
        "null",
        "~",
        "true",
        "no",
        "5",
        "1e6",
        "0x1f",
        "1_000",
        "[a]",
        "[a, b]",
        "{a: 1}",
        "- a",
        "a: b",
        "",
        "*a",
        "!!int 3",
    ]
)
names = texts | lookalikes
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
finite = st.floats(allow_infinity=False, allow_nan=False)
counting = st.integers(1, 2**70)
seeds = st.integers(0, 2**70)


loggers = st.sampled_from(["csv", "tensorboard", "mlflow"])


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def ranges(low: float | None = None) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(*[st.floats(low, allow_infinity=False, allow_nan=False)] * 2).map(
        lambda pair: (min(pair), max(pair))
    )


VALID: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    DataConfig: {
        "energy_eV": optional(positive),
        "detector_distance_m": optional(positive),
        "detector_pixel_m": optional(positive),
        "probe": optional(names),
        "mask": optional(names),
        "diffraction": st.none(),  # not with several paths
        "crop": st.integers(1, 2**60).map(lambda half: 2 * half),
        "centre_px": optional(st.tuples(seeds, seeds)),
        "transpose": st.sampled_from([None, True, False]),
        "hdf5": st.builds(
            Hdf5Config,
            **{
                field.name: st.sampled_from([None, "px", "m", "mm", "um", "nm"])
                if field.name == "positions_unit"
                else optional(names)
                for field in dataclasses.fields(Hdf5Config)
            },
        ),
        "path": optional(names | st.lists(names, max_size=3)),
        "measurement": st.sampled_from([None, "amplitude", "counts"]),
        "nphotons": optional(positive | st.integers(1, 2**53) | st.just("measured")),
        "sampling": st.sampled_from([None, "full"]),
        "subset_size": optional(counting),
        "every": counting,
        "min_distance_px": positive,
        "index_file": names.map("{}.txt".format),  # a list named null would be none
        "subset_seed": seeds,
        "val_fraction": st.floats(0, 1, exclude_max=True),
        "group_size": counting,
    },
    ModelConfig: {
        "base_width": counting,
        "intensity_scale_trainable": st.booleans(),
        "probe_trainable": st.booleans(),
        "probe_modes": optional(counting),
    },
    TrainConfig: {
        "run_dir": names,
        "epochs": counting,
        "max_minutes": optional(positive),
        "global_batch_size": counting,
        "accumulate_grad_batches": counting,
        "learning_rate": positive,
        "precision": st.sampled_from(
            typing.get_args(typing.get_type_hints(TrainConfig)["precision"])
        ),
        "seed": seeds,
        "resume": optional(names),
        "init": optional(names),
        "logger": loggers | st.lists(loggers),
    },
    SimulationConfig: {
        "object": names,
        "amplitude_range": ranges(0),
        "phase_range_rad": ranges(),
        "probe": names,
        "probe_diameter_px": positive,
        "probe_defocus_rad": finite,
        "pattern_size": st.integers(1, 2**60).map(lambda half: 2 * half),
        "scan_shape": st.tuples(counting, counting),
        "step_px": positive,
        "jitter_px": st.floats(0, allow_infinity=False, allow_nan=False),
        "nphotons": positive,
        "seed": seeds,
    },
}
WITH: dict[str, dict[str, Any]] = {
    "every": {"sampling": "every"},
    "min_distance_px": {"sampling": "poisson_disc"},
    "index_file": {"sampling": "index_file"},
}
"""What goes with a key that is refused alone."""

sampling_keys: list[st.SearchStrategy[dict[str, Any]]] = [
    st.fixed_dictionaries(
        {
            key: VALID[DataConfig][key],
            **{other: st.just(value) for other, value in WITH.get(key, {}).items()},
        }
    )
    for key in ("sampling", "subset_size", *WITH)
] + [
    st.fixed_dictionaries(
        {
            "sampling": st.sampled_from(["random", "central_block", "poisson_disc"]),
            "subset_size": counting,
        }
    )
]
CONCERNS = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "simulation": SimulationConfig,
}


def known_keys(concern: type) -> dict[str, st.SearchStrategy[Any]]:
    """The strategies above for the keys that there are; a new key stays at its default here."""
    return {
        field.name: VALID[concern][field.name]
        for field in dataclasses.fields(concern)
        if field.name in VALID[concern]
    }


def whole(concern: type) -> st.SearchStrategy[Any]:
    keys = known_keys(concern)
    if concern is not DataConfig:
        return st.builds(concern, **keys)
    rest = st.fixed_dictionaries(
        {
            key: strategy
            for key, strategy in keys.items()
            if key not in ("sampling", "subset_size", *WITH)
        }
    )
    return st.builds(
        lambda rest, sampling: DataConfig(**rest, **sampling), rest, st.one_of(sampling_keys)
    )


configs = st.builds(Config, **{name: whole(concern) for name, concern in CONCERNS.items()})
KEYS = [(name, key) for name, concern in CONCERNS.items() for key in known_keys(concern)]

junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | lookalikes,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


def through_yaml(config: Config) -> Config:
    return parse_mapping(yaml.safe_load(yaml.safe_dump(config.to_dict())))


def test_every_key_is_generated() -> None:
    """A key that stays at its default would prove nothing."""
    missing = [
        f"{name}.{field.name}"
        for name, concern in CONCERNS.items()
        for field in dataclasses.fields(concern)
        if field.name not in VALID[concern]
    ]
    assert missing == []


@settings(max_examples=50, phases=NO_SHRINKING)
@given(configs)
def test_config_comes_back_from_yaml(config: Config) -> None:
    back = through_yaml(config)
    assert back == config
    assert through_yaml(back).to_dict() == back.to_dict()


@pytest.mark.parametrize(("concern", "key"), KEYS)
@settings(max_examples=12)
@given(data=st.data())
def test_each_key_comes_back_alone_with_its_type(
    concern: str, key: str, data: st.DataObject
) -> None:
    value = data.draw(VALID[CONCERNS[concern]][key])
    told = {concern: {key: as_yaml(value), **WITH.get(key, {})}}
    found = getattr(getattr(parse_mapping(yaml.safe_load(yaml.safe_dump(told))), concern), key)
    assert found == value
    assert type(found) is type(value) or (isinstance(value, int) and type(found) is float)


def as_yaml(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, as YAML writes it; a number's text is left open."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments or str(value) in map(str, arguments)
    if origin in (list, tuple):
        kinds = arguments * (len(value) if origin is list and isinstance(value, list) else 1)
        return (
            isinstance(value, list) and len(value) == len(kinds) and all(map(is_of, value, kinds))
        )
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if arguments:
        return any(is_of(value, one) for one in arguments)
    if kind in (int, float) and isinstance(value, str):
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


@pytest.mark.parametrize(("concern", "key"), KEYS)
@settings(max_examples=15)
@given(value=junk)
def test_value_is_read_as_it_is_or_refused_by_name(concern: str, key: str, value: Any) -> None:
    """No other exception, and nothing that is of another type is bent into shape."""
    try:
        found = getattr(
            getattr(parse_mapping({concern: {key: value, **WITH.get(key, {})}}), concern), key
        )
    except ConfigError as error:
        found, message = None, str(error)
    else:
        message = None
    if message is not None:
        assert f"{concern}.{key}" in message
    else:
        assert is_of(value, typing.get_type_hints(CONCERNS[concern])[key])
        assert isinstance(value, str | dict) or as_yaml(found) == value


@pytest.mark.parametrize(
    ("concern", "key"),
    [
        ("train", "learning_rate"),
        ("data", "nphotons"),
        ("simulation", "step_px"),
        ("train", "max_minutes"),
    ],
)
@settings(max_examples=20)
@given(value=st.floats(max_value=0) | st.just(math.nan) | st.just(math.inf))
def test_number_out_of_range_is_refused_by_name(concern: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{concern}.{key} is .*expected a positive number"):
        parse_mapping({concern: {key: value}})


@given(st.sampled_from(sorted(CONCERNS)), texts | st.integers() | st.none())
@example("data", "paths")
@example("train", "train")
@example("data", "path+")
@example("data", "path.0")
@example("simulation", "class_path")
@example("model", "__path__")
def test_unknown_key_is_refused_by_name(concern: str, key: Any) -> None:
    if key in known_keys(CONCERNS[concern]):
        return
    with pytest.raises(ConfigError) as refused:
        parse_mapping({concern: {key: 1}})
    assert f"{concern}: {key!r} is not accepted" in str(refused.value)


@given(texts | st.integers() | st.none(), junk)
@example("config", None)
@example("data.path", "scan.npz")
@example("debug", True)
def test_unknown_concern_is_refused_by_name(concern: Any, value: Any) -> None:
    if concern in CONCERNS:
        return
    with pytest.raises(ConfigError) as refused:
        parse_mapping({concern: value})
    assert repr(concern) in str(refused.value)


@given(junk)
def test_whatever_is_no_mapping_of_concerns_is_refused(value: Any) -> None:
    if value == {}:
        return
    with pytest.raises(ConfigError):
        parse_mapping(value)
