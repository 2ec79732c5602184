"""Text of others, as it may be shown: names of files and classes, messages of libraries.

A name may hold what commands a terminal, forges a line, or turns the order of what is read. All that is not seen is
escaped as Python writes it; what is seen, in any script, stays.
"""

from __future__ import annotations

# Joiners belong to words in Persian and the Indic scripts, and to emoji of several people.
_JOINERS = "\u200c\u200d"
_JOINED = {"Lo", "Mc", "Mn", "Sk", "So"}


def printable(text: object) -> str:
    r"""Return ``str(text)`` on one line, with nothing in it that cannot be seen.

    Escaped are control characters (``\n``, ``\x1b``), bidirectional controls and other invisible format characters
    (``\u202e``), and the bytes of a file name that is no UTF-8 (``\xff``). A backslash stays as it is, so that paths
    of Windows can be read; applied twice, nothing changes.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or _belongs(text, place) else _escaped(char) for place, char in enumerate(text)
    )


def _belongs(text: str, place: int) -> bool:
    """Whether a character that Python takes for invisible is a space, or joins what stands around it."""
    from unicodedata import category

    if text[place] not in _JOINERS:
        return category(text[place]) == "Zs"
    return {category(char) for char in text[max(place - 1, 0) : place + 2 : 2]} <= _JOINED and 0 < place < len(text) - 1


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python holds a byte that is no UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return repr(char)[1:-1]
