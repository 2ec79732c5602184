"""Write the formats of pictures and the layouts of folders that are read into the documents.

python scripts/layouts_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ccnn_zoo._files import replacing
from ccnn_zoo.detection import layout_table
from ccnn_zoo.pictures import format_table

DOCUMENTS = [
    Path(__file__).resolve().parents[1] / "docs" / f"{name}.md" for name in ("classify", "training", "detection")
]
BEGIN, END = "<!-- layouts:begin -->", "<!-- layouts:end -->"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = "\n".join([*format_table(), "", *layout_table()])
    for document in DOCUMENTS:
        before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        with replacing(document) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
