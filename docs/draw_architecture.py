"""Draws docs/architecture.svg, the figure of the README.

python docs/draw_architecture.py
"""

import pathlib
from xml.sax.saxutils import escape

TARGET = pathlib.Path(__file__).parent / "architecture.svg"
_WIDTH, _HEIGHT = 880, 410
_INK, _LINE = "#1f2933", "#52606d"
_FILL = {"input": "#e3f2fd", "model": "#ede7f6", "output": "#e8f5e9", "ids": "#fff8e1"}


def box(x: int, y: int, width: int, height: int, kind: str, *lines: str) -> str:
    """Returns a rounded box; the first line is bold, all are centred."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{_FILL[kind]}" '
        f'stroke="{_LINE}"/>'
    ]
    top = y + height / 2 - 9 * (len(lines) - 1) + 5
    for number, line in enumerate(lines):
        weight = "bold" if number == 0 else "normal"
        size = 15 if number == 0 else 12.5
        parts.append(
            f'<text x="{x + width / 2:g}" y="{top + 18 * number:g}" text-anchor="middle" '
            f'font-weight="{weight}" font-size="{size:g}">{escape(line)}</text>'
        )
    return "\n".join(parts)


def arrow(*points: tuple[int, int]) -> str:
    """Returns a line through the points, with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{_LINE}" stroke-width="1.6" '
        'marker-end="url(#head)"/>'
    )


def note(x: int, y: int, text: str) -> str:
    """Returns a small line of text that begins at (x, y)."""
    return f'<text x="{x}" y="{y}" font-size="12.5" fill="{_LINE}">{escape(text)}</text>'


def draw() -> str:
    """Returns the figure as SVG."""
    shapes = [
        box(20, 40, 150, 64, "input", "image", "256 to 512 px a side"),
        box(
            20, 150, 150, 84, "input", "instruction", "“which region does", "the text … describe?”"
        ),
        box(230, 40, 150, 64, "model", "ResNet", "16 x 16 pixels a patch"),
        box(230, 160, 150, 64, "ids", "vocabulary", "byte-level BPE"),
        box(
            440,
            70,
            150,
            124,
            "model",
            "encoder",
            "patches and tokens",
            "absolute and relative",
            "positions",
        ),
        box(440, 250, 150, 64, "model", "decoder", "beam search, tries"),
        box(
            650,
            230,
            210,
            104,
            "output",
            "target",
            "text: “a red apple”",
            "box: 4 location bins",
            "image: VQGAN codes",
        ),
        box(
            20,
            350,
            840,
            44,
            "ids",
            "one vocabulary of 59,457 ids: text, 8,192 image codes, 1,000 location bins",
        ),
        arrow((170, 72), (228, 72)),
        arrow((170, 192), (228, 192)),
        arrow((380, 72), (410, 72), (410, 112), (438, 112)),
        arrow((380, 192), (410, 192), (410, 152), (438, 152)),
        arrow((515, 194), (515, 248)),
        arrow((590, 282), (648, 282)),
        note(524, 226, "cross-attention"),
        note(612, 132, "captioning, questions, matching,"),
        note(612, 150, "grounding, grounded captioning,"),
        note(612, 168, "detection, image and text infilling:"),
        note(612, 186, "one model, no task heads"),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'font-family="sans-serif" fill="{_INK}">',
            "<title>OFA: an image and an instruction in, text, boxes or image codes out</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{_LINE}"/></marker>'
            "</defs>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            *shapes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(draw())
