"""Train the retriever's towers on the frozen embeddings of a table of questions.

    mmrag-batch train retriever train/configs/demo_retriever.yaml

Needs the encoders as ONNX graphs (`mmrag-batch export encoders`), so that training sees the very
embeddings that `predict` computes. They are computed once and kept in a cache that `predict` can
share. What helps is known from `relevant`, from the right answers, or from the generator: see
supervision.py. Keeps the epoch that is best on held-out questions, stops when none has been better
for a while, and reports recall@1 and MRR there against the untrained towers, which are the frozen
encoders alone. Writes `model/` and the files of `run.py`. Start a run that was killed again, and it
goes on after its last epoch.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import ConfigError, InputError, MissingError
from mmrag_batch.families.family import check_tested, template_version
from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.transformers import TransformersEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import row_with_pages
from mmrag_batch.parts import encoders_identity, find_part, hash_model, read_spec, write_origin
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Row
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import EMBEDDINGS
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.rows import read_records
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.corpus import CorpusDocuments, check_corpus, embed_with_negatives
from mmrag_batch.train.data import EmbeddedTable, Supervision, embed_table
from mmrag_batch.train.fitting import Fit, FitSettings
from mmrag_batch.train.inputs import hash_table, inside
from mmrag_batch.train.likelihoods import measure_likelihoods
from mmrag_batch.train.ranking import ranks, recall_gain, summary
from mmrag_batch.train.run import Run, check_same
from mmrag_batch.train.settings import RetrieverConfig
from mmrag_batch.train.splits import (
    Column,
    Contents,
    check_column,
    components,
    contents,
    hold_out,
    hold_out_by,
    read_column,
)
from mmrag_batch.train.supervision import (
    ByAnswer,
    by_likelihood,
    by_relevant,
    needs_likelihood,
    texts_of,
)
from mmrag_batch.train.text_loss import TextLoss
from mmrag_batch.train.towers import Towers, TowersConfig, save_towers

CHECKPOINT = "checkpoint.pt"
LIKELIHOODS = "likelihoods.jsonl"


def train_retriever(config: RetrieverConfig) -> Path:
    """Train as configured; returns the folder of the best towers.

    Raises ConfigError for settings that do not fit together and for a folder with another run's
    unfinished work, InputError for a table that teaches too little.
    """
    _check(config)
    checkpoint = config.out / CHECKPOINT
    config = _with_parts(config)
    spec = read_spec(config.encoders)
    encoders = encoders_identity(config.encoders, spec)
    asked = hash_table(config.table, parse_names(config.columns))
    if config.generator is not None:
        asked |= inside(config.generator, hash_model(config.generator))
    inputs = {**asked, encoders["path"]: encoders["graphs"]}
    if config.corpus is not None:
        inputs[str(config.corpus)] = check_corpus(config.corpus, config.encoders)
    resumed = checkpoint.is_file()
    if resumed:
        check_same(config.out, config, inputs, unfinished=checkpoint)
    run = Run(
        config.out,
        config,
        seed=config.seed,
        inputs=inputs,
        resumed=resumed,
        report_to=config.report_to,
    )
    beside = config.out if config.corpus is None else config.corpus
    store = (config.embedding_cache or beside / EMBEDDINGS) / encoders["graphs"]

    def apart(table: EmbeddedTable) -> tuple[EmbeddedTable, EmbeddedTable]:
        return split(table, config.held_out, config.seed, _column(config))

    if config.corpus is None:
        held_out, train_table = apart(read_table(config, spec, store, asked))
    else:
        held_out, train_table = embed_with_negatives(config, spec, store, read_rows, apart)
    _check_batch(config, len(train_table.questions))
    towers = Towers(TowersConfig(train_table.vectors.shape[1], config.hidden_size))
    ranks_before = ranks(towers.eval(), held_out)
    settings = FitSettings(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        hard_negatives=0 if config.corpus else config.hard_negatives,
        patience=config.patience,
        soft=config.supervision == "likelihood",
        seed=config.seed,
    )
    Fit(towers, train_table, held_out, settings, checkpoint).run(run.report)
    ranks_after = ranks(towers, held_out)
    save_towers(towers, config.out / "model")
    write_origin(config.out / "model", encoders=encoders)
    groups = torch.tensor(components([item.question for item in _contents(held_out)]))
    best_ranking, gain = summary(ranks_after), recall_gain(ranks_before, ranks_after, groups)
    run.report(
        best_recall_at_1=best_ranking.recall_at_1,
        best_mrr=best_ranking.mrr,
        recall_gain=gain.value,
        low=gain.low,
        high=gain.high,
    )
    checkpoint.unlink(missing_ok=True)
    run.close()
    return config.out / "model"


def plan_retriever(config: RetrieverConfig) -> str:
    """What a run would learn from, in a sentence. Raises what can be raised before anything is
    embedded or written."""
    _check(config)
    config = _with_parts(config)
    read_spec(config.encoders)
    for name in ("image_encoder.onnx", "text_encoder.onnx", "tokenizer.json"):
        if not (config.encoders / name).is_file():
            raise MissingError(f"{config.encoders / name} is missing; export the encoders again.")
    images = ImageLoader(config.table.parent)
    rows = read_rows(config, images)
    if config.corpus is not None:
        check_corpus(config.corpus, config.encoders)
        shared = CorpusDocuments(Corpus(config.corpus), read_rows(config, images))
        rows = (row for row in shared.attach(rows, {}) if row.question and row.question.documents)
    if config.supervision == "likelihood":
        total = sum(needs_likelihood(row) or bool(by_relevant(row)) for row in rows)
    else:
        supervise = _supervision(config, images, {}, None)
        total = sum(bool(row.question and supervise(row)) for row in rows)
    trained = total - _held_out_count(total, config.held_out)
    _check_batch(config, trained)
    return (
        f"{config.table}: {total} questions with documents that may be known to help, of which "
        f"about {total - trained} are held out; at most {config.epochs} epochs of "
        f"{trained // config.batch_size} batches. Nothing was written."
    )


def _check(config: RetrieverConfig) -> None:
    if config.supervision == "likelihood" and config.generator is None:
        raise ConfigError("`supervision: likelihood` needs a `generator` to ask.")
    if config.corpus is not None and config.supervision != "relevant":
        raise ConfigError(
            f"`supervision: {config.supervision}` looks at a row's own documents; of a `corpus`, "
            "the column `relevant` alone tells which help."
        )
    if config.held_out_by is not None:
        check_column(config.table, config.held_out_by, parse_names(config.columns))


def _with_parts(config: RetrieverConfig) -> RetrieverConfig:
    """The config with the folders of the parts that it names of a bundle."""
    generator = config.generator and find_part(config.generator, "generator")
    if generator is not None and config.supervision == "likelihood":
        check_tested(generator)
    return replace(config, encoders=find_part(config.encoders, "retriever"), generator=generator)


def read_table(
    config: RetrieverConfig, spec: RetrieverSpec, store: Path, asked: Mapping[str, str]
) -> EmbeddedTable:
    """The rows of the table that teach something, embedded. `asked` are the hashes of what
    likelihoods depend on."""
    images = ImageLoader(config.table.parent)
    embedder = open_embedder(config.encoders, spec, images, device="cpu", store=store)
    total = sum(1 for _ in read_records(config.table, parse_names(config.columns)))
    supervise = _supervision(config, images, asked, total)
    return embed_table(read_rows(config, images), embedder, supervise, config.out, total=total)


def read_rows(config: RetrieverConfig, images: ImageStore) -> Iterator[Row]:
    """The rows of the table, with the pages of their PDFs."""
    for row in read_labelled_rows(config.table, names=parse_names(config.columns)):
        yield row_with_pages(row, images)


def _supervision(
    config: RetrieverConfig, images: ImageLoader, asked: Mapping[str, str], total: int | None
) -> Supervision:
    if config.supervision == "relevant":
        return by_relevant
    if config.supervision == "answer":
        return ByAnswer(texts_of(read_rows(config, images)))
    assert config.generator is not None  # it was checked
    engine = TransformersEngine(
        config.generator, batch_size=config.generator_batch, max_new_tokens=1
    )
    template = template_version(config.generator)
    spec = PromptSpec(config.max_images, config.max_prompt_tokens, config.scoring, template)
    with closing(engine):
        likelihoods = measure_likelihoods(
            read_rows(config, images),
            Answerer(Renderer(config.generator), engine, images, spec),
            TextLoss(
                config.generator, engine.model, images, spec, batch_size=config.generator_batch
            ),
            spec,
            config.out / LIKELIHOODS,
            _subject(spec, asked),
            total=total,
        )
    return partial(by_likelihood, likelihoods)


def _subject(spec: PromptSpec, asked: Mapping[str, str]) -> str:
    """The table, the generator by its files, and how it is asked."""
    description = repr((sorted(asked.items()), spec))
    return hashlib.sha256(description.encode()).hexdigest()


def split(
    table: EmbeddedTable, held_out: float, seed: int, by: Column | None = None
) -> tuple[EmbeddedTable, EmbeddedTable]:
    """A random share of the questions, and the rest; they have no value of a column in common, or
    else no contents."""
    total = len(table.questions)
    count = _held_out_count(total, held_out)
    if by is None:
        chosen = hold_out(_contents(table), count, seed)
    else:
        chosen = hold_out_by(by.at(table.numbers.tolist()), count, seed)
    is_held_out = torch.zeros(total, dtype=torch.bool)
    is_held_out[list(chosen)] = True
    return table.take(is_held_out.nonzero()[:, 0]), table.take((~is_held_out).nonzero()[:, 0])


def _held_out_count(total: int, share: float) -> int:
    count = round(total * share)
    if not 0 < count < total:
        raise InputError(f"{total} questions with documents known to help are too few to train on.")
    return count


def _check_batch(config: RetrieverConfig, count: int) -> None:
    if count < config.batch_size:
        raise InputError(
            f"{config.table}: {count} questions to train on fill no batch of {config.batch_size}; "
            "give more rows or a smaller `batch_size`."
        )


def _contents(table: EmbeddedTable) -> list[Contents]:
    """Of each question. What has the same embedding is the same to the towers."""
    questions = [(text, image) for image, text in table.questions.tolist()]
    documents = iter([(text, image) for image, text in table.documents.tolist()])
    return [
        contents(question, islice(documents, count))
        for question, count in zip(questions, table.counts.tolist())
    ]


def _column(config: RetrieverConfig) -> Column | None:
    if config.held_out_by is None:
        return None
    return read_column(config.table, config.held_out_by, parse_names(config.columns))
