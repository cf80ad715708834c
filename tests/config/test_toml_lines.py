"""Every key of a TOML text is found on its line."""

import tomllib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.config.toml_lines import KeyPath, find_places

TEXTS = {
    "plain keys": ("a = 1\n\n# b = 2\nb = 3\n", {("a",): 1, ("b",): 4}),
    "windows line ends": ("a = 1\r\n\r\nb = 3\r\n", {("a",): 1, ("b",): 3}),
    "table": ("[tls]\ncert = 'x'\n", {("tls",): 1, ("tls", "cert"): 2}),
    "table in a table": ("[a.b]\nc = 1\n[a]\nd = 2\n", {("a",): 3, ("a", "b"): 1, ("a", "b", "c"): 2, ("a", "d"): 4}),
    "arrays of tables": (
        "[[p]]\nn = 1\n[[p]]\nn = 2\n[p.h]\nt = 3\n[[p.x]]\ny = 4\n",
        {
            ("p", 0): 1,
            ("p", 0, "n"): 2,
            ("p", 1): 3,
            ("p", 1, "n"): 4,
            ("p", 1, "h", "t"): 6,
            ("p", 1, "x", 0): 7,
            ("p", 1, "x", 0, "y"): 8,
        },
    ),
    "dotted keys": ("\na.b.c = 1\na . 'b' . \"d\" = 2", {("a",): 2, ("a", "b", "c"): 2, ("a", "b", "d"): 3}),
    "inline table": ("t = { a = 1, b.c = [2] }", {("t",): 1, ("t", "a"): 1, ("t", "b", "c"): 1, ("t", "b", "c", 0): 1}),
    "multi-line array": ("l = [ # one\n  1,\n\n  { k = 2 },\n]\nm = 1", {("l", 0): 2, ("l", 1, "k"): 4, ("m",): 6}),
    "multi-line strings": (
        's = """\n[x]\na = 1 \\""" still""""\nt = \'\'\'\n"""\n\'\'\'\'\'\nu = 1\n',
        {("s",): 1, ("t",): 4, ("u",): 7},
    ),
    "marks in strings": ('a = "]#,}"\nb = \'[[x]]\'\nc = ["]", "#"]\nd = ""\n', {("b",): 2, ("c", 1): 3, ("d",): 4}),
    "quoted keys": ('"a.b" = 1\n"\\u0041" = 2\n\'\' = 3\n', {("a.b",): 1, ("A",): 2, ("",): 3}),
    "numbers and dates": ("a = 0x1F\nb = 1979-05-27 07:32:00 # c\nc = +inf\nd = [1.5e3,2]", {("b",): 2, ("d", 1): 4}),
}


@pytest.mark.parametrize(("text", "lines"), TEXTS.values(), ids=TEXTS)
def test_keys_are_found_on_their_lines(text: str, lines: dict[KeyPath, int]) -> None:
    tomllib.loads(text)
    found = find_places(text)
    assert {path: found[path].line for path in lines} == lines


@pytest.mark.parametrize(("text", "lines"), TEXTS.values(), ids=TEXTS)
def test_every_path_of_the_tables_above_is_found_and_no_other(text: str, lines: dict[KeyPath, int]) -> None:
    assert set(find_places(text)) == {path for path, _ in walk(tomllib.loads(text))}


def test_a_value_is_given_as_written() -> None:
    found = find_places("a = 0x1F # no\nb = [1,\n 2]\nc = 'x' \nd = { e = true }\nf = 1979-05-27 07:32:00 \n[t]\n")
    assert [place.written for place in found.values()] == [
        "0x1F", "1", "2", "[1,\n 2]", "'x'", "true", "{ e = true }", "1979-05-27 07:32:00", "",
    ]  # fmt: skip


def test_what_stands_before_a_syntax_error_is_still_found() -> None:
    assert set(find_places("a = 1\nb = = 2\nc = 3\n")) == {("a",)}


def test_deep_nesting_is_given_up_quietly() -> None:
    assert ("a",) in find_places("a = 1\nb = " + "[" * 100_000)


@given(st.text(alphabet="ab.=[]{}\"'#\\\n\r\t ,1-\u00e9\x00", max_size=60))
@example('"')
@example("a = '''")
@example('a = "\\')
@settings(max_examples=150, deadline=None)
def test_random_text_never_crashes_it_and_valid_text_is_found_whole(text: str) -> None:
    found = find_places(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(found) == {path for path, _ in walk(document)}


# Documents in many spellings. Keys and scalars are numbered, so that each must appear in the text of the line named.
class Writer:
    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.counter = 0
        self.lines: list[str] = []

    def fresh(self) -> int:
        self.counter += 1
        return self.counter

    def key(self) -> str:
        return self.draw(st.sampled_from(["k{}x", '"k{}x"', "'k{}x'", '"k{}x.# ]"'])).format(self.fresh())

    def dotted(self) -> str:
        return self.draw(st.sampled_from([".", " . "])).join(self.key() for _ in range(self.draw(st.integers(1, 2))))

    def value(self, depth: int, *, inline: bool = False) -> str:
        kinds = ["int", "text", "literal", "multi", "date"] + (["array", "inline"] if depth else [])
        number = self.fresh()
        match self.draw(st.sampled_from(kinds if not inline else [kind for kind in kinds if kind != "multi"])):
            case "text":
                return f'"v{number} \\" ] # }}"'
            case "literal":
                return f"'v{number} [[x]] = \"'"
            case "multi":
                return self.draw(st.sampled_from(['"""v\n[x]\n"{}" \\"""\n"""', "'''\nk = {}\n''''"])).format(number)
            case "date":
                return "2026-01-02 03:04:05"
            case "array":
                gap = "" if inline else self.draw(st.sampled_from(["", "\n", " # ] no\n "]))
                items = [self.value(depth - 1, inline=inline) for _ in range(self.draw(st.integers(0, 3)))]
                return "[" + gap + f",{gap}".join(items) + gap + "]"
            case "inline":
                pairs = [
                    f"{self.dotted()} = {self.value(depth - 1, inline=True)}"
                    for _ in range(self.draw(st.integers(0, 2)))
                ]
                return "{ " + ", ".join(pairs) + " }"
            case _:
                return str(number)

    def body(self) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            self.lines.append(self.draw(st.sampled_from(["", "  ", "# [x]\n"])) + f"{self.dotted()} = {self.value(2)}")

    def document(self) -> str:
        self.body()
        for _ in range(self.draw(st.integers(0, 2))):
            name = self.dotted()
            self.lines.append(f"[{name}]")
            self.body()
        for _ in range(self.draw(st.integers(0, 2))):
            name = self.key()
            for _ in range(self.draw(st.integers(1, 3))):
                self.lines.append(f"[[ {name} ]] # [x]")
                self.body()
                self.lines.append(f"[{name}.{self.key()}]")
                self.body()
        return "\n".join(self.lines)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_every_leaf_of_any_document_is_found_on_a_line_that_shows_its_key(data: st.DataObject) -> None:
    text = Writer(data).document()
    lines = text.split("\n")
    found = find_places(text)
    paths = dict(walk(tomllib.loads(text)))
    assert set(found) == set(paths)
    for path, value in paths.items():
        shown = path[-1] if isinstance(path[-1], str) else value if type(value) is int else ""
        assert str(shown) in lines[found[path].line - 1], path
        if type(value) is int:
            assert found[path].written == str(value)


def walk(value: Any, path: KeyPath = ()) -> Any:
    if path:
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, (*path, key))
