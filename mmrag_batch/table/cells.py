"""What the cells of a row mean: cells in, a `Question` out, or a `RowError` that says which column
is wrong and what was expected there."""

from collections.abc import Mapping

from mmrag_batch.prompt import LETTERS
from mmrag_batch.records import Document, Question
from mmrag_batch.sources import names_source
from mmrag_batch.table.names import AS_THEY_ARE, KEYS, Names, find_keys, tell_keys
from mmrag_batch.table.pictures import image_source, is_picture
from mmrag_batch.table.values import check_characters, expected_error, is_empty, parse_list


def parse_question(
    cells: Mapping[str, object], names: Names = AS_THEY_ARE, notes: list[str] | None = None
) -> Question:
    """The question that a row asks. `names` are those of its documents' keys; what is to be said of
    others is added to `notes`.

    Raises RowError: `bad_row` (characters that no output can hold), `bad_question`, `bad_choices`,
    `bad_documents`.
    """
    for column, cell in cells.items():
        check_characters("bad_row", column, cell)
    text = cells.get("question_text")
    if is_empty(text) or not isinstance(text, str):
        raise expected_error("bad_question", "question_text", "a question", text)
    cell = cells.get("question_image")
    image = image_source(cell)
    if not (is_empty(image) or isinstance(image, str)):
        raise expected_error("bad_question", "question_image", "an image path or data: URI", cell)
    return Question(
        text=text,
        image=None if is_empty(image) else str(image),
        choices=parse_choices(cells.get("answer_choices")),
        documents=parse_documents(cells.get("documents"), names, notes),
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


def parse_documents(
    cell: object, names: Names = AS_THEY_ARE, notes: list[str] | None = None
) -> tuple[Document, ...]:
    """The candidate documents, in order. Raises RowError `bad_documents`."""
    expected = "a list of texts, image paths or objects with `text` or `image`"
    items = parse_list("bad_documents", "documents", expected, cell)
    if not items:
        return ()
    documents = tuple(
        parse_document(number, item, names, notes) for number, item in enumerate(items)
    )
    ids: set[str] = set()
    for number, document in enumerate(documents):
        if document.id in ids:
            raise expected_error(
                "bad_documents", "documents", "an id of its own", document.id, number
            )
        ids.add(document.id)
    return documents


def parse_document(
    number: int, item: object, names: Names = AS_THEY_ARE, notes: list[str] | None = None
) -> Document:
    """The document that an item of a list is, called by its number unless it has an id. Raises
    RowError `bad_documents`."""
    if isinstance(item, str):
        if names_source(item):  # what it names may not be there: then it is a problem, and no text
            return Document(id=str(number), text=None, image=item)
        return Document(id=str(number), text=item, image=None)
    if isinstance(item, bytes) or is_picture(item):
        item = {"image": item}
    if not isinstance(item, dict):
        raise expected_error("bad_documents", "documents", "a text or an object", item, number)
    said: tuple[str, ...] = ()
    if names or not item.keys() <= KEYS.keys():
        keys = tuple(map(str, item))
        found, said = find_keys(keys, names), tell_keys(keys, names)
        if notes is not None and said:
            notes += (one for one in said if one not in notes)
        item = {key: item.get(found.get(key, key)) for key in KEYS}
    values = [item.get(key) for key in KEYS]
    if not all(value is None or isinstance(value, str) for value in values):
        values = [_as_text(value, key, number) for key, value in zip(KEYS, values)]
    id_, text, image, title = values
    if text is None and not title and not image:
        expected = _wanted("a `text` or an `image`", said)
        raise expected_error("bad_documents", "documents", expected, item, number)
    if title:
        text = f"{title}\n{text}" if text else title
    if image:
        text = text or None
    return Document(id_ or str(number), text, image or None)


def _as_text(value: object, key: str, number: int) -> str | None:
    """The value of a key of a document that is no text: bytes of an image, or nothing."""
    text = image_source(value) if key == "image" else value
    if isinstance(text, str):
        return text
    if text is None or is_empty(text):
        return None
    raise expected_error("bad_documents", "documents", f"a text as `{key}`", text, number)


def _wanted(what: str, said: tuple[str, ...]) -> str:
    return f"{what} ({' '.join(said)})" if said else what
