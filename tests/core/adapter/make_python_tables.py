#!/usr/bin/env python3
"""Writes python_tables.h: what Python's re, PEFT's matching rules and hashlib say.

The tests compare our code with these answers, so nothing of our code takes part. Run it from the top
of the repository with Python 3.11; the functions between the lines follow the documented behaviour of
peft/tuners/tuners_utils.py and peft/utils/other.py.
"""
import hashlib
import json
import re
import struct
import warnings

warnings.simplefilter("ignore")
OUT = "tests/core/adapter/python_tables.h"
FIXTURES = "tests/fixtures/"

# ------------------------------------------------------------------------------------------------
REGEX_CASES = [
    (r"q_proj", ["q_proj", "q_proj2", "xq_proj", ""]),
    (r".*q_proj", ["a.b.q_proj", "q_proj\n", "a\nq_proj"]),
    (r"q_proj$", ["q_proj", "q_proj\n", "q_proj\n\n"]),
    (r"q_proj\Z", ["q_proj", "q_proj\n"]),
    (r"^q\A_proj", ["q_proj"]),
    (r"^\Aq_proj", ["q_proj"]),
    (r"a|ab", ["a", "ab", "abc"]),
    (r"(a|ab)(c|bcd)(d*)", ["abcd"]),
    (r"model\.layers\.(?:0|1)\.(?!mlp)\w+\.(q|k)_proj",
     ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.q_proj", "model.layers.2.self_attn.q_proj"]),
    (r".*(?<=self_attn)\.q_proj", ["model.self_attn.q_proj", "model.mlp.q_proj"]),
    (r"(?i)Q_PROJ", ["q_proj", "Q_proj"]),
    (r"x(?i)q", ["xq"]),
    (r"(?i:Q)_proj", ["q_proj", "q_PROJ"]),
    (r"(?i)a(?-i:B)", ["AB", "Ab"]),
    (r"(?s).", ["\n", "a"]),
    (r".", ["\n", "\r", "\u2028", "é"]),
    (r"(?m)a$", ["a\nb", "a\n"]),
    (r"\w+", ["proj_é", "a-b", "\u0663"]),
    (r"\d", ["7", "\u0663", "x"]),
    (r"\s", [" ", "\u00a0", "\v"]),
    (r"\bq", ["q", "aq"]),
    (r"a\b.b", ["a.b", "aab"]),
    (r"\v", ["\v", "\n", "\f"]),
    (r"[\v]", ["\v", "\n"]),
    (r"[\b]", ["\b", "b"]),
    (r"a{,2}", ["", "aa", "aaa", "a{,2}"]),
    (r"a{,}", ["aaaa"]),
    (r"a{2}", ["aa", "a{2}"]),
    (r"a{2,}", ["a", "aaaaa"]),
    (r"a{x}", ["a{x}", "a"]),
    (r"{}", ["{}"]),
    (r"a{", ["a{"]),
    (r"[[:alpha:]]", ["a]", "[]", ":]", "z"]),
    (r"[]a]+", ["]a"]),
    (r"[^]a]+", ["b]", "b"]),
    (r"[a\]]+", ["a]"]),
    (r"[[a]", ["["]),
    (r"[\w.-]+", ["a.b-c", "a b"]),
    (r"[\Z]", ["Z"]),
    (r"\x71", ["q"]),
    (r"\x7", ["\x07"]),
    (r"\u0071_proj", ["q_proj"]),
    (r"\U00000071", ["q"]),
    (r"\U00110000", ["q"]),
    (r"\161", ["q"]),
    (r"\0", ["\0"]),
    (r"\018", ["\x018"]),
    (r"\400", ["x"]),
    (r"(a)\1", ["aa", "ab"]),
    (r"(a)\2", ["aa"]),
    (r"(a)\18", ["a\x018"]),
    (r"(a)(b)(c)(d)(e)(f)(g)(h)(i)(j)\10", ["abcdefghijj", "abcdefghija0"]),
    (r"(?P<l>\d+)\.(?P=l)", ["3.3", "3.4"]),
    (r"(?<l>\d+)", ["3"]),
    (r"(a)?(?(1)b|c)", ["ab", "c", "ac"]),
    (r"(?P<R>a)?(?(R)b|c)", ["ab", "c"]),
    (r"(?#comment)q", ["q"]),
    (r"(?>a+)b", ["aab"]),
    (r"a++b", ["aab"]),
    (r"a*?b", ["aab"]),
    (r"(?R)", [""]),
    (r"(?|a|b)", ["a"]),
    (r"(*ACCEPT)a", ["a"]),
    (r"(*UTF)a", ["a"]),
    (r"(?L)a", ["a"]),
    (r"(?u)\w", ["é"]),
    (r"\Qa.b\E", ["a.b"]),
    (r"a\Kb", ["ab"]),
    (r"\R", ["\n"]),
    (r"\h", [" "]),
    (r"\N", ["a"]),
    (r"\e", ["\x1b"]),
    (r"\p{L}", ["a"]),
    (r"\G", [""]),
    (r"\z", [""]),
    (r"\C", ["a"]),
    (r"\_\-\.\é", ["_-.é"]),
    (r"(", ["("]),
    (r")", [")"]),
    (r"[a", ["a"]),
    (r"*a", ["a"]),
    (r"a\ "[:-1], ["a"]),
    (r"[b-a]", ["a"]),
    (r"(?<=a+)b", ["ab"]),
    ("é+", ["éé", "e"]),
    ("", ["", "a"]),
]


def regex_rows():
    for pattern, texts in REGEX_CASES:
        for text in texts:
            try:
                compiled = re.compile(pattern)
                yield pattern, text, True, bool(compiled.match(text)), bool(compiled.fullmatch(text))
            except re.error:
                yield pattern, text, False, False, False


# ------------------------------------------------------------------------------------------------
def get_pattern_key(keys, path):
    for key in keys:
        if re.match(rf"(.*\.)?({key})$", path):
            return key
    return path


KEY_CASES = [
    (["q_proj"], ["a.q_proj", "q_proj", "a.xq_proj", "a.q_proj.b", "a.q_proj\n"]),
    (["q_proj", "self_attn.q_proj"], ["a.self_attn.q_proj", "b.q_proj"]),
    (["self_attn.q_proj", "q_proj"], ["a.self_attn.q_proj", "a.self_attnXq_proj", "b.q_proj"]),
    (["^q_proj", "k"], ["q_proj", "a.q_proj", "a.k"]),
    (["^model.layers.0.self_attn.k_proj"], ["model.layers.0.self_attn.k_proj", "x.model.layers.0.self_attn.k_proj",
                                            "modelXlayers.0.self_attn.k_proj"]),
    ([r".*\.layers\.3\..*(q_proj|k_proj)"], ["model.layers.3.self_attn.q_proj", "model.layers.13.self_attn.q_proj",
                                             "model.layers.3.v_proj"]),
    ([r"layers\.1\..*_proj", "q_proj"], ["model.layers.1.self_attn.q_proj", "model.layers.11.self_attn.q_proj"]),
    (["a|b"], ["x.a", "x.b", "xb"]),
    (["a)|(b"], ["x.a", "b", "xb", "x.b"]),
    (["a.b+c"], ["a.b+c", "a.bbc", "x.a.b+c"]),
    (["a[0]"], ["a[0]", "a0"]),
    (["q_proj$"], ["a.q_proj"]),
    ([r"(\w+)_\3"], ["x.ab_ab", "x.ab_ac"]),
    (["", "a"], ["a.", "a", ""]),
    (["Q_PROJ"], ["q_proj"]),
]


def key_rows():
    for keys, paths in KEY_CASES:
        for path in paths:
            found = get_pattern_key(keys, path)
            yield keys, path, keys.index(found) if found in keys else -1


# ------------------------------------------------------------------------------------------------
def targeted(config, key, lead=".*?"):
    exclude = config.get("exclude_modules")
    if exclude:
        if isinstance(exclude, str):
            if re.fullmatch(exclude, key):
                return False
        elif key in exclude or any(key.endswith("." + e) for e in exclude):
            return False
    target = config["target_modules"]
    if isinstance(target, str):
        return bool(re.fullmatch(target, key))
    if key in target:
        return True
    found = any(key.endswith("." + t) for t in target)
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == [] or not found:
        return found
    index = None
    if not patterns:
        index = re.match(lead + r"\.[^.]*\.(\d+)\.", key)
    else:
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            index = re.match(rf"{lead}\.{pattern}\.(\d+)\.", key)
            if index is not None:
                break
    if index is None:
        return False
    return int(index.group(1)) == layers if isinstance(layers, int) else int(index.group(1)) in layers


Q = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.11.self_attn.q_proj"]
MOE = ["model.layers.1.mlp.experts.0.w1", "model.layers.0.mlp.experts.1.w1"]
TARGET_CASES = [
    ({"target_modules": ["q_proj"]}, Q + ["q_proj", "xq_proj", "a.q_proj.b", "a.xq_proj"]),
    ({"target_modules": ["attn.q_proj"]}, ["self_attn.q_proj", "attn.q_proj", "a.attn.q_proj"]),
    ({"target_modules": ["model.layers.0.self_attn.q_proj"]}, Q),
    ({"target_modules": [""]}, ["a", "a."]),
    ({"target_modules": "q_proj"}, ["q_proj", "a.q_proj"]),
    ({"target_modules": r".*\.(q|v)_proj"}, ["a.q_proj", "a.v_proj", "a.k_proj", "a.q_proj.b", "a.q_proj\n"]),
    ({"target_modules": r".*q_proj$"}, ["a.q_proj", "a.q_proj\n"]),
    ({"target_modules": r"model\.layers\.(?:0|1)\.(?!mlp)\w+\.(q|k)_proj"}, Q + ["model.layers.0.mlp.q_proj"]),
    ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}, Q),
    ({"target_modules": ["q_proj"], "exclude_modules": ["model.layers.1.self_attn.q_proj", "proj"]}, Q),
    ({"target_modules": ["q_proj"], "exclude_modules": r".*layers\.1.*"}, Q),
    ({"target_modules": ["q_proj"], "exclude_modules": r"layers\.1"}, Q),
    ({"target_modules": ["q_proj"], "exclude_modules": ""}, Q),
    ({"target_modules": r".*q_proj", "exclude_modules": ["q_proj"]}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, Q + ["q_proj", "a.q_proj"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": 1}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": []}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 11]}, Q),
    ({"target_modules": ["q_proj", "model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h"}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(?:h|layers)"}, Q),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, ["layers.0.q_proj", "x.layers.0.q_proj"]),
    ({"target_modules": ["w1"], "layers_to_transform": [1]}, MOE),
    ({"target_modules": ["w1"], "layers_to_transform": [1], "layers_pattern": "layers"}, MOE),
    ({"target_modules": ["w1"], "layers_to_transform": [1], "peft_version": "0.21.2"}, MOE),
    ({"target_modules": ["w1"], "layers_to_transform": [1], "peft_version": "0.20.0"}, MOE),
    ({"target_modules": ["w1"], "layers_to_transform": [1], "peft_version": "0.19.1"}, MOE),
    ({"target_modules": ["w1"], "layers_to_transform": [1], "peft_version": "0.18.0.dev0@UNKNOWN"}, MOE),
]


def target_rows():
    for config, paths in TARGET_CASES:
        version = config.get("peft_version", "0.21.2")
        lead = ".*" if int(version.split(".")[1]) < 20 else ".*?"
        for path in paths:
            yield json.dumps({"peft_type": "LORA", **config}), path, targeted(config, path, lead)


# ------------------------------------------------------------------------------------------------
def revision(folder, scale_of):
    raw = open(f"{FIXTURES}peft/cases/{folder}/adapter_model.safetensors", "rb").read()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    lines = []
    for name, t in header.items():
        path, role = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        begin, end = (8 + n + offset for offset in t["data_offsets"])
        digest = hashlib.sha256(raw[begin:end]).hexdigest()
        scale = struct.pack(">d", scale_of(path)).hex()
        dims = "x".join(map(str, t["shape"]))
        lines.append(f"{path}\t{role.lower()}\t{scale}\t{t['dtype']}\t{dims}\t{digest}\n")
    text = "adapterd-revision-v1\n" + "".join(sorted(lines))
    return folder, hashlib.sha256(text.encode()).hexdigest(), hashlib.sha256(raw).hexdigest()


def patterns_scale(path):
    r = 4 if path.endswith("q_proj") else 2 if "layers.1." in path else 6 if path.endswith("down_proj") else 8
    alpha = 5 if ".mlp." in path else 1 if path.endswith("o_proj") else 16
    return (32 if path == "model.layers.0.self_attn.k_proj" else alpha) / r


def revision_rows():
    yield revision("llama-qv", lambda path: 16 / 8)
    yield revision("llama-bf16", lambda path: 16 / 8)
    yield revision("llama-f16", lambda path: 16 / 8)
    yield revision("llama-float-alpha", lambda path: 2.5 / 3)
    yield revision("llama-rslora", lambda path: 16 / 8 ** 0.5)
    yield revision("llama-patterns", patterns_scale)


# ------------------------------------------------------------------------------------------------
def literal(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "{" + ", ".join(map(literal, value)) + "}"
    if value.isascii() and value.isprintable() and ("\\" in value or '"' in value):
        return f'R"~({value})~"'
    text = ""
    for byte in value.encode():
        text += chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}"
    suffix = "s" if "\\000" in text else ""
    return f'"{text}"{suffix}'


def table(name, row_type, rows):
    body = "".join("    {" + ", ".join(map(literal, row)) + "},\n" for row in rows)
    return f"inline const std::vector<{row_type}> {name} = {{\n{body}}};\n"


HEAD = """// Made by make_python_tables.py; do not edit.
#ifndef ADAPTERD_TESTS_CORE_ADAPTER_PYTHON_TABLES_H_
#define ADAPTERD_TESTS_CORE_ADAPTER_PYTHON_TABLES_H_

#include <string>
#include <vector>

namespace adapterd::python {

using namespace std::string_literals;  // NOLINT(google-build-using-namespace): texts with NUL

struct RegexCase {
  std::string pattern;
  std::string text;
  bool compiles;
  bool matches;
  bool fullmatches;
};

struct KeyCase {
  std::vector<std::string> keys;
  std::string path;
  int found;  // index of the key, -1: none
};

struct TargetCase {
  std::string config;
  std::string path;
  bool targeted;
};

struct Revision {
  std::string folder;
  std::string revision;
  std::string weights_sha256;
};

// clang-format off
"""
TAIL = """// clang-format on

}  // namespace adapterd::python

#endif  // ADAPTERD_TESTS_CORE_ADAPTER_PYTHON_TABLES_H_
"""

if __name__ == "__main__":
    with open(OUT, "w") as f:
        f.write(HEAD)
        f.write(table("kRegexCases", "RegexCase", regex_rows()) + "\n")
        f.write(table("kKeyCases", "KeyCase", key_rows()) + "\n")
        f.write(table("kTargetCases", "TargetCase", target_rows()) + "\n")
        f.write(table("kRevisions", "Revision", revision_rows()))
        f.write(TAIL)
