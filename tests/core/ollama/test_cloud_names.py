"""Names of models that run in Ollama's cloud."""

import pytest

from router.core.ollama.names import is_cloud


@pytest.mark.parametrize("name", ["glm-4.6:cloud", "gpt-oss:120b-cloud", "team/x:8b-cloud"])
def test_a_tag_that_ends_in_cloud_runs_there(name):
    """Alone or behind a size."""
    assert is_cloud(name)


@pytest.mark.parametrize("name", ["gpt-oss:20b", "cloud", "cloud:8b", "x:cloudy", "", "a b", "x:cloud/y"])
def test_other_names_do_not_and_what_is_not_a_name_does_not(name):
    """No error for a text that no model can be called by."""
    assert not is_cloud(name)
