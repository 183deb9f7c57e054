"""Wrong configurations as a user meets them: a process that ends with code 2 and one line, before torch is loaded."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parents[2] / "models" / "orcinus-tiny"
# The program, and then what it has loaded: the engine's libraries are what takes long.
RUN_AND_LIST = """
import sys
from orcinus.cli import run
code = run(sys.argv[1:])
print(*sorted({"torch", "transformers", "aiohttp"} & sys.modules.keys()))
sys.exit(code)
"""


def orcinus(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`orcinus` as a process; what it loaded of the heavy libraries is the last line of its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ORCINUS_")}
    return subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST, *arguments],
        env={**clean, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "complaint"),
    [
        (["--bogus"], {}, "", "unknown option --bogus"),
        (["--prot=1"], {}, "", "unknown option --prot (did you mean '--port'?)"),
        (["--port=x"], {}, "", "--port: port is 'x'; it must be a whole number"),
        ([], {"ORCINUS_MAX_BATCH_SIZ": "1"}, "", "did you mean 'ORCINUS_MAX_BATCH_SIZE'?"),
        ([], {"ORCINUS_BLOCK_SIZE": "24"}, "", "ORCINUS_BLOCK_SIZE: block_size is 24"),
        ([], {}, "\nadmision = 'reserve'", "orcinus.toml:2: unknown key 'admision' (did you mean 'admission'?)"),
        ([], {}, "dtype = 'float16'", "orcinus.toml:1: dtype is 'float16'"),
        ([], {}, "api_server_count = 0", "orcinus.toml:1: api_server_count is 0"),
        (["--max-batch-tokens=8"], {}, "", "is below max_batch_size (64)"),
        (["--max-model-len=4096"], {}, "", "made for 2048 positions"),
        (["--host=0.0.0.0"], {}, "", "give an --api-key"),
        (["--model=org/model"], {}, "", "Orcinus never downloads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_configuration_ends_the_process_at_once(
    tmp_path: Path, flags: list[str], environment: dict[str, str], toml: str, complaint: str
) -> None:
    file = tmp_path / "orcinus.toml"
    file.write_text(toml)
    done = orcinus("serve", "--config", str(file), *flags, environment={"ORCINUS_MODEL": str(MODEL), **environment})
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == "\n"


def test_a_port_in_use_is_refused_before_the_engine_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for check in ((), ("--check",)):
            done = orcinus("serve", str(MODEL), f"--port={port}", *check)
            assert done.returncode == 2
            assert f"--port: port {port} on 127.0.0.1 can't be used" in done.stderr
            assert done.stdout == "\n"


def test_check_leaves_the_port_free_and_loads_nothing_heavy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    first = orcinus("serve", str(MODEL), f"--port={port}", "--check")
    assert first.returncode == 0
    assert first.stderr == ""
    assert first.stdout.endswith("\n\n")
    printed = tmp_path / "printed.toml"
    printed.write_text(first.stdout)
    again = orcinus("serve", "--config", str(printed), "--check")
    assert again.returncode == 0
    assert tomllib.loads(again.stdout) == tomllib.loads(first.stdout)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_server_follows_file_environment_and_flags(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys", tmp_path / "orcinus.toml"
    keys.touch(mode=0o600)
    keys.write_text("from-the-file\n")
    file.write_text(f"model = '{MODEL}'\nport = 0\nthreads = 1\nserved-model-name = ['a', 'b']\nmax-model-len = 100\n")
    command = [sys.executable, "-m", "orcinus.cli", "serve", "--config", str(file), f"--api-key-file={keys}"]
    environment = {**os.environ, "ORCINUS_MAX_MODEL_LEN": "50", "ORCINUS_API_KEY": "from-the-environment"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        try:
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://[\d.]+:(\d+)", line)))
            assert models(port, None)[0] == 401
            for key in ("from-the-file", "from-the-environment"):
                status, listed = models(port, key)
                assert status == 200
                assert [(model["id"], model["max_model_len"]) for model in listed] == [("a", 50), ("b", 50)]
        finally:
            server.terminate()
            server.stderr.read()


def models(port: int, key: str | None) -> tuple[int, list[dict[str, object]]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    response = connection.getresponse()
    listed = json.loads(response.read()).get("data", [])
    connection.close()
    return response.status, listed
