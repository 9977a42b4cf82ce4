"""A small convolutional network over characters: the second look of a language written without spaces.

Each character is the sum of two learnt vectors, one for itself and one for its sound in
Mandarin, so that a homophone in its place is half the same. Convolutions over one to four
characters, the greatest value of each filter, and one linear layer follow. It is trained
by `dqs.training.transformer.fine_tune` like an encoder, from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional

from dqs.text.ngrams import FIRST_SOUND, SOUNDS
from dqs.text.simplified import simplified_table
from dqs.training.disguise import sound_classes

PADDING: Final = 0
UNKNOWN: Final = 1
_LEAST_SEEN: Final = 3
"""Rarer characters share one vector, and have only their sound to tell them apart."""
_WIDTH: Final = 128
_WIDTHS: Final = (1, 2, 3, 4)


class CharacterNetwork(torch.nn.Module):
    """Log-odds of labels from characters.

    Args:
        characters: int64[ids]; which vector each id has.
        sounds: int64[ids]; which vector of sounds.
        outputs: number of labels.
    """

    def __init__(self, characters: NDArray[np.int64], sounds: NDArray[np.int64], outputs: int) -> None:
        super().__init__()
        self.register_buffer("character_of", torch.tensor(characters))
        self.register_buffer("sound_of", torch.tensor(sounds))
        self.characters = torch.nn.Embedding(int(characters.max()) + 1, _WIDTH)
        self.sounds = torch.nn.Embedding(int(sounds.max()) + 1, _WIDTH)
        for table in (self.characters, self.sounds):
            torch.nn.init.normal_(table.weight, std=0.1)
        self.filters = torch.nn.ModuleList(
            [torch.nn.Conv1d(_WIDTH, _WIDTH, width, padding=width // 2) for width in _WIDTHS]
        )
        self.head = torch.nn.Linear(len(_WIDTHS) * _WIDTH, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32[batch, outputs], of int64[batch, characters] ids and mask."""
        mask = attention_mask.to(torch.float32)
        vectors = self.characters(self.character_of[input_ids]) + self.sounds(self.sound_of[input_ids])
        vectors = functional.dropout(vectors * mask.unsqueeze(-1), 0.2, self.training).transpose(1, 2)
        # A filter of even width has one place more than there are characters.
        found = [torch.relu(layer(vectors))[:, :, : input_ids.shape[1]] * mask.unsqueeze(1) for layer in self.filters]
        strongest = torch.cat([values.amax(2) for values in found], 1)
        scores: torch.Tensor = self.head(functional.dropout(strongest, 0.4, self.training))
        return scores


def read_characters(texts: Iterable[str]) -> tuple[Tokenizer, NDArray[np.int64], NDArray[np.int64]]:
    """Makes a tokenizer of single characters, traditional ones as their simplified forms.

    Args:
        texts: what the network is trained on.

    Returns:
        The tokenizer; then for each of its ids the vector of the character and that of its sound, int64 each.
    """
    simplified = simplified_table()
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    seen: Counter[int] = Counter()
    for text in texts:
        seen.update(int(simplified[ord(character)]) for character in normalizer.normalize_str(text))
    classes = np.zeros(simplified.size, dtype=np.int64)
    classes[FIRST_SOUND : FIRST_SOUND + SOUNDS] = sound_classes()
    kept = sorted({*seen, *simplified[classes[simplified] > 0].tolist()})
    ids = {code: number for number, code in enumerate(kept, start=UNKNOWN + 1)}
    # A traditional character has the id of its simplified form.
    vocabulary = {"[PAD]": PADDING, "[UNK]": UNKNOWN} | {chr(code): number for code, number in ids.items()}
    for code in np.flatnonzero(simplified != np.arange(simplified.size)).tolist():
        if int(simplified[code]) in ids:
            vocabulary[chr(code)] = ids[int(simplified[code])]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), behavior="isolated")]
    )
    frequent = [code for code in kept if seen[code] >= _LEAST_SEEN]
    own = {code: number for number, code in enumerate(frequent, start=UNKNOWN + 1)}
    characters = np.array([PADDING, UNKNOWN, *(own.get(code, UNKNOWN) for code in kept)], dtype=np.int64)
    sounds = np.array([PADDING, UNKNOWN, *(1 + classes[code] for code in kept)], dtype=np.int64)
    return tokenizer, characters, sounds
