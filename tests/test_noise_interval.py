"""The experiment on update intervals: its arithmetic, its jobs, and its smoke preset."""

from conftest import ROOT

SCRIPT = ROOT / "recipes" / "noise_interval" / "train.py"
