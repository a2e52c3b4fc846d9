"""The listening page of a generative run: one folder that can be zipped and mailed.

`index.html` holds every picture, style and script; what it plays lies beside it in `clips/`,
`samples/`, `evaluation/` and `page/` (films of clips that emerge, nearest training clips).
"""

from sance_audio.report.bundle import bundle, files_of
from sance_audio.report.page import write_page

__all__ = ["bundle", "files_of", "write_page"]
