"""The idle share of each stage, by hand."""

from __future__ import annotations

import pytest

from orcinus.executor.idle import Idle


def test_only_time_with_plans_counts() -> None:
    idle = Idle()
    assert idle.shares(5.0) == ()
    idle.submitted(10.0)
    idle.submitted(11.0)
    idle.collected((1.0, 2.0), 13.0)
    idle.collected((2.0, 1.5), 15.0)
    # Nothing to do from 15 to 100.
    assert idle.shares(100.0) == pytest.approx((1 - 3.0 / 5, 1 - 3.5 / 5))
    idle.submitted(100.0)
    assert idle.shares(105.0) == pytest.approx((0.7, 0.65))
    idle.collected((5.0, 0.0), 105.0)
    assert idle.shares(105.0) == pytest.approx((0.2, 0.65))
