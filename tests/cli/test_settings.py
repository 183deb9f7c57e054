"""Where values come from, which one counts, what `--check` prints and what it must not."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from said import MODEL, Check

from orcinus.cli.effective import effective_toml
from orcinus.cli.options import OPTIONS, Given, Option, ServerFlags
from orcinus.cli.settings import configure
from orcinus.engine.config import EngineConfig
from orcinus.server.run import ServeSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def origins(printed: str) -> dict[str, str]:
    """The place behind each key, set or not."""
    lines = (re.match(r"(?:# )?(\w+)(?: = |: | is not set).*  # (.*)$", line) for line in printed.splitlines())
    return {line[1]: line[2] for line in lines if line}


def test_defaults_are_those_of_the_records_that_they_fill(check: Check) -> None:
    printed = tomllib.loads(check().out)
    record = {field.name: field.default for field in fields(EngineConfig)} | {
        field.name: field.default for field in fields(ServeSettings)
    }
    record["api_server_count"] = record["front_ends"]
    names = printed.keys() - {"model", "port"}
    assert {name: printed[name] for name in names} == {name: record[name] for name in names}
    assert ServerFlags().port == record["port"]
    assert printed["model"] == str(MODEL)


def test_a_later_source_wins_key_by_key(check: Check) -> None:
    said = check(
        "--max-batch-size=3",
        toml="max_batch_size = 1\nthreads = 1\npolicy = 'fcfs'\n",
        environment={"ORCINUS_MAX_BATCH_SIZE": "2", "ORCINUS_THREADS": "2"},
    )
    assert said.code == 0
    values, places = tomllib.loads(said.out), origins(said.out)
    assert (values["max_batch_size"], places["max_batch_size"]) == (3, "--max-batch-size")
    assert (values["threads"], places["threads"]) == (2, "ORCINUS_THREADS")
    assert (values["policy"], places["policy"].endswith("orcinus.toml:3")) == ("fcfs", True)
    assert places["lookahead"] == "default"
    assert places.keys() == OPTIONS.keys()


def test_a_mistake_counts_also_where_a_later_source_replaces_it(check: Check) -> None:
    said = check("--max-batch-size=3", toml="max_batch_size = 'x'")
    assert said.code == 2
    assert "orcinus.toml:1: max_batch_size is 'x'" in said.err


def test_dashes_and_underscores_are_one_spelling(check: Check) -> None:
    assert tomllib.loads(check(toml="max-batch-size = 5").out)["max_batch_size"] == 5
    said = check(toml="max-batch-size = 5\nmax_batch_size = 6\n")
    assert said.code == 2
    assert re.search(r"orcinus.toml:2: max_batch_size is given a second time, after .*orcinus.toml:1$", said.err)


def test_the_environment_names_the_file_and_the_command_line_another(check: Check, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("threads = 2")
    named = check(environment={"ORCINUS_CONFIG": str(other)})
    assert origins(named.out)["threads"] == f"{other}:1"
    overruled = check(toml="threads = 1", environment={"ORCINUS_CONFIG": str(other)})
    assert origins(overruled.out)["threads"].endswith("orcinus.toml:1")


def test_several_names_are_a_list_or_divided_by_commas(check: Check) -> None:
    for said in (
        check(toml="served-model-name = ['a', 'b']"),
        check(environment={"ORCINUS_SERVED_MODEL_NAME": "a, b"}),
        check("--served-model-name", "a", "--served-model-name", "b"),
    ):
        assert tomllib.loads(said.out)["served_model_name"] == ["a", "b"]
    assert tomllib.loads(check(toml="served-model-name = 'a, b'").out)["served_model_name"] == ["a, b"]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("threads = 1\nthreads_ = 1\n", 2),
        ('policy = """\nthreadz = 1\n"""\nthreadz = 2\n', 4),
        ("served-model-name = [\n'threadz = 1',\n]\n\n'threadz' = 1", 5),
        ('threads = 1\n"threadz" = 1', 2),
        ("threads = 1\r\nthreadz = 1\r\n", 2),
        ("threads = 1\n[engine]\nport = 1\n", 2),
        ("threads = 1\nengine.port = 1\n", 2),
        ("threads = 1\n[[engine]]\n", 2),
        ("threads = 1\nport = = 3\n", 2),
        ("threads = 1\npolicy = 'x\n", 2),
        ("threads = 1\nthreads = 2\n", 2),
        ("threads = 1\nconfig = 'x'\n", 2),
        ("threads = 1\nmax-num-seqs = 4\n", 2),
    ],
)
def test_a_mistake_in_a_file_is_found_at_its_line(check: Check, toml: str, line: int) -> None:
    said = check(toml=toml)
    assert said.code == 2
    assert f"orcinus.toml:{line}: " in said.err


def test_names_known_from_elsewhere_are_translated(check: Check) -> None:
    assert "did you mean 'max_batch_size'?" in check(toml="max-num-seqs = 4").err
    assert "did you mean '--max-batch-tokens'?" in check("--max-num-batched-tokens=64").err
    assert "did you mean 'ORCINUS_KV_CACHE_GIB'?" in check(environment={"ORCINUS_GPU_MEMORY_UTILIZATION": "0.9"}).err


def test_other_peoples_variables_are_left_alone_and_empty_ones_are_unset(check: Check) -> None:
    assert (
        check(environment={"ORCINUS_PAGE_PICTURE": "x", "ORCINUS_SERVICE_HOST": "x", "ORCINUS_THREADS": ""}).code == 0
    )


def test_what_kubernetes_writes_for_a_service_of_our_name_is_explained(check: Check) -> None:
    said = check(environment={"ORCINUS_PORT": "tcp://10.0.0.7:8000", "ORCINUS_PORT_8000_TCP_ADDR": "10.0.0.7"})
    assert said.code == 2
    assert "enableServiceLinks" in said.err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--config", "/nowhere/x.toml"), "/nowhere/x.toml can't be read: No such file"),
        (("--config", "/"), "can't be read: Is a directory"),
        (("--threads",), "--threads requires an argument"),
        (("--threads=1", "--threads=2"), "--threads specified multiple times"),
        (("one", "two"), "two"),
        (("--max-batch-tokens=32",), "max_batch_tokens (32) is below max_batch_size (64)"),
        (("--kernels=cpu", "--device=cuda"), "kernels is cpu, which can't run with device=cuda"),
        (("--policy=fcsf",), "policy 'fcsf' is unknown (did you mean 'fcfs'?)"),
        (("--host=0.0.0.0",), "--insecure-no-auth"),
        (("--host=no.such.host.invalid",), "host no.such.host.invalid is not an address"),
        (("--host=",), "host is empty"),
        (("--api-key=",), "api_key is empty"),
        (("--api-key=schlüssel",), "api_key holds"),
        (("--api-key-file=/nowhere/keys",), "api_key_file /nowhere/keys can't be read"),
        (("--served-model-name=",), "served_model_name is empty"),
        (("--model=",), "model is empty"),
        (("--kv-cache-gib=1000000", "--device=cpu"), "lower kv_cache_gib"),
        (("--max-model-len=2049",), "made for 2048 positions"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_started_is_refused_with_a_remedy(check: Check, flags: tuple[str, ...], complaint: str) -> None:
    said = check(*flags)
    assert said.code == 2
    assert complaint in said.err
    assert said.err.count("\n") == 1


def test_a_combination_names_both_places(check: Check) -> None:
    said = check(toml="max-batch-size = 48", environment={"ORCINUS_MAX_BATCH_TOKENS": "32"})
    assert said.err.startswith("orcinus: ORCINUS_MAX_BATCH_TOKENS: max_batch_tokens (32) is below max_batch_size (48)")
    assert re.search(r"\(max_batch_size is from .*orcinus.toml:1\)$", said.err)


def test_without_a_model_all_places_for_it_are_told(check: Check) -> None:
    said = check(environment={"ORCINUS_MODEL": ""})
    assert said.code == 2
    assert re.search("orcinus serve FOLDER.*ORCINUS_MODEL.*--config", said.err)


# ---- keys


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_keys_that_others_may_read_or_change_are_refused(check: Check, tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text("hush")
    file.chmod(mode)
    (tmp_path / "orcinus.toml").touch()
    for said in (check(f"--api-key-file={file}"), check_shared_toml(check, tmp_path / "orcinus.toml", mode)):
        assert said.code == 2
        assert f"(mode {mode:03o}); `chmod 600` it" in said.err
        assert "hush" not in said.err


def check_shared_toml(check: Check, file: Path, mode: int) -> object:
    file.chmod(mode)
    return check(toml="api-key = 'hush'")


def test_keys_of_all_kinds_count_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    file.write_text("\n first-of-file \n\nsecond-of-file\n")
    said = Given(["of-flag"], "--api-key", is_text=True), Given(str(file), "--api-key-file", is_text=True)
    configuration = configure(
        {"model": Given("m", "--model", is_text=True), "api_key": said[0], "api_key_file": said[1]}, None, {}
    )
    assert configuration.server.api_keys == ("of-flag", "first-of-file", "second-of-file")
    for shown in (repr(configuration), effective_toml(configuration)):
        assert "of-f" not in shown


def test_a_key_in_the_environment_is_whole_and_not_shown(check: Check) -> None:
    said = check(environment={"ORCINUS_API_KEY": "hush,hush", "ORCINUS_HOST": "0.0.0.0"})
    assert said.code == 0
    assert "hush" not in said.out
    assert "# api_key: 1, not shown" in said.out
    assert origins(said.out)["api_key"] == "ORCINUS_API_KEY"


@pytest.mark.parametrize(("content", "complaint"), [("\n \n", "holds no key"), ("x" * 70_000, "too long")])
def test_a_file_without_usable_keys_is_refused(check: Check, tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    file.write_text(content)
    said = check(f"--api-key-file={file}")
    assert said.code == 2
    assert complaint in said.err


# ---- printing


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
CHOICES: dict[str, st.SearchStrategy[object]] = {
    "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
    "max_model_len": st.integers(1, 2048),
    "max_batch_tokens": st.integers(4096, 2**20),
    "max_batch_size": st.integers(1, 4096),
    "kv_cache_gib": st.floats(1e-6, 2**20),
    "block_size": st.integers(1, 64).map(lambda blocks: 16 * blocks),
    "admission": st.sampled_from(["reserve", "on_demand"]),
    "lookahead": st.sampled_from([0, 1]),
    "allow_batch_variance": st.booleans(),
    "host": TEXT,
    "port": st.integers(0, 65535),
    "served_model_name": st.lists(TEXT, min_size=1, max_size=3),
    "api_server_count": st.integers(1, 256),
    "max_queue_seconds": st.floats(0, allow_infinity=False),
}


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({"model": TEXT}, optional=CHOICES))
@example(values={"model": "a\x7f\x85\u2028\\\"'#\r\n\t\x00😀", "kv_cache_gib": 1e-06, "max_queue_seconds": 1e16})
def test_what_is_printed_gives_the_same_configuration_again(tmp_path: Path, values: dict[str, object]) -> None:
    first = configure({name: Given(value, f"--{name}", is_text=False) for name, value in values.items()}, None, {})
    file = tmp_path / "printed.toml"
    file.write_text(effective_toml(first), newline="")
    again = configure({}, file, {})
    assert (again.engine, again.server) == (first.engine, first.server)
    assert {name: tomllib.loads(file.read_text())[name] for name in values} == values
    lines = file.read_text().split("\n")
    for name in values:
        number = int(again.chosen[name].origin.rpartition(":")[2])
        assert lines[number - 1].startswith(f"{name} = ")


def test_what_check_prints_checks_out_again(check: Check, tmp_path: Path) -> None:
    first = check(toml="max-batch-size = 8\nserved-model-name = ['a', '#']", environment={"ORCINUS_API_KEY": "hush"})
    printed = tmp_path / "printed.toml"
    printed.write_text(first.out)
    unset = {"ORCINUS_MODEL": "", "ORCINUS_PORT": ""}
    again = check("--config", str(printed), environment=unset | {"ORCINUS_API_KEY": "hush"})
    assert again.code == 0
    assert tomllib.loads(again.out) == tomllib.loads(first.out)
    assert origins(again.out)["max_batch_size"].startswith(f"{printed}:")


# ---- the document


def test_the_document_has_the_row_of_every_key_as_the_types_have_it() -> None:
    described = {**meanings(EngineConfig), **meanings(ServerFlags)}
    rows = [
        f"| `{option.name}` | {option.in_words} | {in_words(option)} | {described[option.name]} |"
        for option in OPTIONS.values()
    ]
    # Where this fails, the rows to put into the document are those with a minus.
    assert [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")] == rows


def in_words(option: Option) -> str:
    """The default."""
    if option.default is None:
        return "" if option.name == "model" else "None"
    if option.default == ():
        return "none"
    return str(option.default).lower() if isinstance(option.default, bool) else str(option.default)


def meanings(record: type) -> dict[str, str]:
    lines = inspect.cleandoc(record.__doc__ or "").partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", lines, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def test_the_mistakes_in_the_document_are_answered_as_it_says(check: Check) -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("orcinus: ")]
    padding = "\n" * 6
    answers = [
        check(toml=f"{padding}max-batch-sise = 32"),
        check(toml=f"{padding}max_batch_size = '32'"),
        check(environment={"ORCINUS_PORT": "70000"}),
        check(environment={"ORCINUS_PROT": "1"}),
        check("--max-batch-tokens", "32", toml=f"{padding}max_batch_size = 64"),
    ]
    assert lines == [re.sub(r"\S*/orcinus.toml", "orcinus.toml", said.err).rstrip() for said in answers]


def test_the_example_in_the_document_is_right(check: Check, tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("hush")
    said = check(toml=example[1].replace("/etc/orcinus/keys", str(keys)))
    assert said.code == 0, said.err
    assert tomllib.loads(said.out)["kv_cache_gib"] == 2.5
