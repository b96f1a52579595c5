"""Writes the chart's README: an introduction, and a table made of values.yaml and its comments.

    chart_readme.py CHART [--check]

A comment describes the key below it; a group with a comment is described as a whole. With --check nothing is
written, and a README that is not what it would be is an error.
"""
import argparse
import pathlib
import re
import sys

import yaml

BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z0-9_]+):")


def described_values(text):
    """[(path, comment)] of all keys, in order."""
    comment, path, found = [], [], []
    for line in text.splitlines():
        match = KEY.match(line)
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
        elif match:
            path = path[:len(match["indent"]) // 2] + [match["key"]]
            found.append((tuple(path), " ".join(comment)))
            comment = []
        else:
            comment = []
    return found


def default_of(values, path):
    for key in path:
        values = values[key]
    return values


def compact(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if value in ("", "-") else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")


def table(text):
    values = yaml.safe_load(text)
    rows = ["| value | default | meaning |", "|---|---|---|"]
    told = None
    for path, comment in described_values(text):
        if told is not None and path[:len(told)] == told:
            continue
        value = default_of(values, path)
        is_group = isinstance(value, dict) and value
        if is_group and not comment:
            continue
        told = path if is_group else None
        meaning = comment.replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{'.'.join(path)}` | `{compact(value)}` | {meaning} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chart", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = args.chart / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    made = f"{before}{BEGIN}\n{table((args.chart / 'values.yaml').read_text())}\n{END}{after}"
    if args.check and made != text:
        sys.exit(f"{readme} is not what values.yaml says: run scripts/chart_readme.py {args.chart}")
    if not args.check:
        readme.write_text(made)


if __name__ == "__main__":
    main()
