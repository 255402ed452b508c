"""Remove colour words from captions, for samples whose reference is masked (§4.1).

Names of colours go; names of things stay. The decisions, each with a test:

| in the caption | decision |
| --- | --- |
| a colour's name: red, turquoise, beige, khaki, silver, blond | goes |
| its forms: reddish, bluer, greenest, blackened, yellowing, whiteness, orangey; reds and blues | go |
| a compound: dark-blue, red-haired, blue-green, black-and-white, off-white, black/white, darkblue | goes whole |
| a shade before a colour: light blue, navy blue, bright red, rose gold, snow white | goes with it |
| "coloured", "in colour" and the like after a colour: salmon coloured, red colored | goes with it |
| a thing that lends its name to a colour: salmon, chocolate, rose, lime, ivory | stays as a thing; goes as a colour: |
|   | before a colour, before "coloured", or joined with one by a hyphen (lime green, salmon-coloured) |
| orange | goes, except the fruit: orange juice, orange slices, oranges, "an orange on a plate" |
| gold, silver, bronze | the first two go (a gold ring -> a ring), except for medals; bronze stays, it is a metal |
| fixed names: black bear, red wine, white house, golden retriever | the colour goes, the thing is still named by the |
|   | rest; red panda and golden gate stay, their rest would name another thing, and so does a navy of ships |
| colour inside a word: blackbird, greenhouse, redwood, blueberry, greyhound, greenery | stays |
| lightness alone: dark, bright, pale, dark-haired, light-haired | stays: a gray frame shows it |
| colorful, multicoloured, rainbow | stay: they name no colour |
| grayscale, monochrome, sepia, black and white | go: they say that there is no colour |

The rest of the text is tidied: an article, verb or preposition without its word goes ("the sky is blue" -> "the sky",
"dressed in red" -> "dressed"), an "and" that joins nothing, "a" before a vowel. The text comes back in lower case.
"""

import re
from functools import lru_cache

from ..utils.files import read_table

_LISTED = read_table(__package__, "color_words.toml")
_FORMS = _LISTED["forms"]
_COLORED = r"colou?r(?:ed|s)?|hued?|tinted|toned|tinged|tones?"
# Phrases where the word is no colour, or where its removal would name another thing.
_KEPT = (
    r"orange (?:juice|peels?|slices?|wedges?|segments?|hal(?:f|ves)|trees?|groves?|soda|zest|marmalade|blossoms?)",
    r"(?:an|one|half an|sliced|peeled|cut|the|this) orange"
    r"(?= (?:on|in|at|with|from|of|next|beside|near|under|and (?:an?|the|some|one|two))\b| *$| *[,.])",
    r"red pandas?|golden gate|(?:gold|silver) med(?:al|als|alists?)",
    r"(?:us|u\.s\.|the|royal) navy|navy (?:ships?|officers?|bases?|jets?|planes?|seals?)",
)

_DETERMINERS = set(
    "a an the this that these those his her its their my your our some any each every both one two three four five six"
    " seven eight nine ten several many".split()
)
_PREPOSITIONS = set(
    "in of with on at by from to wearing near under over behind beside between into onto for as like through".split()
)
_VERBS = set("is are was were be been being looks look looking turned turns turning painted dyed".split())
_JOINTS = {"and", "or", "but", "&"}
_STOPS = {",", ".", ";", ":", "!", "?"}
_GAP = "\0"


def remove_color_words(text: str) -> str:
    """Return a caption without colour words, in lower case: ``"red and blue car, green background"`` -> ``"car"``.

    The module's table defines colour words. A second call changes nothing. Source: §4.1.
    """
    while (shorter := _remove_once(text)) != text:
        text = shorter
    return text


def _remove_once(text: str) -> str:
    text = " ".join(text.lower().split())
    kept: list[str] = []

    def keep(match: re.Match) -> str:
        kept.append(match[0])
        return f" \x01{len(kept) - 1}\x01 "

    for pattern in _KEPT:
        text = re.sub(rf"(?<![\w-])(?:{pattern})(?![\w-])", keep, text)
    tokens = re.findall(r"\x01\d+\x01|[^\s,.;:!?]+|[,.;:!?]", text)
    tokens = _tidy(_mark(tokens))
    words = " ".join(tokens)
    words = re.sub(r"\x01(\d+)\x01", lambda match: kept[int(match[1])], words)
    return re.sub(r" ([,.;:!?])", r"\1", words)


def _mark(tokens: list[str]) -> list[str]:
    """Replace every run of colour words, with their shades and joints, by one gap."""
    kinds = [_kind(token) for token in tokens]
    colored = [re.fullmatch(_COLORED, token) is not None for token in tokens]
    gone = [kind == "color" for kind in kinds]
    for i in reversed(range(len(tokens) - 1)):  # a word before a colour can be a shade of it
        if kinds[i] == "thing" and (gone[i + 1] or colored[i + 1]):
            gone[i] = True
        elif kinds[i] == "shade" and gone[i + 1] and not (i and tokens[i - 1] in ("traffic", "street", "stop")):
            gone[i] = True
        elif tokens[i] == "baby" and tokens[i + 1] in ("blue", "pink"):  # but a baby black bear is a baby
            gone[i] = True
    for i in range(1, len(tokens)):
        if colored[i] and gone[i - 1]:
            gone[i] = True
        elif i > 1 and colored[i] and tokens[i - 1] == "in" and (gone[i - 2] or kinds[i - 2] == "thing"):
            gone[i - 2 : i + 1] = [True] * 3  # red in colour
    marked: list[str] = []
    for i, token in enumerate(tokens):
        after = i + 1 < len(tokens) and gone[i + 1]
        joint = token in _JOINTS or token in ("/", "-", "to") or (token == "," and _is_list(tokens, gone, i))
        if gone[i]:
            if not marked or marked[-1] != _GAP:
                marked.append(_GAP)
        elif not (joint and marked and marked[-1] == _GAP and (after or token == ",")):
            marked.append(token)
    return marked


def _is_list(tokens: list[str], gone: list[bool], i: int) -> bool:
    """Return True if the comma at i is in a list such as "red, white(,) and blue", of colours only."""
    for j in range(i + 1, len(tokens) - 1):
        if tokens[j] in _JOINTS:
            return gone[j + 1]
        if not (gone[j] or tokens[j] == ","):
            return False
    return False


def _tidy(tokens: list[str]) -> list[str]:
    """Remove the gaps, with the articles, prepositions and verbs that depend on them."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token != _GAP:
            out.append(token)
            i += 1
            continue
        i += 1
        following = tokens[i] if i < len(tokens) else None
        if following in _JOINTS and not (out and out[-1] in _VERBS):
            after = tokens[i + 1] if i + 1 < len(tokens) else None
            if after is not None and after not in _DETERMINERS | _STOPS and (not out or out[-1] not in _PREPOSITIONS):
                i += 1  # "a red and shiny car": two adjectives lose their joint
                following = after
        bare = following is None or following in _STOPS | _PREPOSITIONS | _VERBS | _JOINTS
        while bare and out and out[-1] in _DETERMINERS | _PREPOSITIONS | _VERBS:
            out.pop()
        if out and out[-1] in ("a", "an") and following is not None:
            out[-1] = "an" if following[0] in "aeiou" else "a"
    return _join_clauses(out)


def _join_clauses(tokens: list[str]) -> list[str]:
    """Remove joints and stops with nothing on one side, and "background" without a colour."""
    clauses: list[list[str]] = [[]]
    stops: list[str] = []
    for token in tokens:
        if token in _STOPS:
            stops.append(token)
            clauses.append([])
        else:
            clauses[-1].append(token)
    stops.append("")
    out: list[str] = []
    for clause, stop in zip(clauses, stops, strict=True):
        while clause and clause[0] in _JOINTS:
            clause = clause[1:]
        while clause and clause[-1] in _JOINTS:
            clause = clause[:-1]
        clause = [word for n, word in enumerate(clause) if not (word in _JOINTS and n and clause[n - 1] in _JOINTS)]
        if clause and not (clause == ["background"] and out):
            out += [*clause, stop] if stop else clause
    while out and out[-1] in _STOPS and out[-1] != ".":
        out.pop()
    return out


@lru_cache(maxsize=65536)
def _kind(token: str) -> str | None:
    """Return "color", "thing" (a thing that lends its name to a colour), "shade", or None."""
    word = re.sub(r"['’]s$", "", token.strip("\"'()[]“”‘’"))
    parts = [part for part in re.split(r"[-/]", word) if part]
    if len(parts) > 1:
        lent = _kind(parts[0]) == "thing" and re.fullmatch(_COLORED, parts[-1])
        return "color" if lent or any(_kind(part) == "color" for part in parts) else None
    if word in ("pinky", "whiting"):  # a finger, a fish
        return "thing"
    if word in _WORDS["color"] or _ENDINGS.fullmatch(word):
        return "color"
    return next((kind for kind in ("thing", "shade") if word in _WORDS[kind]), None)


_WORDS = {kind: set(_LISTED[kind].split()) for kind in ("color", "thing", "shade")}
_BASIC = "red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y"
_ENDINGS = re.compile(
    rf"(?:{'|'.join(sorted(set(_FORMS.values()) | set(_FORMS)))})(?:ish|er|est|en|ened|ening|ed|ing|ness|y|ly)"
    r"|redness|redly|blueness|whiteness|orangeness|purpleness|(?:teal|turquois|violet|scarlet|beig|tan|maroon)ish"
    # compounds in one word; a thing before "red" is excluded, or "seared" would be a colour
    rf"|(?:dark|light|pale|medium|deep|hot|off)?(?:{_BASIC})+"
    rf"|(?:sky|sea|steel|slate|royal|navy|forest|lime|olive|midnight|powder|snow|spring|lawn)(?:{_BASIC[4:]})"
)
