"""The command line: one-line errors, results for people and machines, a fast `--help`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recollect.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model that reads bytes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<s>": 0, **{letter: n for n, letter in enumerate(sorted(letters), 1)}}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recollect():
    def call(*arguments: str, **options):
        return CliRunner().invoke(main, list(arguments), **options)

    return call


@pytest.fixture
def small(checkpoint, tmp_path):
    """Arguments of an evaluation of a few seconds."""
    return [
        "eval", "--model", checkpoint, "--recipes", "knorm", "--keep", "0.5", "--tasks",
        "perplexity", "--length", "96", "--seeds", "1", "--cases", "1", "--decode-steps", "2",
        "--rounds", "1", "--out", str(tmp_path / "run"),
    ]  # fmt: skip


def test_help_does_not_import_torch():
    code = (
        "import sys, recollect.cli\n"
        "try: recollect.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize("command", ["demo", "eval", "report", "generate", "recipes", "zoo"])
def test_every_command_has_help_with_an_example(recollect, command):
    done = recollect(command, "--help")
    assert done.exit_code == 0
    assert f"recollect {command}" in done.output
    assert "Example:" in done.output


def test_eval_measures_and_reports(recollect, small, tmp_path):
    done = recollect(*small)
    assert done.exit_code == 0, done.output
    assert "knorm" in done.stdout
    assert "report.html" in done.stdout
    for name in ("run.json", "results.jsonl", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_eval_prints_json_for_machines(recollect, small):
    done = recollect(*small, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert {row["recipe"] for row in rows} == {"host", "full", "knorm"}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)


def test_a_sharded_bfloat16_checkpoint_with_a_chat_template_goes_through(
    recollect, small, checkpoint, tmp_path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "chatty", max_shard_size="20KB")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = "<u>{{ messages[0]['content'] }}</u><a>"
    tokenizer.save_pretrained(tmp_path / "chatty")
    assert len(list((tmp_path / "chatty").glob("*.safetensors"))) > 1
    done = recollect(
        *small, "--model", str(tmp_path / "chatty"), "--chat", "--tasks", "needle,perplexity",
        "--length", "400", "--recipes", "knorm,kivi",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["dtype"] == "bfloat16"


def test_report_writes_the_picture(recollect, small, tmp_path):
    recollect(*small)
    done = recollect("report", str(tmp_path / "run"), "--svg", str(tmp_path / "frontier.svg"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "frontier.svg").read_text().startswith("<svg")


def test_generate_writes_text_to_stdout_and_the_report_to_stderr(recollect, checkpoint):
    done = recollect(
        "generate", "-m", checkpoint, "-r", "knorm", "--keep", "0.5", "-p", "x = 1\n" * 20,
        "-n", "5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "bytes" in done.stderr
    assert "bytes" not in done.stdout


def test_generate_reads_stdin_and_prints_json(recollect, checkpoint):
    done = recollect(
        "generate", "-m", checkpoint, "--file", "-", "-n", "4", "--json", input="hello"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"]["dense_nbytes"] > 0


def test_recipes_are_listed_and_told(recollect):
    listed = json.loads(recollect("recipes", "--json").stdout)
    assert {"snapkv", "kivi"} <= {recipe["name"] for recipe in listed}
    assert all(recipe["title"] and recipe["summary"] for recipe in listed)
    assert "2404.14469" in recollect("recipes", "snapkv").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipes", "snapvk"], "did you mean 'snapkv'"),
        (["--recipes", "kivi(bats=2)"], "no argument 'bats'"),
        (["--recipes", ","], "no recipe given"),
        (["--keep", "0"], "keep must be"),
        (["--keep", "-0.5"], "keep must be"),
        (["--keep", "1.5"], "keep must be"),
        (["--keep", "half"], "neither a fraction nor"),
        (["--tasks", "nedle"], "did you mean 'needle'"),
        (["--modes", "blind"], "unknown mode"),
        (["--length", "long"], "whole numbers"),
        (["--length", "5000"], "the context of"),
        (["--chat"], "no chat template"),
        (["--model", "/no/such/model"], "no checkpoint at"),
        (["--out", "/dev/null/run"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(recollect, small, arguments, words):
    done = recollect(*small, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("recollect: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.output


def test_debug_shows_the_traceback(recollect, small):
    done = recollect(*small, "--recipes", "snapvk", "--debug")
    assert type(done.exception).__name__ == "RecipeError"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--prompt TEXT or --file PATH"),
        (["-p", " "], "the prompt is empty"),
        (["--file", "/no/such/file"], "cannot read /no/such/file"),
        (["-p", "x" * 1100], "the context of"),
        (["-p", "x", "--keep", "0.5,0.25"], "one keep"),
    ],
)
def test_bad_prompts_are_one_line(recollect, checkpoint, arguments, words):
    done = recollect("generate", "-m", checkpoint, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_another_configuration_in_the_same_folder_is_refused(recollect, small):
    assert recollect(*small).exit_code == 0
    done = recollect(*small, "--seeds", "2")
    assert done.exit_code == 2
    assert "seeds=1, not 2" in done.stderr


def test_zoo_check_measures_any_checkpoint(recollect, checkpoint):
    done = recollect("zoo", "check", checkpoint, "--length", "600", "--cases", "1", "--json")
    assert done.exit_code == 0, done.output  # no bar at this length
    assert json.loads(done.stdout)["needle"]["600"]["cases"] == 1


def test_zoo_train_refuses_an_unknown_model(recollect, tmp_path):
    done = recollect("zoo", "train", "tiny-lama", "--out", str(tmp_path / "x"))
    assert done.exit_code == 2
    assert "unknown zoo model 'tiny-lama'" in done.stderr


def test_a_missing_extra_is_a_hint(recollect, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = recollect(*small)
    assert done.exit_code == 2
    assert "pip install 'recollect[eval]'" in done.stderr
