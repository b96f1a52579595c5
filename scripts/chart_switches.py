"""Fails when a value of the chart is set by none of its unit tests.

    chart_switches.py CHART
"""
import pathlib
import sys

import yaml

# Handed over as they are, whatever is in them.
WHOLE = {"podSecurityContext", "securityContext", "resources"}


def paths(values, prefix=""):
    """Every key of a tree, as `a.b.c`; helm-unittest writes some of them so itself."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        yield path, value
        if isinstance(value, dict) and path not in WHOLE:
            yield from paths(value, f"{path}.")


def main(chart):
    chart = pathlib.Path(chart)
    tested = set()
    for suite in sorted((chart / "tests").glob("*_test.yaml")):
        content = yaml.safe_load(suite.read_text())
        for test in [content, *content["tests"]]:
            tested |= {path for path, _ in paths(test.get("set", {}))}
    values = dict(paths(yaml.safe_load((chart / "values.yaml").read_text())))
    leaves = [path for path, value in values.items() if path in WHOLE or not isinstance(value, dict) or not value]
    untested = [leaf for leaf in leaves if leaf not in tested]
    for leaf in untested:
        print(f"{chart}: no unit test sets {leaf}")
    return 1 if untested or len(leaves) < 50 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
