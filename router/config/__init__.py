"""The configuration: YAML, environment and command line in, one frozen `Config` of checked values out.

`values` parses single values, `backends` and `sections` define the sections, `root` combines them and checks that they
agree, `chains` finds the chain of a model name, `source` reads YAML with positions, `load` merges and reports. Nothing
outside sees YAML, environment variables or raw dicts.
"""

from router.config.accounts import Audit, Usage
from router.config.backends import BackendSection, Probe, ServerSection, StaticGpu
from router.config.chain_sections import AutoChains, ChainSection, VariantSection
from router.config.chain_warnings import Knowledge
from router.config.chains import ChainRule, ChainRules
from router.config.discover import Discover
from router.config.fleet import FleetSection
from router.config.load import config_file, effective, load_config, schema, team_schema
from router.config.named import models_named
from router.config.outside import outside_files
from router.config.places import Places
from router.config.reload import Loaded, changed_keys, differences, meaning_of, prepare, watched_files, way_of, way_to
from router.config.root import Config
from router.config.rulebook import Rulebook, rulebook_of
from router.config.sections import Clients, Defaults, Limits, SnapshotTimes, Store, Switch, TelemetrySection, Timeouts
from router.config.shared import Shared
from router.config.summary import summary
from router.config.team_files import TeamFile
from router.config.team_section import TeamSection
from router.config.untrusted import require_regular
from router.config.values import Address, Gpus
from router.config.waiting import FairnessSection, Queue
from router.config.warnings import config_warnings
from router.core.decision.chain_choices import NothingFits, Upgrade

__all__ = [
    "Address",
    "Audit",
    "AutoChains",
    "BackendSection",
    "ChainRule",
    "ChainRules",
    "ChainSection",
    "Clients",
    "Config",
    "Defaults",
    "Discover",
    "FairnessSection",
    "FleetSection",
    "Gpus",
    "Knowledge",
    "Limits",
    "Loaded",
    "NothingFits",
    "Places",
    "Probe",
    "Queue",
    "Rulebook",
    "ServerSection",
    "Shared",
    "SnapshotTimes",
    "StaticGpu",
    "Store",
    "Switch",
    "TeamFile",
    "TeamSection",
    "TelemetrySection",
    "Timeouts",
    "Upgrade",
    "Usage",
    "VariantSection",
    "changed_keys",
    "config_file",
    "config_warnings",
    "differences",
    "effective",
    "load_config",
    "meaning_of",
    "models_named",
    "outside_files",
    "prepare",
    "require_regular",
    "rulebook_of",
    "schema",
    "summary",
    "team_schema",
    "watched_files",
    "way_of",
    "way_to",
]
