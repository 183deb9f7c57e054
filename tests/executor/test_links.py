"""Workers on hosts between which the network is cut, or one of which stands still: none is waited for for good, and
another group goes on with the same bits. Real processes in network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from namespaces import NoNamespaces, hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = Path(__file__).with_name("link_driver.py")
# No call waits longer than ten seconds for somebody; the rest is for a busy machine.
GIVEN_SECONDS = 500


def test_a_group_whose_link_is_cut_ends_as_one_and_the_next_goes_on_with_the_same_bits(random_llama: Path) -> None:
    try:
        # Not pytest's: paths of sockets have to be short.
        with hosts(3) as (own, *others), tempfile.TemporaryDirectory() as folder:
            named = ",".join(f"{host.name}={host.address}" for host in others)
            done = subprocess.run(
                own.command(sys.executable, str(DRIVER), own.address, named, str(random_llama)),
                env={**os.environ, "ORCINUS_TEST_HOST": own.name, "OMP_NUM_THREADS": "1", "TMPDIR": folder},
                capture_output=True,
                text=True,
                timeout=GIVEN_SECONDS,
                check=False,
            )
    except NoNamespaces as missing:
        pytest.skip(str(missing))
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["what"], each["layout"]) for each in found] == [
        ("stages", [1, 2]),
        ("driver", [1, 2]),
        ("stop", [1, 2]),
        ("stages", [2, 1]),
    ]
    for each in found:
        print(f"{each['what']} {each['layout']}: {each['seconds']:.1f} s: {each['words']}")
        assert each["is_right"], "the same tokens, each once"
        assert all(40 <= count < 400 for count in each["had"].values()), "it was amid the answers"
        assert not each["left"], "nobody is left"
        assert not each["memory_left"]
        assert each["by_others"], "no request is to blame"
        assert each["refused_by_others"], each["refused"]
    stages, driver, stop, ranks = found
    assert "timed out" in stages["words"]
    assert "timed out" in ranks["words"] or "doesn't answer" in ranks["words"]
    assert "timed out" in driver["words"]
    assert "worker 1 (stage 1, rank 0) is cut off" in driver["words"]
    assert "worker 1 (stage 1, rank 0) was stopped" in stop["words"]
