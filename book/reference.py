"""The reference: pages of the public names, read from gcgkit's source with griffe.

Nothing of gcgkit is imported, so neither PyTorch nor any other of its packages has to be there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import griffe
from sphinx.ext.napoleon import Config, GoogleDocstring

MORE = ("settings",)  # the options that the pipeline's methods take
_SECTIONS = Config(napoleon_use_param=False, napoleon_custom_sections=[("Attributes", "params_style")])
_QUOTED = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)


def public_names(root: Path) -> dict[str, list[str]]:
    """Return the public names that ``gcgkit/__init__.py`` lists: classes by module, and modules with no class named.

    The options of the pipeline come last.
    """
    body = ast.parse((root / "gcgkit" / "__init__.py").read_text(encoding="utf-8")).body
    values = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign)}
    groups: dict[str, list[str]] = {}
    for name, module in ast.literal_eval(values["_CLASSES"]).items():
        groups.setdefault(module, []).append(name)
    modules = [item.value for item in values["__all__"].elts if isinstance(item, ast.Constant)]
    return groups | {module: [] for module in (*modules, *MORE)}


def pages(root: Path) -> dict[str, str]:
    """Return the pages of the reference, in MyST Markdown, by their names: one for each group of public names."""
    package = griffe.load("gcgkit", search_paths=[root], allow_inspection=False, resolve_aliases=True)
    found = {}
    for module, classes in public_names(root).items():
        source = package[module]
        if classes:
            title = ", ".join(f"gcgkit.{name}" for name in classes)
            head, members = ".. py:currentmodule:: gcgkit", [source.members[name] for name in classes]
        else:
            title, head, members = f"gcgkit.{module}", f".. py:module:: gcgkit.{module}", public_members(source)
        about = "" if classes else described(source.docstring)
        blocks = [head, about, *(directive(member) for member in members)]
        text = "\n\n".join(block for block in blocks if block)
        found[f"api/{module}.md"] = f"# {title}\n\n```{{eval-rst}}\n{text}\n```\n"
    return found


def public_members(parent) -> list:
    """Return what a module or class offers: what ``__all__`` names, or else what is its own and has a docstring."""
    if parent.exports:
        named = [parent.members[str(name)] for name in parent.exports]
        return [member.final_target if member.is_alias else member for member in named]
    return [
        member for name, member in parent.members.items()
        if not member.is_alias and member.has_docstring and (name == "__call__" or not name.startswith("_"))
    ]  # fmt: skip


def directive(member) -> str:
    """Describe a class, function or constant as a directive of Sphinx's Python domain, with its docstring."""
    inside = member.parent.is_class
    if member.is_class:
        named = [f"``{base}``" for base in member.bases if not str(base).startswith("_")]
        bases = ["Bases: " + ", ".join(named)] if named else []
        content = [*bases, described(member.docstring), *(directive(inner) for inner in public_members(member))]
        return _block("class", f"{member.name}{signature(member)}", content)
    if member.is_function:
        return _block(
            "method" if inside else "function",
            f"{member.name}{signature(member, inside and 'staticmethod' not in member.labels)}",
            [described(member.docstring)],
            [f":{label}:" for label in ("classmethod", "staticmethod") if label in member.labels],
        )
    if "property" in member.labels:
        return _block("property", member.name, [described(member.docstring)])
    options = [f":value: {member.value}"] if member.value is not None else []
    return _block("attribute" if inside else "data", member.name, [described(member.docstring)], options)


def signature(member, method: bool = False) -> str:
    """Return arguments, defaults and the returned type of a function, or of a class's ``__init__``, as written."""
    function = member.members.get("__init__") if member.is_class else member
    if function is None:
        return "()"
    text = function.signature(return_type=not member.is_class)
    text = text[text.index("(") :]
    if member.is_class or method:  # the reader does not give self or cls
        text = re.sub(r"^\((?:self|cls)(?:, )?", "(", text)
    return text


def described(docstring) -> str:
    """Return a docstring as reStructuredText: sections "Args:" as fields, and L*, a|b and name_ as what they are."""
    if docstring is None:
        return ""
    parts = _QUOTED.split(docstring.value)
    parts[::2] = [re.sub(r"[*|]|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return str(GoogleDocstring("".join(parts), _SECTIONS)).strip()


def _block(kind: str, head: str, content: list[str], options: list[str] = ()) -> str:
    text = "\n\n".join(part for part in content if part)
    body = "\n".join([*options, "", text])
    return f".. py:{kind}:: {head}\n" + "\n".join(f"   {line}".rstrip() for line in body.splitlines())
