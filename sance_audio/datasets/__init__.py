"""Corpora: one module each, all with the same function.

    prepare(root, ...) -> Corpus

A `Corpus` lists clips with a label and a split; it holds no audio, or holds it all when it was
synthesised.
"""

from sance_audio.datasets.corpus import Clip, Corpus

__all__ = ["Clip", "Corpus"]
