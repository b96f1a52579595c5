#!/usr/bin/env python3
"""Makes the tables of docs/performance.md: ./dev bench --json | scripts/bench_table.py"""

import json
import sys


def number(value):
    if value is None:
        return "-"
    digits = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}"


def limit(ratio):
    return f"{1 / ratio:.3g} x faster" if ratio < 1 else f"{ratio:.3g}"


def bars(row):
    texts = []
    if row["bar"] is not None:
        texts.append(limit(row["bar"]) + (" ok" if row["holds"] else " **missed**"))
    if row["goal"] is not None:
        reached = "" if row["ratio"] <= row["goal"] else " not reached"
        texts.append(f"goal {limit(row['goal'])}{reached}")
    return ", ".join(texts) or "-"


def against(row):
    """Ratio, marked when it misses its bar."""
    if row is None:
        return "-"
    return f"{row['ratio']:.2f}" + (" **missed**" if row["holds"] is False else "")


def table(columns, lines):
    if not lines:
        return
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for line in lines:
        print("| " + " | ".join(line) + " |")


def kernel_line(rows):
    """One shape: all that it was held against."""

    def find(reference, case="projection"):
        found = [r for r in rows if r["case"] == case and r["reference"].startswith(reference)]
        return found[0] if found else None

    onednn, roofline, pytorch = find("oneDNN"), find("roofline"), find("PyTorch 2.15")
    cold = find("roofline", "projection, cold")
    size = dict(part.split("=") for part in rows[0]["shape"].split())
    return [
        rows[0]["dtype"], size["r"], size["m"], number(onednn["ours_us"]),
        f"{number(onednn['reference_us'])} ({onednn['reference'].removeprefix('oneDNN ')})",
        against(onednn),
        f"{number(roofline['reference_us'])} ({roofline['reference'].removeprefix('roofline, ')})",
        f"{roofline['ratio']:.2f}",
        f"{number(cold['ours_us'])}, {cold['ratio']:.2f}" if cold else "-",
        against(pytorch),
    ]


def main():
    rows = [json.loads(line) for line in sys.stdin]
    print(rows[0]["machine"])
    shapes = {}
    for row in rows:
        if row["suite"] == "kernel" and "naive" not in row["reference"]:
            shapes.setdefault((row["dtype"], row["shape"]), []).append(row)
    table(["dtype", "r", "m", "ours us", "oneDNN's best us", "ratio", "roofline us", "ratio",
           "cold us, ratio", "of PyTorch"], [kernel_line(each) for each in shapes.values()])
    table(["suite", "row", "shape", "ours us", "against", "us", "ratio", "bar"],
          [[r["suite"], r["case"], f"{r['shape']} {r['dtype']}", number(r["ours_us"]),
            r["reference"], number(r["reference_us"]), f"{r['ratio']:.3f}", bars(r)]
           for r in rows if "ours_us" in r and (r["suite"] != "kernel" or "naive" in r["reference"])])
    table(["suite", "figure", "shape", "value", "bar"],
          [[r["suite"], r["case"], r["shape"], f"{number(r['value'])} {r['unit']}",
            "-" if r["holds"] is None else
            f"{number(r['at_least'] if r['at_most'] is None else r['at_most'])} "
            + ("ok" if r["holds"] else "**missed**")]
           for r in rows if "value" in r])


if __name__ == "__main__":
    main()
