"""MIMII: fans, pumps, slide rails and valves in the noise of a factory, from normal sounds alone.

    python recipes/mimii/train.py --data DIR --run runs/mimii

A detector is fitted to the normals of each machine, and of each signal-to-noise ratio; its
abnormal clips and as many normal ones are judged. The detectors stand in RUN/6_dB_fan/00 and so
on: `sance-audio score RUN/6_dB_fan/00 PATH`.
"""

from dataclasses import dataclass
from pathlib import Path

from sance_audio.datasets import mimii
from sance_audio.datasets.sections import SectionClip
from sance_audio.monitoring import CalibratedOptions, conclude_by_section, describe, sections
from sance_audio.recipe import launch
from sance_audio.screening import refuse_several
from sance_audio.workflow import connect, start


@dataclass(frozen=True)
class MimiiOptions(CalibratedOptions):
    """Options of the recipe of MIMII."""

    run: Path = Path("runs/mimii")
    """Run folder. The same command again goes on, machine by machine."""
    snr: int | None = None
    """Signal-to-noise ratio in dB: -6, 0 or 6; all that are there when left out."""


PRESETS = {
    "smoke": MimiiOptions(preset="smoke", fewest=4, show=1, calibration=0.0),
    "cpu": MimiiOptions(preset="cpu"),
    "gpu": MimiiOptions(preset="gpu"),
}


def main(options: MimiiOptions) -> None:
    refuse_several()
    device = connect(options)
    corpus = mimii.listing(options.data, machines=options.machines or None, snr=options.snr)
    start(options, "mimii", device)
    found = sections(corpus, options.fewest, part=part)
    describe(corpus, found.notes)
    conclude_by_section("mimii", options, corpus, found)


def part(clip: SectionClip) -> str:
    """The machine, with its ratio where the corpus says it."""
    return f"{clip.attributes}_{clip.machine}" if clip.attributes else clip.machine


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
