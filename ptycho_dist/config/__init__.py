"""The configuration of a run: strict records, read from YAML files and the command line.

Unknown keys and values of the wrong type are refused by name. Every key has a default, except what
only the scientist can know: `data.path`, `data.measurement` and `data.nphotons`.
"""

from ptycho_dist.config.data import DataConfig, Hdf5Config, Sampling, ScanConfig
from ptycho_dist.config.model import ModelConfig
from ptycho_dist.config.options import (
    Parser,
    add_scan_keys,
    given_scan_keys,
    make_parser,
    read_config,
)
from ptycho_dist.config.plain_yaml import read_yaml
from ptycho_dist.config.record import ConfigError, Key, in_words, keys
from ptycho_dist.config.run import Config, flat_keys, parse_mapping
from ptycho_dist.config.simulation import SimulationConfig
from ptycho_dist.config.train import RunLogger, TrainConfig

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "Hdf5Config",
    "Key",
    "ModelConfig",
    "Parser",
    "RunLogger",
    "Sampling",
    "ScanConfig",
    "SimulationConfig",
    "TrainConfig",
    "add_scan_keys",
    "flat_keys",
    "given_scan_keys",
    "in_words",
    "keys",
    "make_parser",
    "parse_mapping",
    "read_config",
    "read_yaml",
]
