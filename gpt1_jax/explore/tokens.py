"""Text as tokens and ids, and ids as tokens."""

import dataclasses
import operator
from collections.abc import Sequence

from gpt1_jax.explore.display import RED, Colour, ColouredText, Lines, span, table, token_colour
from gpt1_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, repr=False)
class TokenTable(Lines):
    """Tokens and their ids: printed, or at the end of a notebook's cell, as a table.

    Attributes:
        text: coloured by token; what was given, or what given ids decode to.
        tokens: as the vocabulary spells them.
        ids: of the tokens.
        written: what unknown tokens stand for in the text, "" for all others and where ids were
            given.
        unknown: the id of the unknown token.
        ids_first: whether ids were given.
    """

    text: ColouredText
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    written: tuple[str, ...]
    unknown: int | None
    ids_first: bool

    def ansi(self) -> str:
        """Return the text, if it was given, and the table as a terminal colours them."""
        above = "" if self.ids_first else self.text.ansi()
        return "\n".join(filter(None, [above, super().ansi()]))

    def _repr_html_(self) -> str:
        rows = []
        for place, (token, id_) in enumerate(zip(self.tokens, self.ids, strict=True)):
            note = self._note(place)
            colour = _colour(id_, self.unknown)
            cells = [str(place), span(repr(token), colour), str(id_), span(note, None)]
            if self.ids_first:
                cells[1], cells[2] = cells[2], cells[1]
            rows.append(cells)
        header = ["place", *(("id", "token") if self.ids_first else ("token", "id")), ""]
        return self.text.html() + table(rows, header)

    def _note(self, place: int) -> str:
        if self.ids[place] != self.unknown:
            return ""
        return f"unknown: {self.written[place]!r}" if self.written[place] else "unknown"

    def _lines(self) -> list[list[tuple[str, Colour | None]]]:
        places = len(str(len(self.ids) - 1))
        tokens = max((len(repr(token)) for token in self.tokens), default=0)
        ids = max((len(str(id_)) for id_ in self.ids), default=0)
        lines = []
        for place, (token, id_) in enumerate(zip(self.tokens, self.ids, strict=True)):
            colour = _colour(id_, self.unknown)
            spelled = repr(token)
            space = " " * (tokens - len(spelled))
            note = self._note(place)
            cells: list[tuple[str, Colour | None]] = [(f"{place:>{places}}  ", None)]
            if self.ids_first:
                cells += [(f"{id_:>{ids}}  ->  ", None), (spelled, colour)]
                cells += [(f"{space}  {note}", None)] if note else []
            else:
                cells += [(spelled, colour), (f"{space}  ->  {id_:>{ids}}", None)]
                cells += [(f"  {note}", None)] if note else []
            lines.append(cells)
        return lines


def _colour(id_: int, unknown: int | None) -> Colour:
    return RED if id_ == unknown else token_colour(id_)


def token_table(tokenizer: Tokenizer, given: str | Sequence[int]) -> TokenTable:
    """Return the tokens of a text with their ids, or those of ids.

    Args:
        tokenizer: whose tokens they are.
        given: a text, or ids; ``range(3000, 3005)`` is such a sequence too.

    Raises:
        ValueError: an id out of range, or a text with a lone surrogate.
    """
    if isinstance(given, str):
        text = given
        encoding = tokenizer(text, return_offsets_mapping=True)
        ids, spans = encoding.input_ids, encoding["offset_mapping"]
    else:
        ids = [operator.index(id_) for id_ in given]
        text, spans = tokenizer.decode(ids), []
    tokens = tokenizer.convert_ids_to_tokens(ids)
    unknown = tokenizer.unk_token_id
    coloured = ColouredText(((text, None, ""),))
    if spans:
        colours = [_colour(id_, unknown) for id_ in ids]
        notes = [f"{token} {id_}" for token, id_ in zip(tokens, ids, strict=True)]
        coloured = ColouredText.of(text, spans, [*colours], notes)
    written = [text[slice(*span)] for span in spans] or [""] * len(ids)
    return TokenTable(
        text=coloured,
        tokens=tuple(tokens),
        ids=tuple(ids),
        written=tuple(
            part if id_ == unknown else "" for part, id_ in zip(written, ids, strict=True)
        ),
        unknown=unknown,
        ids_first=not isinstance(given, str),
    )
