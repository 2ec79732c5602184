"""Write the formats of pictures and the layouts of folders that are read into the documents.

python scripts/layouts_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from documents import write_between

from ccnn_zoo.detection import layout_table
from ccnn_zoo.pictures import format_table

DOCUMENTS = [
    Path(__file__).resolve().parents[1] / "docs" / f"{name}.md" for name in ("classify", "training", "detection")
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for document in DOCUMENTS:
        write_between(document, "layouts", [*format_table(), "", *layout_table()])


if __name__ == "__main__":
    main()
