"""YAML that somebody gives: read so that whatever is wrong with it is one sentence.

PyYAML raises what its conversions raise (a date in month 13 is a ValueError, ``!!bool x`` a KeyError), nests as deep as Python
does, and merges mappings (``<<``) into as many as memory holds.
"""

from __future__ import annotations

from typing import Any

import yaml

from foundation.errors import InvalidParams

DEPTH = 64
"""How deep mappings and lists may lie in one another."""
PAIRS = 100_000
"""How many keys all mappings may have together, those that are merged into others counted each time."""


def load(text: str, name: str, once: bool = False) -> Any:
    """Read a document of plain values.

    Args:
        name: what it is called in the sentence.
        once: refuse a key that is there twice, as YAML does; the last one counts otherwise, in silence.

    Raises:
        InvalidParams: it cannot be read; the sentence says what is wrong, and in which line.
    """
    try:
        return yaml.load(text, _Strict if once else _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise InvalidParams(f"{name} is no YAML ({where}{error.problem or error.context}).") from None
    except yaml.YAMLError:  # of its reader, which knows no line
        raise InvalidParams(f"{name} is no YAML (it has characters that no text has).") from None


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose errors all say where, and that ends."""

    def __init__(self, text: str) -> None:
        self._depth, self._pairs = 0, 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > PAIRS:
            raise yaml.constructor.ConstructorError(None, None, "its mappings have too many keys", node.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            shown = f"“{node.value[:60]}”" if isinstance(node, yaml.ScalarNode) else "what is there"
            problem = f"{shown} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class _Strict(_Loader):
    """Takes a key once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"“{key.value[:60]}” is there twice", key.start_mark)
                seen.add(key.value)
        return node
