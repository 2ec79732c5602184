"""Options that several commands have."""

from __future__ import annotations

import typer

TOKEN = typer.Option("--token", help="Send the token of `hf auth login` or HF_TOKEN, for a private repository.")
"""A flag: a token itself would stand in the shell's history and in the list of processes."""
