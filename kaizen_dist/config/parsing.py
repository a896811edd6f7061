"""YAML as plain data, from files that may come from somebody else.

Nothing but text, numbers, true, false, null, lists and mappings comes out, whatever a file asks
for. A key that stands twice in a mapping is an error: the first one's section would be lost without
a word. What is larger, deeper or, with its aliases written out, longer than any configuration is
refused, so that no file takes more time or memory than a moment's.
"""

import re
from pathlib import Path
from typing import Any, Final

import yaml

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import read_text

FILE_LIMIT: Final = 256 << 10
"""Bytes of the largest file that is read."""
NODE_LIMIT: Final = 100_000
"""Values of a document, those that aliases repeat included."""
DEPTH_LIMIT: Final = 32

_KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "merge")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but the tab and the line's end, and halves of characters."""


class _Checked:
    """What every loader here looks at before it makes anything."""

    def get_single_node(self) -> Any:
        """The document's tree of nodes; raises YAMLError."""
        root = super().get_single_node()  # type: ignore[misc]
        self.left = NODE_LIMIT
        if root is not None:
            self._check(root, 0)
        return root

    def _check(self, node: Any, depth: int) -> None:
        self.left -= 1
        if depth > DEPTH_LIMIT:
            raise _wrong(node, f"nested more than {DEPTH_LIMIT} levels deep")
        if self.left < 0:
            raise _wrong(node, f"more than {NODE_LIMIT:,} values, with aliases written out")
        if node.tag not in _PLAIN:
            raise _wrong(node, f"a value of kind {node.tag}, which has no place here; quote text")
        if isinstance(node, yaml.ScalarNode):
            if _UNFIT.search(node.value):
                raise _wrong(node, "a control character, or half a character")
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            for pair in node.value:
                for child in pair:
                    self._check(child, depth + 1)
        else:
            for child in node.value:
                self._check(child, depth + 1)

    def _check_keys(self, node: Any) -> None:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key is a name, not a list or a mapping")
            if first := seen.get(key.value):
                line = first.start_mark.line + 1
                raise _wrong(
                    key,
                    f"the key {key.value!r} stands here a second time (first in line "
                    f"{line}); put what belongs together into one",
                )
            seen[key.value] = key


class _Loader(_Checked, yaml.SafeLoader):
    """YAML 1.1 takes 1e-5 for text; everybody who writes it means the number. A date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in pairs if tag != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


class _TextLoader(_Checked, yaml.BaseLoader):
    """Makes text of all scalars."""


def read_yaml(path: Path, what: str, *, as_text: bool = False) -> Any:
    """As `parse_yaml`, of a file; `what` it is to be is said in the error."""
    try:
        text = read_text(path, FILE_LIMIT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the {what} {path}: {reason}") from None
    return parse_yaml(text, str(path), as_text=as_text)


def parse_yaml(text: str, where: str, *, as_text: bool = False) -> Any:
    """Plain data from YAML; with `as_text` all scalars are text. Raises UsageError with `where`."""
    try:
        return yaml.load(text, Loader=_TextLoader if as_text else _Loader)  # noqa: S506 - both safe
    except RecursionError:
        raise UsageError(
            f"{where}: not valid YAML: nested more than {DEPTH_LIMIT} levels deep"
        ) from None
    except Exception as error:  # PyYAML lets out whatever int(), float() and its tables raise
        raise UsageError(f"{where}: not valid YAML: {error or type(error).__name__}") from None


def _wrong(node: Any, what: str) -> yaml.YAMLError:
    mark = node.start_mark
    return yaml.YAMLError(f"line {mark.line + 1}, column {mark.column + 1}: {what}")
