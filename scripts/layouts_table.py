"""Write the layouts of folders that are read into docs/detection.md.

python scripts/layouts_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ccnn_zoo._files import replacing
from ccnn_zoo.detection._layouts import layout_table

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "detection.md"
BEGIN, END = "<!-- layouts:begin -->", "<!-- layouts:end -->"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(layout_table())
    with replacing(DOCUMENT) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
