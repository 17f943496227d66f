"""The command that makes a corpus."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmrag_batch.cli.checks import MediaDomain, Remote
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.errors import ConfigError, PartialError
from mmrag_batch.extras import requires
from mmrag_batch.masking import mask
from mmrag_batch.retrieval.candidates import Address, find_address
from mmrag_batch.settings import flag_of, load_predict_settings

corpus = typer.Typer(rich_markup_mode=None)


@corpus.command("index")
def _index(
    docs: Annotated[
        Path,
        typer.Argument(
            metavar="DOCS",
            help="A table with `id`, `text`, `title` or `image`, or a folder of texts, pictures "
            "and PDFs; or a corpus, to fill a collection of Qdrant with.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The corpus: a folder, or qdrant+http://host:6333/docs."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The models.  [default: the demo bundle]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where they run.  [default: auto]")] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Where image paths start.  [default: the folder of DOCS]")
    ] = None,
    allow_media_domain: MediaDomain = None,
    allow_remote: Remote = None,
    columns: Annotated[
        str | None, typer.Option(help="What DOCS calls our columns: text=body,image=photo")
    ] = None,
    embedding_cache: Annotated[
        Path | None,
        typer.Option(help="A folder that keeps embeddings.  [default: OUT/embeddings]"),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Search it by an index of faiss: faster from a million documents on.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Embed one part of the documents alone, as 0/4.  [default: by Slurm]"),
    ] = None,
) -> None:
    """Make OUT the corpus of all documents in DOCS, for `predict --corpus OUT`.

    The same command again costs what is new, changed or removed in DOCS, and goes on where one that
    was stopped had come. Shards embed their parts, on as many machines; then the command without a
    shard writes the corpus. Exits with 3 if documents were left out, each told by its line.
    """
    given = {
        "bundle": bundle,
        "device": device,
        "image_root": image_root,
        "allow_media_domain": allow_media_domain,
        "allow_remote": allow_remote,
        "columns": columns,
        "embedding_cache": embedding_cache,
        "shard": shard,
    }
    settings = load_predict_settings(docs, out, given, environ=os.environ)
    start_logging()
    if address := find_address(out):
        asked = given | {"approximate": approximate or None}
        _fill(docs, address, [name for name, value in asked.items() if value is not None])
        return
    from mmrag_batch.cli.making import alone

    with requires("cpu"):
        from mmrag_batch.retrieval.approximate import DEPTH
        from mmrag_batch.run.index import index
        from mmrag_batch.run.shards import find_shard

    part = find_shard(settings.shard, os.environ, out)

    def report(problem: str) -> None:
        typer.echo(mask(problem))

    if part is not None:
        done = index(settings, report, part)
        typer.echo(f"{out}: {done.added:,} documents of shard {part.index}/{part.count} embedded.")
        return
    with alone(out):
        done = index(settings, report, approximate=approximate)
    if done.index is not None:
        typer.echo(
            f"{out}: searched approximately; of the {DEPTH} nearest documents "
            f"{done.index.recall:.1%} were found when its index was made."
        )
    typer.echo(
        f"{out}: {done.documents:,} documents; {done.added:,} added or changed, {done.removed:,} "
        f"removed. Next: mmrag-batch predict in.csv out.csv --corpus {shlex.quote(str(out))}"
    )
    if done.broken:
        raise PartialError(
            f"{done.broken:,} documents were left out, as told above. Mend them, then run the same "
            "command again: it costs only these."
        )


def _fill(docs: Path, address: Address, given: Sequence[str]) -> None:
    """Make a collection what a corpus is."""
    if given:
        raise ConfigError(
            f"{flag_of(given[0])} is for making a corpus: a collection has the vectors of the one "
            "that it is filled from."
        )
    from mmrag_batch.run.collection import fill

    done = fill(docs, address)
    url = shlex.quote(str(address))
    typer.echo(
        mask(
            f"{address}: {done.documents:,} documents; {done.added:,} added or changed, "
            f"{done.removed:,} removed. Next: mmrag-batch predict in.csv out.csv --corpus {url}"
        )
    )
