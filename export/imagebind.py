"""ImageBind's published checkpoint and vocabulary -> our encoders and a `tokenizer.json`.

Takes `imagebind_huge.pth`, or the same tensors as safetensors; the published code is not needed.
The weights may not be used commercially (CC BY-NC-SA 4.0).
"""

import gzip
import zipfile
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
UNNEEDED = frozenset({"audio", "depth", "thermal", "imu"})
"""Modalities of the published model that are left out."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's pattern of what a token may lie in."""
SHOWN = 5
"""Most tensors that a message names."""


def load_published(file: Path, config: ImageBindConfig | None = None) -> ImageBind:
    """The image and the text encoder of a published checkpoint, in float32 and eval mode.

    `config`: its sizes, if they are not those of `imagebind_huge`. Raises MissingError (no such
    file, or a damaged one), DeniedError (a pickle of more than tensors), ConfigError (tensors that
    are missing, unknown or of another shape).
    """
    tensors = {
        name: tensor for name, tensor in _read(file).items() if name.split(".")[1] not in UNNEEDED
    }
    with torch.device("meta"):
        model = ImageBind(config or ImageBindConfig())
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [
        *(f"{name} is missing" for name in expected.keys() - tensors.keys()),
        *(f"{name} is unknown" for name in tensors.keys() - expected.keys()),
        *(
            f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ),
    ]
    if problems:
        examples = "; ".join(sorted(problems)[:SHOWN])
        raise ConfigError(f"{file} is no {model.config.name}: {len(problems)} tensors: {examples}.")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, mapped and not read where the format allows it."""
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            is_zip = zipfile.is_zipfile(file)
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError:
        raise MissingError(f"There is no file {file}.") from None
    except UnpicklingError as error:
        if "Weights only load failed" in str(error):
            raise DeniedError(
                f"{file} holds more than tensors; take a checkpoint that you can trust. {error}"
            ) from None
        raise MissingError(f"{file} cannot be read; download it again. {error}") from None
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise MissingError(f"{file} cannot be read; download it again. {error}") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and "." in name and isinstance(tensor, Tensor)
        for name, tensor in tensors.items()
    ):
        raise ConfigError(f"{file} is no checkpoint of ImageBind: it holds no tensors by name.")
    return tensors


def find_vocabulary(checkpoint: Path) -> Path:
    """The published vocabulary: beside a file, or in an installed package. Raises MissingError."""
    candidates = [checkpoint.parent / VOCABULARY]
    package = find_spec("imagebind")  # found, not imported: its own imports are many
    if package is not None and package.submodule_search_locations:
        candidates.append(Path(package.submodule_search_locations[0]) / "bpe" / VOCABULARY)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingError(
        f"{VOCABULARY} is not beside {checkpoint}; take it from ImageBind's repository (bpe/), or "
        "name it with --vocabulary."
    )


def published_tokenizer(vocabulary: Path, context_length: int) -> Tokenizer:
    """CLIP's byte-pair encoding, from its list of merges, for texts that `clean_text` gives.

    Differs from the published code in one way, on purpose: the names of start and end token in a
    text are plain text.
    """
    try:
        lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    except FileNotFoundError:
        raise MissingError(f"There is no file {vocabulary}.") from None
    except (OSError, EOFError, ValueError) as error:
        raise MissingError(f"{vocabulary} cannot be read: {error}") from None
    count = ImageBindConfig().vocabulary - 2 * 256 - 2
    pairs = [line.split() for line in lines[1 : count + 1]]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) < count:
        raise MissingError(f"{vocabulary} is not CLIP's list of merges; download it again.")
    letters = _letters()
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(left + right for left, right in merges),
    ]
    vocab = {word: number for number, word in enumerate([*words, START, END])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ends = [(token, vocab[token]) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ends)
    tokenizer.add_special_tokens([START, END])
    tokenizer.enable_truncation(context_length)
    return tokenizer


def _letters() -> list[str]:
    """The characters that stand for the 256 bytes, in CLIP's order: the printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
