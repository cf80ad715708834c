"""The protocol's page says what the code reads: its JSON is structured, its bytes are parsed, its numbers compared."""

import json
import re
from typing import get_args

import pytest

from tunnel import frames
from tunnel.frames import Abort, FrameReader, put_message_head
from tunnel.messages import MAX_MESSAGE_BYTES, MAX_PROXIES, MAX_TEXT, Farewell, Message, Status, decode
from tunnel.protocol import EPOCH, HEARD_BY_CLIENT, HEARD_BY_SERVER, INSTANCE, MAX_TICKETS, Law
from tunnel.relay.engine import PING_SECONDS, PONG_SECONDS
from tunnel.server.data_channels import MAX_PLACE
from tunnel.server.registry import MAX_TICKETS_HELD
from tunnel.upgrade import MAX_HEAD_BYTES

from .__main__ import DOCS

PAGE = (DOCS / "protocol.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
FRAMES = re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \| (.*?) \|$", PAGE.partition("<!-- frames -->")[2], re.MULTILINE)


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: json.loads(text)["type"])
def test_each_example_is_a_message_that_the_code_understands_whole(text: str) -> None:
    message = decode(text)
    assert type(message).__name__ == json.loads(text)["type"]
    written = json.loads(text)
    known = {field.name for field in type(message).__attrs_attrs__}
    assert written.keys() - {"type"} <= known


def test_there_is_an_example_of_every_message() -> None:
    assert {json.loads(text)["type"] for text in EXAMPLES} == {kind.__name__ for kind in get_args(Message)}


def test_the_examples_in_the_order_of_the_page_are_a_lawful_session() -> None:
    by_server, by_client = Law(HEARD_BY_SERVER), Law(HEARD_BY_CLIENT)
    for text in EXAMPLES:
        message = decode(text)
        for law, heard_by in ((by_server, HEARD_BY_SERVER), (by_client, HEARD_BY_CLIENT)):
            if isinstance(message, heard_by[law.phase]):
                law.heard(message)
    assert (by_server.phase.value, by_client.phase.value) == ("ended", "ended")


class Told:
    """What a `FrameReader` heard, as the page words it."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def on_open(self, stream: int, index: int, version: int) -> None:
        self.words.append(f"OPEN stream {stream} to proxy {index} of set {version}")

    def on_stray(self, stream: int, data: memoryview) -> None:
        self.words.append(f'DATA stream {stream} "{bytes(data).decode()}"')

    def on_fin(self, stream: int) -> None:
        self.words.append(f"FIN stream {stream}")

    def on_credit(self, stream: int, count: int) -> None:
        self.words.append(f"CREDIT stream {stream} of {count} bytes")

    def on_rst(self, stream: int, reason: int) -> None:
        self.words.append(f"RST stream {stream} for {Abort(reason).name}")

    def on_move(self, stream: int) -> None:
        self.words.append(f"MOVE stream {stream}")

    def on_retire(self) -> None:
        self.words.append("RETIRE")


@pytest.mark.parametrize("masked", [False, True])
def test_the_bytes_of_each_frame_are_read_as_the_page_says(masked: bool) -> None:
    assert len(FRAMES) == 7
    payload = b"".join(bytes.fromhex(digits) for digits, _ in FRAMES)
    head = bytearray(frames.WS_ROOM)
    at = put_message_head(head, len(payload), masked=masked)
    told = Told()
    FrameReader(told, lambda _stream: None, masked=masked).feed(memoryview(bytearray(bytes(head[at:]) + payload)))
    assert told.words == [words for _, words in FRAMES]


def test_the_heads_of_a_message_are_as_shown() -> None:
    data = bytes.fromhex(next(digits for digits, words in FRAMES if words.startswith("DATA")))
    assert len(data) == 10
    shown = [bytes.fromhex(digits) for digits in re.findall(r"`(82 [0-9a-f ]+)`", PAGE)]
    made = []
    for masked in (False, True):
        head = bytearray(frames.WS_ROOM)
        at = put_message_head(head, len(data), masked=masked)
        made.append(bytes(head[at:]))
    assert shown == made


def test_every_reason_of_a_reset_and_of_a_goodbye_is_told() -> None:
    table = PAGE.partition("| RST | name |")[2].partition("Frames of a stream")[0]
    numbers = [
        int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in row.split(", ")
    ]
    names = re.findall(r"[A-Z]+(?:_[A-Z]+)*", table)
    assert dict(zip(names, numbers, strict=True)) == {one.name: one.value for one in Abort}
    for word in (*Farewell, *Status):
        assert f"`{word}`" in PAGE


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("at most 1 MiB", MAX_MESSAGE_BYTES / 2**20),
        ("of at most 16 KiB", MAX_HEAD_BYTES / 1024),
        ("at most 1,000\nproxies", MAX_PROXIES),
        ("a text over 1,024 characters", MAX_TEXT),
        ("tickets (16 at most", MAX_TICKETS),
        ("64 unused ones", MAX_TICKETS_HELD),
        ("at most 64 characters", MAX_PLACE),
        ("starts with 65,536 bytes", frames.FIRST_WINDOW),
        ("(at most 512 KiB)", frames.MAX_GRANT / 1024),
        ("up to 8 MiB", frames.MAX_WINDOW / 2**20),
        ("8 to 512", frames.MAX_OPEN_PAYLOAD),
        ("after 20 s without one", PING_SECONDS),
        ("that is 10 s late", PONG_SECONDS),
    ],
)
def test_each_number_on_the_page_is_the_codes(words: str, number: float) -> None:
    assert words in PAGE
    assert f"{number:,.0f}" in words


def test_the_head_shown_has_an_instance_and_an_epoch_that_are_taken() -> None:
    assert INSTANCE.match(re.search(r"Trio-Tunnel-Instance: (\w+)", PAGE)[1])
    assert EPOCH.match(re.search(r"Trio-Tunnel-Epoch: (\w+)", PAGE)[1])
