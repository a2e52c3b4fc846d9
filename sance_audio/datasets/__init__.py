"""Corpora: one module each, all with the same function.

    prepare(root, ...) -> Corpus

and, for sounds of machines in order and odd (`mimii`, `toyadmos`, `dcase`),

    listing(root, ...) -> Listing

A `Corpus` lists clips with a label, a split and a source; it holds no audio. `cache` turns clips
into log-mels on disk.
"""

from sance_audio.datasets.corpus import Clip, Corpus, FileSource, Source

__all__ = ["Clip", "Corpus", "FileSource", "Source"]
