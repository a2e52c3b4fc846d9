import re

import pytest

from sance_audio import TrainConfig
from sance_audio.health import LATEST, RANGES, alarms, summary

HEALTHY = {
    "gap": 0.5,
    "accuracy": 0.55,
    "pool_ess": 0.9,
    "displacement": 1.0,
    "log_z": -3.0,
    "log_z_error": 0.5,
}


def rows(**changed):
    found = [{"step": i + 1, **HEALTHY, **changed} for i in range(LATEST)]
    for row in found[::4]:
        row["refresh"] = "interval" if row["step"] > 1 else "start"
    return found


def test_nothing_is_raised_in_health():
    assert alarms(rows(), TrainConfig(interval=4)) == {}


@pytest.mark.parametrize("name", RANGES)
def test_each_figure_that_leaves_its_range_is_raised_in_words(name):
    low, high, words = RANGES[name]
    beyond = high + 0.1 * (high - low)
    found = alarms(rows(**{name: beyond}), TrainConfig(interval=4))
    assert list(found) == [name]
    assert re.match(rf"{name} -?[\d.]+, beyond {high:g} ", found[name])
    assert words in found[name]
    assert alarms(rows(**{name: beyond})[1:], TrainConfig()) == {}, "not on fewer steps"
    below = alarms(rows(**{name: low - 1}), TrainConfig())
    assert name in below
    assert "below" in below[name]


def test_refreshes_that_come_early_are_raised():
    early = rows()
    for row in early[4::4]:
        row["refresh"] = "ESS/N 0.41"
    found = alarms(early, TrainConfig(interval=16))
    assert list(found) == ["refreshes"]
    assert "12 of the last 12 refreshes came early (last: ESS/N 0.41)" in found["refreshes"]
    assert alarms(early, TrainConfig(interval=1)) == {}


def test_fixed_noise_may_be_told_from_data():
    config = TrainConfig(noise="gaussian")
    assert alarms(rows(gap=40.0, accuracy=0.99, pool_ess=0.01), config) == {}


def test_a_summary_names_figures_ranges_causes_and_alarms():
    told = rows(gap=9.0)
    told[-1] |= {"alarm": "gap 9.00, beyond 5", "rollback": "step 50: back"}
    lines = summary(told)
    assert lines[0] == "50 steps; the noise was refreshed 13 times (the start, 12 by interval)."
    assert any("nats, over the last 50 steps: 9.00 (NOT HEALTHY: -5 to 5)" in x for x in lines)
    assert sum("(healthy: " in line for line in lines) == 3
    assert "Alarm at step 50: gap 9.00, beyond 5." in lines
    assert lines[-1] == "step 50: back"
    assert summary([]) == ["No training was recorded."]
