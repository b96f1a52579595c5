"""Reads what README.md shows, so that tests can do it. The conventions:

- A fenced block ```console holds commands and what they answer. A line that begins with `$ ` begins
  a command, which goes on while a line ends in a backslash or a quote is open; what follows up to
  the next `$ ` is its answer. Without an answer the command only has to succeed.
- An answer that begins with `{` or `[` is JSON (several values may follow each other). Numbers are
  compared exactly, by value. The string "..." stands for any value, as the last element of a list
  for any further elements, and as a key for any further keys.
- Any other answer is text, of standard output and error together, compared line by line without
  spaces at the ends; a line `...` stands for any number of lines. A command whose answer begins
  with `ERROR:` has to fail.
- A fenced block ```python that imports grpc is a whole client program. What its `print(...)` lines
  print stands behind them as a comment.
- An indented block is one command, which may be continued with backslashes.
- 127.0.0.1:50051 and localhost:50051 stand for the server.
"""
import json
import os
import re
import shlex
from decimal import Decimal
from pathlib import Path

from stubs import SOURCE_DIR

README = Path(os.environ.get("ADAPTERD_README", SOURCE_DIR / "README.md"))
ANY = "..."
_FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
_ADDRESS = re.compile(r"\b(?:127\.0\.0\.1|localhost):50051\b")
_PRINTED = re.compile(r"^\s*print\(.*\)  # (?P<output>.*)$", re.MULTILINE)


def with_address(text, address):
    return _ADDRESS.sub(address, text)


def fenced(text, language):
    return [block["text"] for block in _FENCE.finditer(text)
            if block["language"].strip() == language]


def indented_commands(text):
    """The commands of the indented blocks outside fences."""
    commands = []
    for block in _INDENTED.findall("\n" + _FENCE.sub("\n", text)):
        lines = [line[4:].rstrip() for line in block.splitlines() if line.strip()]
        commands += re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return commands


def _complete(command):
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command)
    except ValueError:  # a quote is open
        return False
    return True


def console_commands(text):
    """[(command, answer)] of the console blocks, in order."""
    session = []
    for block in fenced(text, "console"):
        open_command = False
        for line in block.splitlines():
            if open_command:
                session[-1][0] += "\n" + line
            elif line.startswith("$ "):
                session.append([line[2:], ""])
            elif session:
                session[-1][1] += line + "\n"
            open_command = bool(session) and not _complete(session[-1][0])
    return [(command, answer.strip()) for command, answer in session]


def words_of(command):
    """The command's words, as a shell would split them."""
    return shlex.split(command.replace("\\\n", " "))


def printed_by(program):
    """What the comments behind its print lines promise."""
    return [match["output"] for match in _PRINTED.finditer(program)]


def json_values(text):
    decoder, values, at = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def json_differences(expected, actual, where="$"):
    """What the answer has that the README does not show so, or the other way round."""
    if expected == ANY:
        return []
    if type(expected) is not type(actual):
        return [f"{where}: expected {expected!r}, found {actual!r}"]
    if isinstance(expected, dict):
        found = []
        for key in expected.keys() - {ANY} - actual.keys():
            found.append(f"{where}.{key}: not in the answer")
        if ANY not in expected:
            found += [f"{where}.{key}: not in the README"
                      for key in actual.keys() - expected.keys()]
        for key in expected.keys() & actual.keys():
            found += json_differences(expected[key], actual[key], f"{where}.{key}")
        return sorted(found)
    if isinstance(expected, list):
        if expected[-1:] == [ANY]:
            expected, actual = expected[:-1], actual[:len(expected) - 1]
        if len(expected) != len(actual):
            return [f"{where}: expected {len(expected)} elements, found {len(actual)}"]
        return [difference for i, pair in enumerate(zip(expected, actual))
                for difference in json_differences(*pair, f"{where}[{i}]")]
    return [] if expected == actual else [f"{where}: expected {expected}, found {actual}"]


def text_differences(expected, actual):
    lines = ["(?:[^\n]*\n)*" if line.strip() == ANY else re.escape(line.strip()) + "\n"
             for line in expected.strip().splitlines()]
    found = "".join(line.strip() + "\n" for line in actual.strip().splitlines())
    if re.fullmatch("".join(lines), found):
        return []
    return [f"expected {expected!r}, found {found!r}"]


def differences(expected, actual):
    if expected[:1] in ("{", "["):
        return json_differences(json_values(expected), json_values(actual))
    return text_differences(expected, actual) if expected else []
