"""The text of a PDF that reportlab wrote with subset TrueType fonts: enough to see what a reader sees, no more."""

import base64
import re
import zlib


def text_of(pdf):
    """All shown text, a line each string, page by page."""
    objects = dict(re.findall(rb"(?ms)^(\d+) 0 obj\n(.*?)\nendobj", pdf))
    fonts = _fonts(objects)
    pages = [o for o in objects.values() if b"/Type /Page\n" in o or re.search(rb"/Type /Page(?!s)", o)]
    return "\n".join(_shown(_stream(objects[re.search(rb"/Contents (\d+) 0 R", page)[1]]), fonts) for page in pages)


def _stream(raw):
    body = re.search(rb"(?s)stream\r?\n(.*?)\r?\n?endstream", raw)[1]
    if b"ASCII85Decode" in raw:
        body = base64.a85decode(body.strip().removesuffix(b"~>"))
    return zlib.decompress(body) if b"FlateDecode" in raw else body


def _fonts(objects):
    """Font resource name -> code -> letter."""
    found = {}
    for raw in objects.values():
        name = re.search(rb"/Name /(F\d+\+?\d*)", raw)
        unicode = re.search(rb"/ToUnicode (\d+) 0 R", raw)
        if name and unicode:
            found[name[1]] = _letters(_stream(objects[unicode[1]]))
    return found


def _letters(cmap):
    letters, code = {}, None
    for start, _end, listed in re.findall(rb"<(\w\w)> <(\w\w)> \[([^\]]*)\]", cmap):
        for offset, letter in enumerate(re.findall(rb"<(\w+)>", listed)):
            code = int(start, 16) + offset
            letters[code] = bytes.fromhex(letter.decode()).decode("utf-16-be")
    for code, letter in re.findall(rb"<(\w\w)> <(\w{4})>", cmap):
        letters.setdefault(int(code, 16), bytes.fromhex(letter.decode()).decode("utf-16-be"))
    return letters


def _shown(content, fonts):
    lines, font = [], None
    for name, shown in re.findall(rb"/(F\d+\+?\d*) [\d.]+ Tf|\(((?:\\.|[^\\)])*)\) Tj", content, re.S):
        if name:
            font = name
        else:
            letters = fonts.get(font, {})
            lines.append("".join(letters.get(byte, chr(byte)) for byte in _unescaped(shown)))
    return "\n".join(lines)


def _unescaped(raw):
    def one(match):
        code = match[1]
        return bytes([int(code, 8)]) if code.isdigit() else {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(code, code)

    return re.sub(rb"(?s)\\([0-7]{1,3}|.)", one, raw)
