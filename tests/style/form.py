"""Checks of a file's form: sizes, names, leftovers. Each takes (path, text) and returns (line, problem) pairs."""
import ast
import re

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
_VAGUE = {"util", "utils", "common", "helper", "helpers", "manager", "base", "impl", "misc"}
_CPP = (".h", ".cc", ".inc", ".cu")
# Texts of others that are kept as they are.
_FOREIGN = re.compile(r"proto/(google|grpc|inference)/|_pb2(_grpc)?\.pyi?$")


def is_program(path: str, text: str) -> bool:
    return path.endswith(_CPP + (".py",)) or text.startswith("#!")


def check_name(path: str, text: str) -> list[tuple[int, str]]:
    words = [part.rsplit(".", 1)[0] for part in path.split("/")]
    bad = [word for word in words if _VAGUE & set(re.split(r"[_\-.]", word.lower()))]
    return [(1, f"the name '{word}' says nothing about what is inside") for word in bad]


def check_file_length(path: str, text: str) -> list[tuple[int, str]]:
    lines = text.count("\n")
    if not is_program(path, text) or _FOREIGN.search(path) or lines <= FILE_LINES_MAX:
        return []
    return [(lines, f"{lines} lines, the limit is {FILE_LINES_MAX}: split it by subject")]


def _blank(match: re.Match) -> str:
    """Spaces in place of a comment or literal, so that lines and columns stay."""
    return re.sub(r"[^\n]", " ", match[0])


def _code_only(text: str) -> str:
    literal = r'R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'|//[^\n]*|/\*.*?\*/'
    text = re.sub(literal, _blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", _blank, text, flags=re.M)


_NOT_A_FUNCTION = re.compile(r"^\s*(namespace|class|struct|enum|union|extern|if|else|for|while|do|switch|try|catch"
                             r"|return|case|default)\b|=\s*$|^\s*$|[,(]\s*$")


def _functions(code: str):
    """(line, lines) of each outermost function body: a brace after a parameter list, outside any function."""
    stack, since, start = [], 0, None
    for match in re.finditer(r"[{};]", code):
        at, sign = match.start(), match[0]
        if sign == "{":
            head = code[since:at]
            function = "(" in head and not _NOT_A_FUNCTION.search(head) and "fn" not in stack
            stack.append("fn" if function else "other")
            if function:
                start = since + len(head) - len(head.lstrip())
        elif sign == "}" and stack:
            if stack.pop() == "fn" and "fn" not in stack:
                first = code.count("\n", 0, start) + 1
                yield first, code.count("\n", 0, at) + 2 - first
        since = match.end()


def check_function_length(path: str, text: str) -> list[tuple[int, str]]:
    if _FOREIGN.search(path):
        return []
    if path.endswith(_CPP):
        found = list(_functions(_code_only(text)))
    elif path.endswith(".py") or text.startswith("#!/usr/bin/env python3"):
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        found = [(n.lineno, n.end_lineno - n.lineno + 1) for n in nodes]
    else:
        return []
    return [(line, f"a function of {lines} lines, the limit is {FUNCTION_LINES_MAX}")
            for line, lines in found if lines > FUNCTION_LINES_MAX]


def check_header(path: str, text: str) -> list[tuple[int, str]]:
    if not path.endswith(".h") or _FOREIGN.search(path):
        return []
    problems = []
    if not text.startswith("// "):
        problems.append((1, "a header opens with a comment: what it is, why, who owns what, which threads"))
    if "#pragma once" not in text and not re.search(r"^#ifndef \w+_H_", text, re.M):
        problems.append((1, "no include guard"))
    return problems


# Written in two pieces, so that this file does not find itself.
_HOSTS = "|".join(re.escape(a + b) for a, b in [
    ("deb.", "debian.org"), ("pypi.", "org"), ("python", "hosted.org"), ("proxy.", "golang.org"),
    ("crates", ".io"), ("registry.", "npmjs.org"), ("repo.", "maven"), ("repo1.", "maven")])
_MACHINE = re.compile(r"(?<![\w.])/(?:wo" r"rk|ro" r"ot|home/\w+|Users/\w+)/|" + _HOSTS)


def check_machine(path: str, text: str) -> list[tuple[int, str]]:
    return [(number, f"names a machine's path or a registry's host: {match[0]}")
            for number, line in enumerate(text.splitlines(), 1) if (match := _MACHINE.search(line))]


_LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")


def check_leftovers(path: str, text: str) -> list[tuple[int, str]]:
    if _FOREIGN.search(path):
        return []
    return [(number, f"left unfinished: {match[0]}")
            for number, line in enumerate(text.splitlines(), 1) if (match := _LEFTOVER.search(line))]


_FLAGS = re.compile(r"-m(avx|sse|amx|arch=|fma|f16c)|-ffast-" r"math|-Ofast")


def check_flags(path: str, text: str) -> list[tuple[int, str]]:
    if not path.endswith(("CMakeLists.txt", ".cmake", "CMakePresets.json")):
        return []
    return [(number, f"{match[0]}: instruction sets are opened by a pragma in their own file, and arithmetic is exact")
            for number, line in enumerate(text.splitlines(), 1)
            if (match := _FLAGS.search(line.split("#")[0] if "Lists" in path else line))]


def check_links(path: str, text: str, exists) -> list[tuple[int, str]]:
    """Relative links of a Markdown page lead to a file of the tree."""
    if not path.endswith(".md"):
        return []
    folder = path.rsplit("/", 1)[0] + "/" if "/" in path else ""
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        for target in re.findall(r"\]\(([^)#\s]+)", line):
            if not re.match(r"[a-z]+:", target) and not exists(folder + target):
                problems.append((number, f"links to {target}, which is not there"))
    return problems


def check_snippets(path: str, text: str, read) -> list[tuple[int, str]]:
    """A code block that follows `<!-- file: X -->` is a piece of X's text."""
    if not path.endswith(".md"):
        return []
    problems = []
    for match in re.finditer(r"<!-- file: (\S+) -->\n+```\w*\n(.*?)```", text, re.S):
        source = read(match[1])
        number = text.count("\n", 0, match.start()) + 1
        if source is None:
            problems.append((number, f"quotes {match[1]}, which is not there"))
        elif not match[2].strip() or match[2].strip() not in source:
            problems.append((number, f"the code is not {match[1]}'s: copy it again"))
    return problems
