"""`orcinus chat` in a real terminal and in a pipe, against real servers that are killed and cut off in mid-answer."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

for folder in ("server", "text"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from cutting_proxy import cutting_proxy
from real_server import RealServer, serve_tiny
from served import Served, serve_fake
from terminal import CTRL_C, CTRL_D, LIMIT_SECONDS, terminal
from tokenizer_files import write_tokenizer

from orcinus.chat.display import one_line, visible

STORY = "Tell me a story."
PROMPT = r"\n?> "
Message = dict[str, str]


@pytest.fixture(scope="module")
def tiny() -> Iterator[RealServer]:
    with serve_tiny() as server:
        yield server


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("chat")), TEST_KEYS="right") as server:
        yield server


def told(url: str, *questions: str) -> tuple[list[str], list[int]]:
    """A conversation by another client: its answers and the size of each prompt. The oracle."""
    messages: list[Message] = []
    sizes = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        body = {"model": "orcinus-tiny", "messages": messages, "temperature": 0}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        sizes.append(reply["usage"]["prompt_tokens"])
    return [message["content"] for message in messages[1::2]], sizes


def pipe(question: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `orcinus chat` with a question on its standard input."""
    command = [sys.executable, "-m", "orcinus.cli", "chat", *arguments]
    return subprocess.run(
        command,
        input=question,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
        timeout=LIMIT_SECONDS,
    )


def is_idle(url: str) -> bool:
    """Whether neither the front end nor the engine has anything to do."""
    load = httpx.get(f"{url}/load").json()
    return (load["server_load"], load["num_running"], load["num_waiting"]) == (0, 0, 0)


def wait_until_idle(url: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_idle(url):
        assert time.monotonic() < deadline, "the server goes on working"
        time.sleep(0.01)


def test_every_control_character_but_tabs_and_ends_of_lines_is_made_visible() -> None:
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) == "Cc" and character not in "\n\t":
            shown = visible(character)
            assert len(shown) == 1
            assert unicodedata.category(shown) != "Cc"
        else:
            assert visible(character) == character
    assert visible("\x1b[31m") == "␛[31m"
    assert one_line("a\r\n b\x07\n") == "a␍ b␇"


@pytest.mark.slow
class TestInATerminal:
    def test_answers_come_with_what_they_took_and_the_conversation_is_remembered(self, tiny: RealServer) -> None:
        questions = ("What is 12 + 7?", "What is 40 + 25?")
        answers, sizes = told(tiny.url, *questions)
        with terminal("chat", "--url", tiny.url, "--temperature", "0") as screen:
            screen.wait_for(f"orcinus-tiny at {tiny.url}")
            for question, answer, size in zip(questions, answers, sizes, strict=True):
                screen.wait_for(PROMPT)
                screen.type(question + "\n")
                took = screen.wait_for(rf"{re.escape(question)}\n{re.escape(answer)}\n(.*)\n")[1]
                assert re.fullmatch(rf"TTFT \d+ ms · \d+ tokens · [\d.]+ tokens/s · prompt {size}", took)
            screen.wait_for(PROMPT)
            screen.type("/reset\n")
            screen.wait_for(PROMPT)
            screen.type(questions[1] + "\n")
            screen.wait_for(f"prompt {told(tiny.url, questions[1])[1][0]}\n")
            screen.type("/exit\n")
            assert screen.finish() == 0

    def test_ctrl_c_stops_the_answer_and_the_work_and_the_conversation_goes_on(self, tiny: RealServer) -> None:
        (story,), _ = told(tiny.url, STORY)
        with terminal("chat", "--url", tiny.url, "--temperature", "0") as screen:
            screen.wait_for(PROMPT)
            screen.type(STORY + "\n")
            screen.wait_for("Once upon")
            assert not is_idle(tiny.url)
            screen.type(CTRL_C)
            rest = screen.wait_for(r"^([^\n]*)\^C[^\n]*\nstopped · TTFT \d+ ms\n")[1]
            wait_until_idle(tiny.url)
            came = "Once upon" + rest
            assert came != story
            assert story.startswith(came)
            screen.wait_for(PROMPT)
            # The part that came is remembered: the next prompt is longer than this question alone.
            screen.type("What is 12 + 7?\n")
            size = int(screen.wait_for(r"prompt (\d+)\n")[1])
            assert size > told(tiny.url, "What is 12 + 7?")[1][0]
            screen.interrupt_prompt(PROMPT)
            screen.wait_for("Ctrl-C again leaves")
            screen.interrupt_prompt(PROMPT)
            assert screen.finish() == 0

    def test_a_second_ctrl_c_after_a_stopped_answer_leaves(self, tiny: RealServer) -> None:
        with terminal("chat", "--url", tiny.url) as screen:
            screen.wait_for(PROMPT)
            screen.type(STORY + "\n")
            screen.wait_for("Once upon")
            screen.type(CTRL_C)
            screen.wait_for("stopped")
            screen.interrupt_prompt(PROMPT)
            assert screen.finish() == 0

    def test_an_engine_killed_in_mid_answer_changes_nothing(self, tiny: RealServer) -> None:
        (story,), (size,) = told(tiny.url, STORY)
        with terminal("chat", "--url", tiny.url, "--temperature", "0") as screen:
            screen.wait_for(PROMPT)
            screen.type(STORY + "\n")
            screen.wait_for("Once upon")
            os.kill(tiny.engine_pid(), signal.SIGKILL)
            assert story not in screen.screen
            screen.wait_for(rf"^{re.escape(story.removeprefix('Once upon'))}\nTTFT .* prompt {size}\n")
            screen.wait_for(PROMPT)
            screen.type(CTRL_D)
            assert screen.finish() == 0

    def test_a_broken_connection_is_gone_on_with(self, tiny: RealServer) -> None:
        (story,), _ = told(tiny.url, STORY)
        with (
            cutting_proxy(tiny.url, 3000, 5000) as proxy,
            terminal("chat", "--url", proxy.url, "--temperature", "0") as screen,
        ):
            screen.wait_for(PROMPT)
            screen.type(STORY + "\n")
            screen.wait_for(rf"\n{re.escape(story)}\nTTFT ")
            screen.type("/exit\n")
            assert screen.finish() == 0

    def test_a_server_that_is_gone_is_said_so_and_ctrl_c_gives_up(self, fake: Served) -> None:
        with (
            cutting_proxy(fake.url) as proxy,
            terminal("chat", "--url", proxy.url, "--max-tokens", "3000", ORCINUS_API_KEY="right") as screen,
        ):
            screen.wait_for(PROMPT)
            screen.type("on and on\n")
            screen.wait_for("user\n")
            proxy.leave()
            screen.wait_for(r"\n\(the connection broke; .*\)\n")
            screen.type(CTRL_C)
            screen.wait_for("stopped")
            screen.wait_for(PROMPT)
            screen.type("still there?\n")
            screen.wait_for(rf"\norcinus: no server answers at {proxy.url} .*make serve.*\n")
            screen.wait_for(PROMPT)
            screen.type(CTRL_D)
            assert screen.finish() == 0

    def test_commands_and_a_refusal_are_lines_and_the_conversation_goes_on(self, tiny: RealServer) -> None:
        with terminal("chat", "--url", tiny.url, "--temperature", "9") as screen:
            screen.wait_for(PROMPT)
            screen.type("/help\n")
            screen.wait_for(r"/reset .*\n")
            screen.type("/rest\n")
            screen.wait_for("/rest is no command")
            screen.type("\n")
            screen.type("Hello!\n")
            screen.wait_for(r"\norcinus: .*temperature.*\(HTTP 400\)\n")
            screen.wait_for(PROMPT)
            screen.type("/exit\n")
            assert screen.finish() == 0

    def test_what_a_model_writes_does_not_command_the_terminal(self, fake: Served) -> None:
        """The fake engine repeats its prompt."""
        attack = "red \x1b[31m title \x1b]0;owned\x07 end"
        with terminal("chat", "--url", fake.url, "--max-tokens", "120", ORCINUS_API_KEY="right") as screen:
            screen.wait_for(PROMPT)
            # Ctrl-V takes the next key as a character.
            screen.type(re.sub(r"([\x00-\x1f])", "\x16\\1", attack) + "\n")
            screen.wait_for(rf"user\n{re.escape(visible(attack))}\n")
            screen.wait_for("TTFT")
            screen.type("/exit\n")
            assert screen.finish() == 0
        assert b"\x1b]0" not in screen.raw
        assert b"\x1b[31m title" not in screen.raw


@pytest.mark.slow
class TestInAPipe:
    def test_the_answer_is_all_that_is_printed(self, tiny: RealServer) -> None:
        (answer,), _ = told(tiny.url, "What is 12 + 7?")
        done = pipe("What is 12 + 7?\n", "--url", tiny.url, "--temperature", "0")
        assert (done.returncode, done.stdout, done.stderr) == (0, answer + "\n", "")

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_connections_cut_anywhere_lose_nothing_and_double_nothing(self, tiny: RealServer, seed: int) -> None:
        options = ("--temperature", "0.8", "--seed", str(seed), "--max-tokens", "80")
        whole = pipe(STORY, "--url", tiny.url, *options)
        cuts = [700 + 131 * seed, 811, 1999 + seed, 1024, 2500]
        with cutting_proxy(tiny.url, *cuts) as proxy:
            cut = pipe(STORY, "--url", f"{proxy.url}/v1", *options)
        assert (cut.returncode, cut.stdout, cut.stderr) == (0, whole.stdout, "")
        first, *others = [request for request in proxy.requests if "/v1/models" not in request]
        assert first.startswith("POST /v1/chat/completions")
        assert len(others) == len(cuts)
        for request in others:
            stream = re.match(r"GET /v1/streams/(\S+) HTTP", request)
            assert stream
            assert f"Last-Event-ID: {stream[1]}:0:" in request

    def test_a_terminal_gets_pictures_and_a_file_gets_what_was_said(self, fake: Served) -> None:
        attack = "red \x1b[31m title \x1b]0;owned\x07 clear \x9b2J back \x08 end"
        options = ("--url", fake.url, "--max-tokens", "100")
        plain = pipe(attack, *options, ORCINUS_API_KEY="right")
        assert attack in plain.stdout
        device, programs_side = os.openpty()
        command = [sys.executable, "-m", "orcinus.cli", "chat", *options]
        environment = os.environ | {"ORCINUS_API_KEY": "right"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=programs_side, env=environment) as process:
            os.close(programs_side)
            process.communicate(attack.encode(), timeout=LIMIT_SECONDS)
        written = b""
        try:
            while received := os.read(device, 65536):
                written += received
        except OSError:
            # How a terminal says that its other side is closed.
            os.close(device)
        shown = written.decode().replace("\r\n", "\n")
        assert visible(attack) in shown
        assert not set("\x1b\x07\x9b\x08") & set(shown)

    def test_a_reader_that_has_read_enough_is_no_fault(self, tiny: RealServer) -> None:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "orcinus.cli", "chat", "--url", tiny.url]
        os.close(reader)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE) as process:
            os.close(writer)
            _, said = process.communicate(STORY.encode(), timeout=LIMIT_SECONDS)
        assert (process.returncode, said) == (141, b"")
        wait_until_idle(tiny.url)

    def test_nobody_there_is_one_line_with_a_remedy(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        done = pipe("Hello!", "--url", f"http://127.0.0.1:{port}")
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert str(port) in line
        assert "make serve" in line

    @pytest.mark.parametrize(
        ("arguments", "question", "said"),
        [
            (("--model", "orcinus-tin"), "Hello!", "did you mean 'orcinus-tiny'?"),
            (("--temperature", "9"), "Hello!", "temperature"),
            ((), " \n", "standard input is empty"),
        ],
        ids=["model", "refused", "empty"],
    )
    def test_a_fault_is_one_line_and_exit_code_2(
        self, tiny: RealServer, arguments: tuple[str, ...], question: str, said: str
    ) -> None:
        done = pipe(question, "--url", tiny.url, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert said in line

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://127.0.0.1:99999", "http://"])
    def test_what_is_no_address_is_said_so(self, url: str) -> None:
        done = pipe("Hello!", "--url", url)
        assert done.returncode == 2
        assert "--url" in done.stderr

    def test_the_key_comes_from_the_environment_or_the_command_line(self, fake: Served) -> None:
        options = ("--url", fake.url, "--max-tokens", "4")
        refused = pipe("Hello!", *options, ORCINUS_API_KEY="wrong")
        assert refused.returncode == 2
        assert "ORCINUS_API_KEY" in refused.stderr
        assert pipe("Hello!", *options, ORCINUS_API_KEY="right").returncode == 0
        assert pipe("Hello!", *options, "--api-key", "right", ORCINUS_API_KEY="wrong").returncode == 0
