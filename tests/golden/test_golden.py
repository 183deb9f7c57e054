"""Decisions over time, byte for byte: a refactor leaves every golden journal unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenes import HERE, SCENES, recording_of

from orcinus.core.recording import replay

RECORDINGS = sorted(HERE.glob("*.recording.jsonl"))


def test_every_scene_has_its_golden_files() -> None:
    assert {path.name.removesuffix(".recording.jsonl") for path in RECORDINGS} == {scene.__name__ for scene in SCENES}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.split(".")[0])
def test_the_recorded_inputs_lead_to_the_golden_decisions(path: Path) -> None:
    core, difference = replay(path.read_bytes().splitlines())
    assert difference is None
    golden = path.with_name(path.name.replace("recording", "journal")).read_bytes()
    assert core.journal.encode() + b"\n" == golden


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_scene_played_again_gives_the_golden_recording(scene) -> None:
    golden = (HERE / f"{scene.__name__}.recording.jsonl").read_bytes()
    assert b"\n".join(recording_of(scene)) + b"\n" == golden
