"""The page that describes the endpoint for people, made of its OpenAPI description.

It is one file without requests to other servers, with a form that tries the endpoint.
"""

import html
import json
from collections.abc import Mapping
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884; }
code, pre, textarea { font: 14px/1.45 ui-monospace, monospace; }
pre, textarea { background: #8881; border: 1px solid #8884; border-radius: 6px; padding: .8rem; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
textarea { width: 100%; box-sizing: border-box; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid #8884; }
img { max-width: 100%; }
"""
_SCRIPT = """
const form = document.getElementById("try");
const show = (text) => { document.getElementById("answer").textContent = text; };
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const generated = document.getElementById("generated");
  generated.hidden = true;
  show("...");
  try {
    const fields = JSON.parse(document.getElementById("fields").value);
    const file = document.getElementById("file").files[0];
    if (file) {
      fields.image = await new Promise((done, failed) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.onerror = () => failed(reader.error);
        reader.readAsDataURL(file);
      });
    }
    const response = await fetch("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(fields),
    });
    const answer = await response.json();
    if (answer.image) {
      generated.src = "data:image/png;base64," + answer.image;
      generated.hidden = false;
      answer.image = "(below)";
    }
    show(response.status + "\\n" + JSON.stringify(answer, null, 2));
  } catch (error) {
    show(String(error));
  }
});
"""
_CURL = """\
printf '{"image": "%s", "instruction": "what does the image describe?"}' "$(base64 -w0 room.jpg)" |
  curl --json @- {url}/predict"""
_PYTHON = """\
import base64, json, urllib.request

with open("room.jpg", "rb") as file:
    fields = {
        "image": base64.b64encode(file.read()).decode(),
        "instruction": 'which region does the text "a red apple" describe?',
    }
request = urllib.request.Request(
    "{url}/predict", json.dumps(fields).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request) as response:
    print(json.load(response)["boxes"])"""


def make_page(description: Mapping[str, Any], url: str = "http://127.0.0.1:8000") -> str:
    """Returns the page as HTML.

    Args:
      description: the OpenAPI description.
      url: of the server, for the examples.
    """
    info = description["info"]
    parts = [
        f"<h1>{_escape(info['title'])}</h1>",
        f"<p>{_escape(info.get('description', ''))} Version {_escape(info['version'])}. "
        'For programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if method != "head":
                parts += _describe(path, method, operation)
    parts += [
        "<h2>Try it</h2>",
        '<form id="try"><p><label>Image <input type="file" id="file"></label></p>',
        '<p><label for="fields">Other fields</label>'
        '<textarea id="fields" rows="4">{"instruction": "what does the image describe?"}'
        "</textarea></p>",
        '<button>POST /predict</button></form><pre id="answer"></pre>',
        '<img id="generated" alt="the generated image" hidden>',
        "<h2>Examples</h2>",
        f"<pre>{_escape(_CURL.replace('{url}', url))}</pre>",
        f"<pre>{_escape(_PYTHON.replace('{url}', url))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_escape(info["title"])}</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}<script>{_SCRIPT}</script>"
        "</body></html>"
    )


def _describe(path: str, method: str, operation: Mapping[str, Any]) -> list[str]:
    """Returns the section of an operation."""
    parts = [
        f"<h2><code>{_escape(method.upper())} {_escape(path)}</code></h2>",
        f"<p>{_escape(operation.get('summary', ''))}</p>",
    ]
    if schema := _json_schema(operation.get("requestBody", {})):
        parts += ["<h3>Request</h3>", _table(schema)]
    rows = []
    for status, response in operation["responses"].items():
        if status == "200" and (schema := _json_schema(response)).get("properties"):
            parts += ["<h3>Answer</h3>", _table(schema)]
        rows.append((status, response["description"]))
    body = "".join(f"<tr><td>{_escape(s)}</td><td>{_escape(d)}</td></tr>" for s, d in rows)
    parts.append(f"<h3>Statuses</h3><table><tbody>{body}</tbody></table>")
    return parts


def _json_schema(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema of a JSON body."""
    return part.get("content", {}).get("application/json", {}).get("schema", {})


def _table(schema: Mapping[str, Any]) -> str:
    """Returns a table of an object's fields."""
    rows = "".join(
        f"<tr><td><code>{_escape(name)}</code></td><td>{_escape(_type(field))}</td>"
        f"<td>{_escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    head = "<tr><th>Field</th><th>Type</th><th>Meaning</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _type(field: Mapping[str, Any]) -> str:
    """Returns the type of a field in words."""
    kind = field.get("type", "any")
    if kind == "array":
        kind = f"array of {_type(field.get('items', {}))}"
    if "enum" in field:
        kind = "one of " + ", ".join(field["enum"])
    if "minimum" in field:
        kind += f", {field['minimum']} to {field['maximum']}"
    if "default" in field:
        kind += f"; {json.dumps(field['default'])} if left out"
    return kind


def _escape(text: object) -> str:
    return html.escape(str(text))
