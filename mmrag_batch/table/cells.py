"""What the cells of a row mean: cells in, a `Question` out, or a `RowError` that says which column
is wrong and what was expected there."""

from collections.abc import Mapping

from mmrag_batch.prompt import LETTERS
from mmrag_batch.records import Document, Question
from mmrag_batch.sources import names_source
from mmrag_batch.table.values import check_characters, expected_error, is_empty, parse_list


def parse_question(cells: Mapping[str, object]) -> Question:
    """The question that a row asks.

    Raises RowError: `bad_row` (characters that no output can hold), `bad_question`, `bad_choices`,
    `bad_documents`.
    """
    for column, cell in cells.items():
        check_characters("bad_row", column, cell)
    text = cells.get("question_text")
    if is_empty(text) or not isinstance(text, str):
        raise expected_error("bad_question", "question_text", "a question", text)
    image = cells.get("question_image")
    if not (is_empty(image) or isinstance(image, str)):
        raise expected_error("bad_question", "question_image", "an image path or data: URI", image)
    return Question(
        text=text,
        image=None if is_empty(image) else str(image),
        choices=parse_choices(cells.get("answer_choices")),
        documents=parse_documents(cells.get("documents")),
    )


def parse_choices(cell: object) -> tuple[str, ...]:
    """The answer choices; none for a free-form question. Raises RowError `bad_choices`."""
    column = "answer_choices"
    choices: list[str] = []
    for number, choice in enumerate(
        parse_list("bad_choices", column, "a list of texts", cell) or []
    ):
        if number == len(LETTERS):
            raise expected_error("bad_choices", column, f"at most {len(LETTERS)} choices", cell)
        if not isinstance(choice, str) or not choice.strip():
            raise expected_error("bad_choices", column, "a text", choice, number)
        if choice in choices:
            raise expected_error("bad_choices", column, "each choice once", choice, number)
        choices.append(choice)
    return tuple(choices)


def parse_documents(cell: object) -> tuple[Document, ...]:
    """The candidate documents, in order. Raises RowError `bad_documents`."""
    expected = "a list of texts, image paths or objects with `text` or `image`"
    items = parse_list("bad_documents", "documents", expected, cell) or []
    documents = tuple(_parse_document(number, item) for number, item in enumerate(items))
    ids: set[str] = set()
    for number, document in enumerate(documents):
        if document.id in ids:
            raise expected_error(
                "bad_documents", "documents", "an id of its own", document.id, number
            )
        ids.add(document.id)
    return documents


def _parse_document(number: int, item: object) -> Document:
    if isinstance(item, str):
        if names_source(item):  # what it names may not be there: then it is a problem, and no text
            return Document(id=str(number), text=None, image=item)
        return Document(id=str(number), text=item, image=None)
    if not isinstance(item, dict):
        raise expected_error("bad_documents", "documents", "a text or an object", item, number)
    values = {}
    for key in ("id", "text", "image"):
        value = item.get(key)
        if not isinstance(value, str | None):
            raise expected_error("bad_documents", "documents", f"a text as `{key}`", value, number)
        values[key] = value
    text, image = values["text"], values["image"] or None
    if text is None and image is None:
        raise expected_error("bad_documents", "documents", "a `text` or an `image`", item, number)
    if image is not None:
        text = text or None
    return Document(id=values["id"] or str(number), text=text, image=image)
