"""An Olla configuration becomes chains and a backend."""

from tests.config.foreign.carried import carried, chain_of

FILE = """
server: {host: localhost, port: 40114}
discovery:
  static:
    endpoints:
      - {url: "http://low:11434", name: low, type: ollama, priority: 50}
      - {url: "http://high:11434/", name: high, type: ollama}
      - {url: "http://c:8000", name: c, type: vllm, priority: 999}
model_aliases:
  gpt-oss-120b: ["gpt-oss:120b", gpt-oss-120b-MLX, gguf_gpt.gguf]
  plain: [llama3]
  one: "qwen3:8b"
  none: [x.gguf]
translators: {anthropic: {enabled: true}}
"""


def test_the_ollama_of_the_highest_priority_is_the_backend(tmp_path):
    """Other servers are named."""
    config, comments = carried(tmp_path, FILE)
    assert config.backends["local"].url == "http://high:11434"
    assert "http://low:11434: another server" in comments
    assert "c: a server of the type vllm" in comments


def test_an_alias_is_a_chain_of_its_ollama_names(tmp_path):
    """The names of other servers are left out, and named."""
    config, comments = carried(tmp_path, FILE)
    assert chain_of(config, "gpt-oss-120b") == [("gpt-oss:120b", None)]
    assert chain_of(config, "plain") == [("llama3", None)]
    assert chain_of(config, "one") == [("qwen3:8b", None)]
    assert "none" not in config.chains
    assert [
        name
        for name in ("gpt-oss-120b-MLX", "gguf_gpt.gguf", "x.gguf", "server", "translators")
        if name not in comments
    ] == []
