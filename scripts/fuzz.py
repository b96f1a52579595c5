"""Runs the fuzzers, several at a time, and says what they reached.

usage: fuzz.py BUILD_FOLDER [--seconds N] [--jobs N] [--seed N] [TARGET ...]

Each starts from its seeds: the fixtures, and what tests/regressions stores for it. Without --seed it
also starts from what earlier runs found worth keeping. Exits with 1 when a fuzzer found something,
or did not reach a deep check.
"""

import argparse
import concurrent.futures
import dataclasses
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
FIXTURES = TESTS / "fixtures"
# Above this an input is slow and teaches nothing that a smaller one does not.
MAX_INPUT_BYTES = {
    "safetensors": 1 << 15,
    "peft_config": 1 << 15,
    "peft_key": 1 << 9,
    "kohya_key": 1 << 9,
    "peft_pattern": 1 << 10,
    "peft_open": 1 << 15,
    "tensor_message": 1 << 10,
    "gguf": 1 << 14,
}
TARGETS = tuple(MAX_INPUT_BYTES)
MAX_MEGABYTES = 2048
# One input; a match of patterns may take seconds under the sanitizers before its limit ends it.
MAX_INPUT_SECONDS = 60


def header_of(file):
    """The JSON of a weights file, or None."""
    content = file.read_bytes()
    if len(content) < 8:
        return None
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length] if length <= len(content) - 8 else None


def names_in(header):
    return [match.encode() for match in re.findall(r'"([^"]+)":\{"dtype"', header.decode())]


def seeds_of(target):
    """Inputs made of the fixtures."""
    configs = sorted(FIXTURES.rglob("*config*.json")) + sorted(FIXTURES.glob("peft-configs/*.json"))
    weights = sorted(FIXTURES.rglob("*.safetensors"))
    if target == "safetensors":
        return [file.read_bytes() for file in weights]
    if target == "peft_config":
        return [file.read_bytes() for file in configs]
    if target == "gguf":
        return [file.read_bytes() for file in sorted(FIXTURES.rglob("*.gguf"))]
    if target == "tensor_message":
        return []  # what is stored is enough
    headers = {file: header_of(file) for file in weights if header_of(file)}
    if target in ("peft_key", "kohya_key"):
        return [name for header in headers.values() for name in names_in(header)]
    opened = [
        (file.parent / "adapter_config.json", header)
        for file, header in headers.items()
        if file.name == "adapter_model.safetensors" and (file.parent / "adapter_config.json").exists()
    ]
    if target == "peft_open":
        return [config.read_bytes() + b"\0" + header for config, header in opened]
    seeds = []
    for config, header in opened:
        paths = [re.sub(rb"^base_model\.model\.|\.lora_.*$", b"", name) for name in names_in(header)]
        pattern = re.search(rb'"target_modules": *"([^"]*)"', config.read_bytes())
        text = pattern.group(1).replace(rb"\\", b"\\") if pattern else rb".*\.(\d+)\..*(q|v)_proj"
        seeds.append(b"\0".join([text, *paths[:4]]))
    return seeds


def write_seeds(target, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stored = sorted((TESTS / "regressions" / target).iterdir())
    inputs = seeds_of(target) + [file.read_bytes() for file in stored]
    kept = {content for content in inputs if len(content) <= MAX_INPUT_BYTES[target]}
    if not kept:
        raise SystemExit(f"fuzz: no seeds for {target}")
    for number, content in enumerate(sorted(kept)):
        (folder / f"{number:04}").write_bytes(content)


@dataclasses.dataclass
class Result:
    target: str
    runs: int
    covered: int
    edges: int
    corpus: int
    findings: list
    reached: dict
    log: pathlib.Path

    @property
    def missed(self):
        return [name for name, count in self.reached.items() if count == 0]


def last_number(pattern, text):
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0


def run(target, build, seconds, seed, fresh):
    folder = build / "fuzz"
    seeds, corpus = folder / "seeds" / target, folder / "corpus" / target
    findings, log = folder / "findings" / target, folder / f"{target}.log"
    write_seeds(target, seeds)
    if fresh:
        shutil.rmtree(corpus, ignore_errors=True)
    for path in (corpus, findings):
        path.mkdir(parents=True, exist_ok=True)
    known = set(findings.iterdir())
    command = [
        build / "bin" / f"fuzz_{target}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={MAX_INPUT_BYTES[target]}",
        f"-timeout={MAX_INPUT_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        *[f"-dict={file}" for file in [TESTS / "fuzz" / f"{target}.dict"] if file.exists()],
        corpus,
        seeds,
    ]
    with log.open("wb") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(errors="replace")
    found = sorted(set(findings.iterdir()) - known)
    if ended.returncode != 0 and not found:
        found = [log]  # it did not even start
    reached = {name: int(count) for count, name in re.findall(r"^reached (\d+) (.+)$", text, re.M)}
    return Result(
        target,
        last_number(r"stat::number_of_executed_units: *(\d+)", text) or last_number(r"^#(\d+)", text),
        last_number(r" cov: (\d+)", text),
        last_number(r"Loaded 1 modules +\((\d+)", text),
        last_number(r" corp: (\d+)", text),
        found,
        reached,
        log,
    )


def report(result, build):
    print(
        f"{result.target}: {result.runs} runs, {result.covered} of {result.edges} edges covered, "
        f"corpus {result.corpus}, new findings {len(result.findings)}"
    )
    for name, count in result.reached.items():
        print(f"  reached {count:>9} x  {name}")
    for finding in result.findings:
        print(f"  FOUND: see {result.log}")
        print(f"  reproduce: {build / 'bin' / f'fuzz_{result.target}'} {finding}")
        print(f"  once it is mended, keep the input in tests/regressions/{result.target}/")
    if not result.findings:
        for name in result.missed:
            print(f"  NOT REACHED: {name}")
    sys.stdout.flush()
    return not result.findings and not result.missed


def main():
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="fuzzers at a time")
    parser.add_argument("--seed", type=int, help="repeat a run, from the seeds alone")
    arguments = parser.parse_intermixed_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    seed = arguments.seed if arguments.seed is not None else random.randrange(1, 1 << 31)
    targets = arguments.targets or TARGETS
    print(f"{arguments.seconds} s each under AddressSanitizer and UBSan, seed {seed}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        running = [
            pool.submit(run, target, arguments.build, arguments.seconds, seed, arguments.seed is not None)
            for target in targets
        ]
        good = [report(future.result(), arguments.build) for future in running]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
