"""Options that several commands have."""

from __future__ import annotations

import typer

MODEL_HELP = (
    "An .onnx file, a repository or training folder, local:FOLDER, a Hub id org/name[@revision], or a trained "
    "network of `ccnn list`, e.g. ccnn_resnet18_cifar.cifar10."
)
IMAGES = typer.Argument(help="Pictures, folders of pictures, or - for standard input.", readable=False)
MODEL = typer.Option(help=MODEL_HELP)
DEVICE = typer.Option(help="auto, or a backend of `ccnn doctor`, strictly.")
PRECISION = typer.Option(help="Which file of a repository: fp32, fp16 or int8.")
WORKERS = typer.Option(help="Threads that decode pictures ahead; 0 decodes in between.")
REVISION = typer.Option(help="Branch, tag or commit of a Hub repository.")
JSON_LINES = typer.Option("--json", help="One JSON object per picture and line.")
TOKEN = typer.Option("--token", help="Send the token of `hf auth login` or HF_TOKEN, for a private repository.")
"""A flag: a token itself would stand in the shell's history and in the list of processes."""
