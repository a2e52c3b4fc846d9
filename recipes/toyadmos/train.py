"""ToyADMOS: toy cars, conveyors and trains, damaged on purpose, from normal sounds alone.

    python recipes/toyadmos/train.py --data DIR --run runs/toyadmos

A detector is fitted to the normals of each case (a toy of its own); its damaged sounds and as many
normal ones are judged. The detectors stand in RUN/ToyCar/case1 and so on:
`sance-audio score RUN/ToyCar/case1 PATH`.
"""

from dataclasses import dataclass
from pathlib import Path

from sance_audio.datasets import toyadmos
from sance_audio.monitoring import CalibratedOptions, conclude_by_section, describe, sections
from sance_audio.recipe import launch
from sance_audio.screening import refuse_several
from sance_audio.workflow import connect, start


@dataclass(frozen=True)
class ToyOptions(CalibratedOptions):
    """Options of the recipe of ToyADMOS."""

    run: Path = Path("runs/toyadmos")
    """Run folder. The same command again goes on, case by case."""
    channel: int = 1
    """The microphone, 1 to 4."""


PRESETS = {
    "smoke": ToyOptions(preset="smoke", fewest=4, show=1, calibration=0.0),
    "cpu": ToyOptions(preset="cpu"),
    "gpu": ToyOptions(preset="gpu"),
}


def main(options: ToyOptions) -> None:
    refuse_several()
    device = connect(options)
    machines = options.machines or None
    corpus = toyadmos.listing(options.data, machines=machines, channel=options.channel)
    start(options, "toyadmos", device)
    found = sections(corpus, options.fewest)
    describe(corpus, found.notes)
    conclude_by_section("toyadmos", options, corpus, found)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
