"""A llama-swap configuration becomes chains of one model."""

import pytest

from tests.config.foreign.carried import carried, chain_of


def one(cmd, rest=""):
    """A file with one model."""
    return f"models:\n  m:\n    cmd: |\n      {cmd}\n{rest}"


@pytest.mark.parametrize("option", ["-hf {}", "--hf-repo {}", "-hfr={}"])
def test_a_repository_of_hugging_face_is_pulled_by_its_name(option, tmp_path):
    """As `ollama pull hf.co/…`."""
    config, comments = carried(
        tmp_path, one(f"llama-server --port ${{PORT}} {option.format('org/Name-GGUF:Q4_K_M')} -c 0")
    )
    assert chain_of(config, "m") == [("hf.co/org/Name-GGUF:Q4_K_M", None)]
    assert "ollama pull hf.co/org/Name-GGUF:Q4_K_M" in comments


@pytest.mark.parametrize("option", ["-m '/a b/x.gguf'", '--model "/a b/x.gguf"', "--model='/a b/x.gguf'"])
def test_a_file_becomes_a_model_of_the_same_name(option, tmp_path):
    """With the line of its Modelfile."""
    config, comments = carried(tmp_path, one(f"llama-server {option}"))
    assert chain_of(config, "m") == [("m", None)]
    assert "FROM /a b/x.gguf" in comments


@pytest.mark.parametrize(
    ("options", "num_ctx"),
    [("-c 8192", 8192), ("--ctx-size=8192", 8192), ("-c 8192 -np 4", 2048), ("-c x", None), ("-c", None)],
)
def test_the_context_is_that_of_one_slot(options, num_ctx, tmp_path):
    """The server divides its own among them."""
    assert chain_of(carried(tmp_path, one(f"llama-server -m x.gguf {options}"))[0], "m") == [("m", num_ctx)]


def test_macros_comments_and_continued_lines_are_read(tmp_path):
    """A model's own macros count before the others; one may contain others."""
    text = """
macros: {base: "llama-server ${args}", args: "--ctx-size ${ctx}", ctx: 4096}
models:
  big:
    macros: {ctx: 16384}
    cmd: |
      # -c 1
      ${base} \\
      -m ${MODEL_ID}.gguf
"""
    config, comments = carried(tmp_path, text)
    assert chain_of(config, "big") == [("big", 16384)]
    assert "FROM big.gguf" in comments


def test_aliases_have_chains_of_the_same_model(tmp_path):
    """In both forms."""
    config, _ = carried(
        tmp_path, one("llama-server -m x.gguf -c 99", "    aliases: [gpt-4o-mini, {id: o1, name: O1}]\n")
    )
    assert chain_of(config, "gpt-4o-mini") == chain_of(config, "o1") == [("m", 99)]


def test_what_stays_loaded_and_what_is_loaded_at_start_is_carried_over(tmp_path):
    """Groups themselves are not needed."""
    rest = "groups: {g: {persistent: true, members: [m, gone]}, h: {members: [m]}}\n"
    rest += "hooks: {on_startup: {preload: [m]}}\nglobalTTL: 120\n"
    config, comments = carried(tmp_path, one("llama-server -m x.gguf", rest))
    assert (config.defaults.keep, config.defaults.preload, config.defaults.keep_alive_s) == (("m",), ("m",), 120)
    assert "groups: models stay loaded together" in comments


def test_a_lifetime_of_zero_keeps_models_loaded(tmp_path):
    """As llama-swap means it."""
    assert carried(tmp_path, one("llama-server -m x.gguf", "globalTTL: 0\n"))[0].defaults.keep_alive_s == float("inf")


@pytest.mark.parametrize("cmd", ["llama-server 'x", "${a}", "docker run -m 8g image", "vllm serve --model org/name"])
def test_a_command_without_a_file_names_no_file(cmd, tmp_path):
    """It cannot be split, multiplies, or means something else by the option."""
    macros = "macros: {a: '" + "${b}" * 99 + "', b: '" + "${c}" * 99 + "', c: '" + "${d}" * 99 + "', d: x}\n"
    good = "  good: {cmd: llama-server -m y.gguf}\n"
    config, comments = carried(tmp_path, macros + one(cmd, good))
    assert "good" in config.chains
    assert "m: its cmd" in comments
    assert "FROM 8g" not in comments
