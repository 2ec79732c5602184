"""matplotlib's figures as PNG files, without a window or a display."""

from __future__ import annotations

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ccnn_zoo._files import replacing


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file, which is never half-written.

    Raises:
        RepositoryError: the file cannot be written.
    """
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
