"""The configuration: YAML, environment and command line in, one frozen `Config` of checked values out.

`values` parses single values, `backends` and `sections` define the sections, `root` combines them and checks that they
agree, `chains` finds the chain of a model name, `source` reads YAML with positions, `load` merges and reports. Nothing
outside sees YAML, environment variables or raw dicts.
"""

from router.config.backends import BackendSection, Probe, ServerSection, StaticGpu
from router.config.chains import ChainRule, ChainRules
from router.config.load import effective, load_config, schema
from router.config.named import models_named
from router.config.root import Config
from router.config.sections import (
    AutoChains,
    ChainSection,
    Defaults,
    Limits,
    NothingFits,
    Queue,
    SnapshotTimes,
    Store,
    Switch,
    TelemetrySection,
    Timeouts,
    Upgrade,
    VariantSection,
)
from router.config.untrusted import require_regular
from router.config.values import Address, Gpus

__all__ = [
    "Address",
    "AutoChains",
    "BackendSection",
    "ChainRule",
    "ChainRules",
    "ChainSection",
    "Config",
    "Defaults",
    "Gpus",
    "Limits",
    "NothingFits",
    "Probe",
    "Queue",
    "ServerSection",
    "SnapshotTimes",
    "StaticGpu",
    "Store",
    "Switch",
    "TelemetrySection",
    "Timeouts",
    "Upgrade",
    "VariantSection",
    "effective",
    "load_config",
    "models_named",
    "require_regular",
    "schema",
]
