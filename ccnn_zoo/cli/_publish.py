"""``ccnn publish`` and ``ccnn download``: from a trained network to where others find it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo.errors import ConfigurationError

from ._held_out import PICTURES
from ._options import TOKEN
from ._output import say
from ._web import RUNTIME, networks_of

if TYPE_CHECKING:
    from ccnn_zoo.hub import Publication, SpacePublication


def publish(
    source: Annotated[str, typer.Argument(help="A checkpoint, training folder, or folder in the Hub's layout.")],
    repo_id: Annotated[str, typer.Argument(help="org/name on the Hugging Face Hub, or local:FOLDER.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new Hub repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the Hub repository.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name for the commit, e.g. v1.0.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    parent_commit: Annotated[str | None, typer.Option(help="Publish only on top of this commit.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Export the network in half precision too.")] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Export it in 8-bit integers too, with ranges of the training images."),
    ] = False,
    fp16_file: Annotated[Path | None, typer.Option(help="An ONNX file in half precision to publish.")] = None,
    int8_file: Annotated[Path | None, typer.Option(help="An ONNX file in 8-bit integers to publish.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Verify on all test images of these data; int8's ranges are of training ones.")
    ] = None,
    pictures: PICTURES = None,
    test_pictures: Annotated[
        bool,
        typer.Option(help="Show on the card the twenty test pictures of doubtful.png, which are published with it."),
    ] = True,
    space: Annotated[
        str | None, typer.Option(help="Also publish the page of `ccnn web` as this static Space, org/name.")
    ] = None,
    runtime: Annotated[Path | None, RUNTIME] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and write nothing.")] = False,
) -> None:
    """Publish a trained network: weights, ONNX, model card and checksums in one commit.

    Example:  ccnn publish runs/digits local:hub/digits --fp16 --int8

    Example:  ccnn publish runs/digits org/digits --space org/digits-page
    """
    from ccnn_zoo import hub

    from . import _sources

    networks: dict[str, Path | None] = {}
    for precision, exported, file in (("fp16", fp16, fp16_file), ("int8", int8, int8_file)):
        if exported and file is not None:
            raise ConfigurationError(
                f"--{precision} and --{precision}-file exclude each other: export one, or name one"
            )
        if exported or file is not None:
            networks[precision] = file
    if runtime is not None and space is None:
        raise ConfigurationError("--runtime is for the page of --space. Leave it out.")
    path = _sources.checkpoint_path(source)
    beside = _sources.beside_checkpoint(path, [name for name, file in networks.items() if file is None], data, pictures)
    if not test_pictures:
        beside.get("pictures", {}).pop("doubtful", None)
    with ExitStack() as stack:
        page = None
        if space is not None:
            page = stack.enter_context(_page(source, repo_id, runtime))
            _publish_space(page, space, private, dry_run=True)  # what is wrong with it is said before anything is sent
        publication = hub.publish(
            path,
            repo_id,
            **beside,
            networks=networks,
            private=private,
            revision=revision,
            tag=tag,
            create_pr=create_pr,
            parent_commit=parent_commit,
            dry_run=dry_run,
        )
        _tell(publication)
        if page is not None:
            _tell(_publish_space(page, space, private, dry_run=dry_run))


@contextmanager
def _page(source: str, repo_id: str, runtime: Path | None) -> Iterator[Path]:
    """Make the files of a Space in which the network runs."""
    from ccnn_zoo.web import staged_space

    name = repo_id.removeprefix("local:").rstrip("/").rpartition("/")[2]
    model = None if repo_id.startswith("local:") else repo_id
    with tempfile.TemporaryDirectory(prefix="ccnn-web-") as work:
        (network,) = networks_of([source], Path(work), "fp32", token=False).values()
        with staged_space({name: network}, name, model=model, runtime=runtime) as folder:
            yield folder


def _publish_space(folder: Path, repo_id: str, private: bool, *, dry_run: bool) -> SpacePublication:
    from ccnn_zoo import hub
    from ccnn_zoo.web import MARK

    return hub.publish_space(folder, repo_id, mark=MARK, private=private, dry_run=dry_run)


def _tell(publication: Publication | SpacePublication) -> None:
    for change in publication.changes:
        if publication.dry_run or change.action != "keep":
            say(f"{change.action:7} {change.size:>12,} bytes  {change.path}")
    say(f"{'would publish' if publication.dry_run else 'published'} {publication.location}")


def download(
    repo_id: Annotated[
        str, typer.Argument(help="org/name[@revision] on the Hugging Face Hub, its address, or local:FOLDER.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8: only the ONNX file of this precision.")
    ] = None,
    token: Annotated[bool, TOKEN] = False,
) -> None:
    """Download a repository, compare every file with its checksum, and print the folder.

    Example:  ccnn download org/ccnn_resnet18_cifar
    """
    from ccnn_zoo import hub

    say(hub.download(repo_id, revision=revision, precision=precision, token=token))
