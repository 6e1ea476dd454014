"""Text as tokens and ids, and ids as tokens."""

import dataclasses
import operator
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from gpt1_jax.explore.display import (
    Renderable,
    coloured_text,
    plain,
    to_html,
    token_styles,
)
from gpt1_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, repr=False)
class TokenTable(Renderable):
    """Tokens and their ids: printed, or at the end of a notebook's cell, as a table.

    Attributes:
        text: what was given, or what given ids decode to.
        tokens: as the vocabulary spells them; None for a given id that is not in it.
        ids: of the tokens.
        spans: for each token its first character in the text, and the one after its last; empty
            where ids were given.
        unknown: the id of the unknown token.
    """

    text: str
    tokens: tuple[str | None, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    unknown: int | None

    def __rich__(self) -> RenderableType:
        return Group(self.coloured(), self._table()) if self.spans else self._table()

    def __str__(self) -> str:
        return plain(self._table())

    def _repr_html_(self) -> str:
        return to_html(self.coloured()) + to_html(self._table())

    def coloured(self) -> Text:
        """Return the text, each token in its colour where the text was given."""
        return coloured_text(self.text, self.spans, self._styles()[: len(self.spans)])

    def _styles(self) -> list[Style]:
        notes = [f"{token} {id_}" for token, id_ in zip(self.tokens, self.ids, strict=True)]
        return token_styles(self.ids, notes, self.unknown)

    def _table(self) -> Table:
        token, id_, arrow = Column("token"), Column("id", justify="right"), Column()
        order = [token, arrow, id_] if self.spans else [id_, arrow, token]
        table = Table.grid(Column("place", justify="right"), *order, Column(), padding=(0, 2))
        for place, style in enumerate(self._styles()):
            cells = [Text.assemble((repr(self.tokens[place]), style)), "->", str(self.ids[place])]
            ordered = cells if self.spans else reversed(cells)
            table.add_row(str(place), *ordered, Text(self._note(place)))
        return table

    def _note(self, place: int) -> str:
        if self.tokens[place] is None:
            return "not in the vocabulary"
        if self.ids[place] != self.unknown:
            return ""
        written = self.text[slice(*self.spans[place])] if self.spans else ""
        return f"unknown: {written!r}" if written else "unknown"


def token_table(tokenizer: Tokenizer, given: str | Sequence[int]) -> TokenTable:
    """Return the tokens of a text with their ids, or those of ids.

    Those of a text are what a model is given: with the special tokens of the tokenizer's template,
    where it has one.

    Args:
        tokenizer: whose tokens they are.
        given: a text, or ids; ``range(3000, 3005)`` is such a sequence too. Ids beyond the
            tokenizer are shown as such, and left out of the text.

    Raises:
        ValueError: a negative id, or a text with a lone surrogate.
    """
    if isinstance(given, str):
        encoding = tokenizer(given, return_offsets_mapping=True)
        text, ids, spans = given, encoding.input_ids, tuple(encoding["offset_mapping"])
    else:
        ids = [operator.index(id_) for id_ in given]
        text, spans = tokenizer.decode(ids), ()
    return TokenTable(
        text=text,
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        ids=tuple(ids),
        spans=spans,
        unknown=tokenizer.unk_token_id,
    )
