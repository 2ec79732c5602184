"""Options that several commands have."""

from __future__ import annotations

import typer

MODEL_HELP = (
    "An .onnx file, a repository or training folder, local:FOLDER, a Hub id org/name[@revision], or a trained "
    "network of `ccnn list`, e.g. ccnn_resnet18_cifar.cifar10."
)
IMAGES_HELP = "Pictures, folders of pictures, or - for standard input."
TOKEN = typer.Option("--token", help="Send the token of `hf auth login` or HF_TOKEN, for a private repository.")
"""A flag: a token itself would stand in the shell's history and in the list of processes."""
