"""Data files that are wrong, each with the words it is to be refused with; and odd ones that are right after all."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SUMS = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}."} for a in range(4) for b in range(4)]
KELP = [{"text": f"The {i}th stalk of kelp grows beside the {i + 1}th, and both move with the tide."} for i in range(9)]


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: object) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


def said(*messages: object) -> bytes:
    return lines([{"messages": list(messages)}])


Made = bytes | Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A data file, or what makes it at a path, and the pattern it is refused with."""

    group: str
    name: str
    made: Made
    message: str
    code: int = 3
    roles: tuple[str, ...] = ("retain", "target", "measure")

    def make(self, folder: Path) -> None:
        path = folder / self.name
        path.write_bytes(self.made) if isinstance(self.made, bytes) else self.made(path)


GOOD, ONE, USER = lines(KELP), lines(KELP[:1]), {"role": "user", "content": "x"}
BROKEN, EMPTY, COLUMNS = (
    r"got broken JSON \(",
    "expected a text that is not empty",
    "expected 'text', 'prompt' and 'completion'",
)


def _texts(group: str, cases: dict[str, tuple[Made, str]]) -> list[Text]:
    return [Text(group=group, name=name, made=made, message=message) for name, (made, message) in cases.items()]


TEXTS = [
    *_texts("nothing in it", {
        "empty.jsonl": (b"", r"got no documents.*at empty\.jsonl"),
        "blank.jsonl": (b"\n \n\r\n", r"got no documents.*at blank\.jsonl"),
        "mark.jsonl": (b"\xef\xbb\xbf", r"got no documents.*at mark\.jsonl"),
        "empty.txt": (b"", rf"got text '', {EMPTY}, at empty\.txt"),
        "blank.txt": (b" \n\t", rf"{EMPTY}, at blank\.txt"),
        "empty.jsonl.gz": (b"", r"got no documents.*empty\.jsonl\.gz"),
        "empty.raw": (b"", r"got no title .*at empty\.raw:1"),
        "empty.parquet": (b"", r"cannot be read: .*at empty\.parquet"),
        "rows.parquet": (parquet(text=pa.array([], pa.string())), r"got no documents.*at rows\.parquet"),
        "nothing": (Path.mkdir, "got no documents, expected at least one, at nothing"),
        "folder.jsonl": (Path.mkdir, r"got no documents.*at folder\.jsonl"),
    }),
    *_texts("bytes that are no text", {
        "nul.jsonl": (b"\0" * 100, rf"{BROKEN}.*at nul\.jsonl:1"),
        "nul_inside.jsonl": (ONE + b'{"text": "a\0b"}\n', rf"{BROKEN}.*at nul_inside\.jsonl:2"),
        "bytes.jsonl": (bytes(range(256)), r"not UTF-8.*at bytes\.jsonl:2"),
        "utf16.jsonl": (GOOD.decode().encode("utf-16"), r"not UTF-8.*at utf16\.jsonl:1"),
        "utf16le.jsonl": (GOOD.decode().encode("utf-16-le"), rf"{BROKEN}.*at utf16le\.jsonl:1"),
        "latin.jsonl": (ONE + b'{"text": "\xfc"}\n', r"not UTF-8.*at latin\.jsonl:2"),
        "half_letter.jsonl": (ONE + b'{"text": "\xc3', r"not UTF-8.*at half_letter\.jsonl:2"),
        "surrogate.jsonl": (ONE + rb'{"text": "\ud83d"}', r"half of a surrogate pair .*at surrogate\.jsonl:2"),
        "bytes.txt": (b"\xff\xfe\0", r"not UTF-8.*at bytes\.txt:1"),
        "zip.jsonl": (b"PK\3\4", rf"{BROKEN}.*at zip\.jsonl:1"),
        "not.jsonl.gz": (b"not gzip", r"cannot be read: Not a gzipped file.*at not\.jsonl\.gz"),
        "cut.jsonl.gz": (gzip.compress(GOOD)[:-20], r"cannot be read: .*at cut\.jsonl\.gz"),
        "sum.jsonl.gz": (gzip.compress(GOOD)[:-8] + b"\0" * 8, r"cannot be read: CRC.*at sum\.jsonl\.gz"),
        "tail.jsonl.gz": (gzip.compress(GOOD) + b"tail", r"cannot be read: Not a gzipped.*at tail\.jsonl\.gz"),
        "flipped.jsonl.gz": (b"".join((h := gzip.compress(GOOD))[:20] and [h[:20], b"\xff" * 8, h[28:]]),
                             r"cannot be read: .*at flipped\.jsonl\.gz"),
        "zlib.jsonl.gz": (zlib.compress(GOOD), r"cannot be read: Not a gzipped file.*at zlib\.jsonl\.gz"),
        "not.parquet": (b"hello", r"cannot be read: .*at not\.parquet"),
        "cut.parquet": (parquet(text=["a b c"] * 99)[:-30], r"cannot be read: .*at cut\.parquet"),
        "magic.parquet": (b"PAR1" + b"\xff" * 99 + b"PAR1", r"cannot be read: .*at magic\.parquet"),
        "flipped.parquet": (b"".join([(p := parquet(text=["a b c"] * 99))[:4], b"\xff" * 60, p[64:]]),
                            r"cannot be read: .*at flipped\.parquet"),
    }),
    *_texts("JSON that is broken or no object", {
        "broken.jsonl": (ONE + b'{"text": \n', rf"{BROKEN}.*at broken\.jsonl:2"),
        "two.jsonl": (b'{"text": "a"}{"text": "b"}\n', rf"{BROKEN}Extra data.*at two\.jsonl:1"),
        "pretty.jsonl": (b'{\n  "text": "a"\n}\n', rf"{BROKEN}.*at pretty\.jsonl:1"),
        "mac.jsonl": (GOOD.replace(b"\n", b"\r"), rf"{BROKEN}.*at mac\.jsonl:1"),
        "single.jsonl": (b"{'text': 'a'}\n", rf"{BROKEN}.*at single\.jsonl:1"),
        "array.jsonl": (json.dumps(KELP).encode(), r"got \[.*expected an object on each line.*at array\.jsonl:1"),
        "null.jsonl": (ONE + b"null\n", r"got null, expected an object .*at null\.jsonl:2"),
        "number.jsonl": (b"3\n", r"got 3, expected an object .*at number\.jsonl:1"),
        "nan.jsonl": (b"NaN\n", r"got nan, expected an object .*at nan\.jsonl:1"),
        "string.jsonl": (b'"hello"\n', r"got 'hello', expected an object .*at string\.jsonl:1"),
        "deep.jsonl": (ONE + b'{"text": ' + b"[" * 100_000, rf"{BROKEN}.*recursion.*at deep\.jsonl:2"),
        "deep_row.jsonl": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, rf"{BROKEN}.*at deep_row\.jsonl:1"),
        "digits.jsonl": (b'{"text": ' + b"9" * 10_000 + b"}\n", rf"{BROKEN}.*4300 digits.*at digits\.jsonl:1"),
        "huge.jsonl": (b'{"text": "' + b"a " * 2_000_000, rf"{BROKEN}.*at huge\.jsonl:1"),
        "table.csv": (b"text\nhello\n", rf"{BROKEN}.*at table\.csv:1"),
    }),
    *_texts("columns missing or of a wrong type", {
        "columns.jsonl": (b'{"txt": "a"}\n', rf"got columns \['txt'\], {COLUMNS}.*at columns\.jsonl:1"),
        "none.jsonl": (ONE + b"{}\n", rf"got columns \[\], {COLUMNS}.*at none\.jsonl:2"),
        "prompt.jsonl": (b'{"prompt": "x"}\n', rf"got columns \['prompt'\], {COLUMNS}.*at prompt\.jsonl:1"),
        "shared.jsonl": (b'{"conversations": []}\n', r"got columns \['conversations'\].*at shared\.jsonl:1"),
        "text_null.jsonl": (b'{"text": null}\n', rf"got text null, {EMPTY}, at text_null\.jsonl:1"),
        "text_list.jsonl": (b'{"text": ["a"]}\n', rf"got text \['a'\], {EMPTY}, at text_list\.jsonl:1"),
        "text_inf.jsonl": (b'{"text": Infinity}\n', rf"got text inf, {EMPTY}, at text_inf\.jsonl:1"),
        "text_empty.jsonl": (ONE + b'{"text": ""}\n', rf"got text '', {EMPTY}, at text_empty\.jsonl:2"),
        "text_blank.jsonl": (ONE + b'{"text": " \\u00a0\\u2003"}\n', rf"{EMPTY}, at text_blank\.jsonl:2"),
        "again.jsonl": (b'{"text": "a b", "text": 3}\n', rf"got text 3, {EMPTY}, at again\.jsonl:1"),
        "prompt_number.jsonl": (b'{"prompt": 3, "completion": "y"}\n', r"got prompt 3.*at prompt_number\.jsonl:1"),
        "silence.jsonl": (b'{"prompt": "x", "completion": ""}\n', r"got completion ''.*at silence\.jsonl:1"),
        "mixed.jsonl": (ONE + lines(SUMS[:1]), r"got 'prompt' after 'text', expected one format.*at mixed\.jsonl:2"),
        "columns.parquet": (parquet(txt=["a"]), rf"got columns \['txt'\], {COLUMNS}.*at columns\.parquet, row 1"),
        "null.parquet": (parquet(text=["a b", None]), rf"got text null, {EMPTY}, at null\.parquet, row 2"),
        "numbers.parquet": (parquet(text=[1, 2]), rf"got text 1, {EMPTY}, at numbers\.parquet, row 1"),
        "bytes.parquet": (parquet(text=[b"\xff"]), rf"got text b'.*', {EMPTY}, at bytes\.parquet, row 1"),
    }),
    *_texts("conversations that teach nothing", {
        "turns_none.jsonl": (said(), r"got messages \[\], expected a list.*at turns_none\.jsonl:1"),
        "turns_text.jsonl": (b'{"messages": "hi"}\n', r"got messages 'hi', expected a list.*at turns_text\.jsonl:1"),
        "turns_null.jsonl": (b'{"messages": null}\n', r"got messages null, expected a list.*at turns_null\.jsonl:1"),
        "turns_number.jsonl": (said(1), r"got message 1, expected texts 'role' and.*at turns_number\.jsonl:1"),
        "no_role.jsonl": (said({"content": "x"}), r"expected texts 'role' and 'content', at no_role\.jsonl:1"),
        "no_words.jsonl": (said(USER, {"role": "assistant", "content": None}), r"got message .*at no_words\.jsonl:1"),
        "parts.jsonl": (said({"role": "assistant", "content": [{"type": "text"}]}), r"got message .*at parts\.jsonl:1"),
        "masked.jsonl": (said(USER), r"the assistant says nothing, expected an answer, at masked\.jsonl:1"),
        "robot.jsonl": (said(USER, {"role": "robot", "content": "y"}), r"assistant says nothing.*at robot\.jsonl:1"),
    }),
    *_texts("places that are no file", {
        "loop.jsonl": (lambda path: path.symlink_to(path), r"got 'loop\.jsonl', expected a file or folder there"),
        "dangling.jsonl": (lambda path: path.symlink_to("nowhere"), "expected a file or folder there, at .*dangling"),
        "pipe.jsonl": (os.mkfifo, r"got no ordinary file, expected one, at pipe\.jsonl"),
        "absent.jsonl": (lambda path: None, "expected a file or folder there, at .*absent"),
        "x" * 300 + ".jsonl": (lambda path: None, "expected a file or folder there"),
        "below": (lambda path: (path.mkdir(), (path / "a.jsonl").write_bytes(GOOD), (path / "b.jsonl").write_text("{")),
                  rf"{BROKEN}.*at below/b\.jsonl:1"),
        "around": (lambda path: (path.mkdir(), (path / "again").symlink_to(path)), "got no documents.*at around"),
        "lost": (lambda path: (path.mkdir(), (path / "a.jsonl").symlink_to("nowhere")),
                 r"cannot be read: .*at lost/a\.jsonl"),
    }),
    Text(group="too little or overlapping", name="one.jsonl", made=ONE, roles=("target",),
         message=r"got 1 distinct documents in one, expected more than the 2.*at one\.jsonl:1 to one\.jsonl:1"),
    Text(group="too little or overlapping", name="copies.jsonl", made=ONE * 20, roles=("target",),
         message=r"got 1 distinct documents in copies, .*at copies\.jsonl:1 to copies\.jsonl:20"),
    Text(group="too little or overlapping", name="taught.jsonl", made=lines([*SUMS[:1], *SUMS[9:10]]),
         roles=("retain",), message=r"got a document of the target \(sums\.jsonl:1.*at taught\.jsonl:[12]"),
    Text(group="too little or overlapping", name="sums.txt", made=b"Seven and seven.", roles=("retain",),
         message="got texts named sums, sums, expected each"),
    Text(group="the machine's", name="memory", made=lambda path: path.symlink_to("/proc/self/mem"), code=5,
         message="got Input/output error, expected a file that can be read, at memory"),
]  # fmt: skip

# Odd and right: each holds the documents of KELP, no more and no fewer.
RIGHT: dict[str, Made] = {
    "kelp.jsonl": GOOD,
    "mark.jsonl": b"\xef\xbb\xbf" + GOOD,
    "windows.jsonl": GOOD.replace(b"\n", b"\r\n"),
    "no_end.jsonl": GOOD.rstrip(b"\n"),
    "gaps.jsonl": GOOD.replace(b"\n", b"\n\n  \n"),
    "SHOUTED.JSONL": GOOD,
    "packed.jsonl.gz": gzip.compress(GOOD),
    "packed_twice.jsonl.gz": gzip.compress(GOOD[: GOOD.index(b"\n") + 1])
    + gzip.compress(GOOD[GOOD.index(b"\n") + 1 :]),
    "rows.parquet": parquet(text=[row["text"] for row in KELP]),
    "more_columns.jsonl": lines([row | {"score": float("nan"), "id": 10**400, "deep": [[[]]]} for row in KELP]),
    "escaped.jsonl": "".join(json.dumps(row).replace("k", "\\u006b") + "\n" for row in KELP).encode(),
    "link.jsonl": lambda path: (path.with_name("real").write_bytes(GOOD), path.symlink_to("real")),
    "folder": lambda path: (path.mkdir(), (path / "a.jsonl").mkdir(), (path / "a.jsonl" / "b.jsonl").write_bytes(GOOD)),
    "copies.jsonl": GOOD * 3,
}
