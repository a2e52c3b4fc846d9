"""Experiments: many runs side by side, each in a process of its own, and what they say together.

A *job* is a name and settings. Its folder, `FOLDER/<name>/`, holds `job.json` (the settings),
`log.txt` (what its process printed), whatever it resumes from, and `result.json` when it is done.
The same call again takes finished jobs as they are and goes on with the others.
"""

from sance_audio.experiments.comparison import (
    Interval,
    clear,
    interval,
    markdown,
    paired,
    passage,
    shown,
    slope,
)
from sance_audio.experiments.costs import Watch, added_by_noise, peak_mib
from sance_audio.experiments.figure import figure
from sance_audio.experiments.jobs import Job, finish, read_job, run_jobs
from sance_audio.experiments.plan import Diary
from sance_audio.experiments.runs import ALONG, distances, perform, real_clips
from sance_audio.experiments.tables import (
    MEASURES,
    Measure,
    differences,
    summarised,
    tables,
    write_csv,
)
from sance_audio.experiments.verdict import (
    compared,
    curve,
    reaching,
    trend,
    trends,
    verdict,
)

__all__ = [
    "Job",
    "run_jobs",
    "read_job",
    "finish",
    "Diary",
    "Watch",
    "added_by_noise",
    "peak_mib",
    "Interval",
    "interval",
    "paired",
    "shown",
    "clear",
    "slope",
    "passage",
    "markdown",
    "Measure",
    "MEASURES",
    "differences",
    "summarised",
    "tables",
    "write_csv",
    "trend",
    "trends",
    "reaching",
    "curve",
    "verdict",
    "compared",
    "figure",
    "perform",
    "ALONG",
    "distances",
    "real_clips",
]
