"""Configurations (Gadgetron's XML, both schemas) -> validated, running chains."""

from service.chain.chain import Chain
from service.chain.errors import ConfigError, Problem
from service.chain.find import config_file, config_folders, find_config, list_configs
from service.chain.loader import Policy, load
from service.chain.overrides import overrides_from_json

__all__ = [
    "Chain",
    "ConfigError",
    "Policy",
    "Problem",
    "config_file",
    "config_folders",
    "find_config",
    "list_configs",
    "load",
    "overrides_from_json",
]
