"""The chain of a requested name, and that it is the same object until the catalog changes."""

import pytest

from router.config import load_config, rulebook_of
from router.core.decision.chain import Variant
from router.core.ollama.names import key_of
from router.routing.chains import MAX_REMEMBERED, Chains
from router.routing.ruled import RulesInForce
from tests.core.facts import catalog_of, facts_of

BIG = facts_of("llama3.3:70b", 40)
SMALL = facts_of("llama3.2:3b", 2)
CATALOG = catalog_of(BIG, SMALL)
TEAM = {"variants": ["llama3.3:70b", {"model": "llama3.2:3b", "num_ctx": 4096}], "nothing_fits": "wait"}


def chains(**options):
    config = load_config(env={}, options=options)
    return Chains(RulesInForce(rulebook_of(config)))


def models(chain):
    return [variant.model for variant in chain.variants]


def test_a_configured_chain_is_found_by_its_name_in_any_spelling():
    """Whether or not a model has that name; its variants are the operator's."""
    found = chains(chains={"team": TEAM}).find("TEAM:latest", CATALOG)
    assert found.name == "TEAM:latest"
    assert found.variants == (Variant("llama3.3:70b"), Variant("llama3.2:3b", 4096))


def test_an_installed_model_has_the_chain_that_follows_from_what_is_installed():
    """Or none but itself, where the operator wants that."""
    assert models(chains().find("llama3.3:70b", CATALOG)) == ["llama3.3:70b", "llama3.2:3b"]
    assert models(chains(**{"defaults.auto_chains": "off"}).find("LLAMA3.3:70b", CATALOG)) == ["llama3.3:70b"]
    assert models(chains(**{"defaults.auto_chains": "quantizations"}).find("llama3.3:70b", CATALOG)) == ["llama3.3:70b"]


@pytest.mark.parametrize("name", ["unknown:1b", "not a name", "", "llama3.3:cloud"])
def test_what_is_not_installed_or_not_a_local_name_has_no_chain(name):
    """Ollama itself answers."""
    assert chains().find(name, CATALOG) is None


def test_a_strict_request_gets_the_first_variant_only():
    """A chain of its own, remembered beside the other."""
    found = chains(chains={"team": TEAM})
    strict = found.find("team", CATALOG, is_strict=True)
    assert models(strict) == ["llama3.3:70b"]
    assert len(found.find("team", CATALOG).variants) == 2
    assert found.find("team", CATALOG, is_strict=True) is strict
    assert found.find("unknown:1b", CATALOG, is_strict=True) is None


def test_a_chain_is_the_same_object_until_the_catalog_changes():
    """Decisions are remembered by it; an absence is remembered too."""
    found = chains()
    first = found.find("llama3.3:70b", CATALOG)
    assert found.find("llama3.3:70b", CATALOG) is first
    assert found.find("new:1b", CATALOG) is None
    changed = catalog_of(BIG, facts_of("new:1b", 1))
    again = found.find("llama3.3:70b", changed)
    assert again is not first
    assert models(again) == ["llama3.3:70b"]
    assert found.find("new:1b", changed) is not None


def test_names_that_clients_invent_do_not_fill_the_memory():
    """A bounded number is remembered."""
    found = chains()
    for number in range(MAX_REMEMBERED + 10):
        found.find(f"unknown:{number}", CATALOG)
    assert len(found._remembered) <= MAX_REMEMBERED


@pytest.mark.parametrize(
    ("name", "is_local"), [("llama3:8b", True), ("x:cloud", False), ("not a name", False), ("", False)]
)
def test_a_local_name_is_valid_and_not_in_the_cloud(name, is_local):
    """Only such a name may be looked up."""
    assert Chains.is_local(name) is is_local


def test_the_rule_of_a_name_is_its_chains_or_the_default():
    """What becomes of its requests when nothing fits."""
    found = chains(chains={"team": TEAM})
    assert (found.rule("team").nothing_fits, found.rule("llama3.3:70b").nothing_fits) == ("wait", "refuse")


def test_chains_that_list_their_variants_are_shown_as_models():
    """Patterns and automatic chains have no name of their own."""
    config = {"team": TEAM, "qwen*": ["llama3.2:3b"], "llama3.3:70b": "auto"}
    assert [chain.name for chain in chains(chains=config).explicit()] == ["team"]


def test_a_name_that_no_model_can_have_has_no_chain_and_is_not_remembered():
    """Longer than any name of Ollama's, with its host and all."""
    found = chains()
    assert found.find("x" * 700, CATALOG) is None
    assert found.find("llama3.3:70b", CATALOG) is not None


def test_the_models_that_decide_about_a_name_are_those_of_its_chain_the_first_apart():
    """Nothing is known of what is no name."""
    found = chains(chains={"team": TEAM})
    assert found.members("team", CATALOG) == ([key_of("llama3.3:70b")], [key_of("llama3.2:3b")])
    assert found.members("not a name", CATALOG) == ([], [])


class Listed(dict):
    """A catalog that counts how often it was gone through."""

    rounds = 0

    def items(self):
        self.rounds += 1
        return super().items()

    values = __iter__ = None  # not in any other way


def test_all_models_are_looked_at_once_however_many_are_asked_for():
    """Thousands may be installed, and each request of a model that has no chain yet would go through them."""
    catalog, found = Listed(catalog_of(BIG, SMALL, facts_of("gemma3:4b", 3))), chains()
    for name in ("llama3.3:70b", "llama3.2:3b", "gemma3:4b"):
        assert found.find(name, catalog) is not None
        assert found.members(name, catalog)[0] == [key_of(name)]
    assert catalog.rounds == 1
    assert found.members("llama3.3:70b", catalog)[1] == [key_of("llama3.2:3b")]
